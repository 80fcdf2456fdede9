"""Check that Kangaroo writes the very token ids that plain decoding writes; print where it does not, and why.

python -m kangaroo_jax verify                             the built-in prompts
python -m kangaroo_jax verify "def f(x):" "import os"     these prompts
python -m kangaroo_jax verify --prompts prompts.jsonl     JSON lines with a 'prompt' each
python -m kangaroo_jax verify --raw "Hi!"                 not a chat model's answer, but what follows this text
python -m kangaroo_jax verify --dtype bfloat16 --json     rounding shows: how often, as JSON

The target's logits are rounded, and a product over one row and one over several round differently. Where texts first
differ, the table has "gap", how far apart the two tokens' logits are, and "noise", how far the logits there move with
the number of rows. If rounding alone can have decided, the difference is a tie. Nothing after it is compared.

Exit status: 0 if lossless (identical, or all differences are ties), 1 if not, 2 on bad input.
"""

from __future__ import annotations

import argparse
import json

from kangaroo_jax.cli import common_options as options
from kangaroo_jax.progress import progress
from kangaroo_jax.proof import verify_lossless


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = options.new_parser("verify", __doc__)
    add = parser.add_argument
    add("prompt", nargs="*", help="texts to go on with, or to answer")
    options.add_prompts(parser)
    options.add_model(parser)
    options.add_decoding(parser)
    add("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def run(args: argparse.Namespace) -> int:
    """Verify and print; returns the exit status: 0 if lossless, 1 if not.

    Raises:
        ValueError: on bad input.
    """
    if args.prompt and args.prompts:
        raise ValueError("both prompts and --prompts; pass one of them")
    options.read(args)
    params = options.load(args)
    rows = options.prompts(params, args, args.prompt)
    prompts, names = [row["prompt"] for row in rows], [row["name"] for row in rows]
    with progress(total=len(prompts), desc="verifying", unit="prompt", disable=args.json) as bar:
        report = verify_lossless(params, prompts, **options.decoding(args), names=names, tick=bar.update)
    print(json.dumps(report.as_dict()) if args.json else report)
    return 0 if report.lossless else 1
