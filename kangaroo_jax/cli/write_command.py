"""Write text on the terminal with Kangaroo, or compare it with plain decoding.

python -m kangaroo_jax "def fibonacci(n):"      stream a continuation
python -m kangaroo_jax --model smollm2 "Hi!"    stream a chat model's answer; with --raw, a continuation
python -m kangaroo_jax --compare                measure on the built-in prompts
python -m kangaroo_jax verify                   check that Kangaroo writes the tokens plain decoding writes
python -m kangaroo_jax tune                     find the fastest gamma and eta on this machine
python -m kangaroo_jax chat                     hold a conversation

The text is greedy unless an option of sampling is given. On a terminal accepted drafts are green, unless
NO_COLOR is set.

Commands have a help of their own: python -m kangaroo_jax verify --help. Only the first word names a command; to
continue a text that is such a word, write: python -m kangaroo_jax -- verify
"""

from __future__ import annotations

import argparse
import json
import sys

import kangaroo_jax
from kangaroo_jax.cli import common_options as options
from kangaroo_jax.cli import comparison, terminal


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = options.new_parser("", __doc__)
    add = parser.add_argument
    add("prompt", nargs="?", help="text to go on with, or for a chat model to answer")
    options.add_model(parser)
    options.add_decoding(parser)
    options.add_writing(parser)
    comparison.add_options(parser)
    add("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write one text, or compare; returns the exit status: 0, or 1 if --compare found a difference.

    Raises:
        ValueError: on bad input.
    """
    if args.prompt is None and not args.compare:
        raise ValueError('no prompt; try: python -m kangaroo_jax "def fibonacci(n):"  (or --compare, or --help)')
    comparison.check(args)
    if args.compare:
        options.refuse_writing(args, "--compare measures greedy texts of one length")
    params = options.load(args)
    if args.compare:
        return comparison.run(params, args)
    (row,) = options.prompts(params, args, [args.prompt])
    prompt, arguments = row["prompt"], options.writing(args)
    if args.json:
        result = kangaroo_jax.generate(params, prompt, **arguments)
        fields = {"text": result.text, "token_ids": result.token_ids, "finish_reason": result.finish_reason}
        print(json.dumps(fields | result.stats.as_dict()))
        return 0
    stats = terminal.write(params, prompt, arguments).stats
    print(f"[{stats.summary()}]", file=sys.stderr)
    return 0
