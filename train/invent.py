"""Let the target write the questions, too: data for its adapter where there is none.

    python -m train.invent     --model smollm2 --rows 2000 --out questions.jsonl
    python -m train.regenerate --model smollm2 --data questions.jsonl --out self.jsonl
    python -m train.adapter    --model smollm2 --data self.jsonl

What a chat model draws where its template opens a user's message is like what it was tuned on (Magpie, arXiv
2406.08464). Questions that come twice or reach the limit are left out. Stopped or killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kangaroo_jax
from kangaroo_jax.checks import integer, real
from kangaroo_jax.engine import Options, Plan, plan
from kangaroo_jax.files import whole_file
from kangaroo_jax.store import fingerprint, resolve
from kangaroo_jax.text import Tokenizer, chat_ids
from train.regenerate import check_out, heed, partial_of
from train.render import find_template
from train.replies import Writer
from train.reply_rows import Row
from train.training_loop import deferred_stops
from workshop.command import exit_status
from workshop.journal import Journal
from workshop.places import claimed
from workshop.provenance import weights_digest

NO_REPLY = "(to be written)"
"""Stands where ``train.regenerate`` writes the reply."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m train.invent", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="a chat model: an alias, a Hugging Face or converted directory, or a GGUF file")
    add("--rows", type=int, default=1000, metavar="N", help="questions to draw (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="FILE", help=".jsonl file to write; FILE.partial until it is done")
    add("--force", action="store_true", help="replace a file that is already there (default: refuse)")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="limit of a question (default: %(default)s)")
    add("--batch-size", type=int, default=16, metavar="N", help="questions drawn at a time (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32 on a CPU, else bfloat16)")
    add("--temperature", type=float, default=1.0, metavar="T", help="divides the logits (default: %(default)g)")
    add("--top-p", type=float, default=0.99, metavar="P", help="likeliest tokens drawn from (default: %(default)g)")
    add("--seed", type=int, default=0, metavar="N", help="a question is a function of it and its row (default: 0)")
    return parser


class Inventor(Writer):
    """Writes on where every row begins alike, each with random numbers of its own."""

    def __init__(self, params: kangaroo_jax.Params, plan: Plan, rows: Sequence[Row], journal: Journal) -> None:
        """Take the questions that are in the journal; arguments as for ``Writer``."""
        super().__init__(params, plan, rows, journal)
        self._opening = opening(params.tokenizer, params.name)[0]

    def _prompt(self, row: Row) -> list[int]:
        return self._opening


def opening(tokenizer: Tokenizer, name: str) -> tuple[list[int], list[int]]:
    """Return what a model's template has before the first user's words, and behind them.

    Args:
        tokenizer: the model's.
        name: the model's name.

    Raises:
        ValueError: if it has no chat template.
    """
    one, other = (chat_ids(tokenizer, name, [{"role": "user", "content": word}]) for word in ("Yes", "No"))
    return _shared(one, other), _shared(one[::-1], other[::-1])[::-1]


def _shared(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return what two lists begin with."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return [left for left, _ in pairs]


def invent(args: argparse.Namespace) -> str:
    """Write the file that the options describe, and return what was done as a line of text.

    Raises:
        ValueError: in one line, if something asked for cannot be.
        KeyboardInterrupt: after Ctrl-C, with all finished batches kept.
        Terminated: likewise after SIGTERM.
    """
    params = kangaroo_jax.load(args.model, dtype=args.dtype)
    find_template(params.tokenizer, params.name, None)
    behind = opening(params.tokenizer, params.name)[1]
    ended = behind[0] in params.config.eos_token_id
    drawn = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": 0, "seed": args.seed}
    stop = None if ended else params.tokenizer.decode(behind).strip()
    checked = plan(
        params, Options(max_new_tokens=args.max_new_tokens, method="plain", stop_strings=stop or None, **drawn)
    )
    settings: dict[str, Any] = {
        "target": fingerprint(params.config),
        "target_weights": weights_digest(params.target),
        "dtype": params.dtype.name,
        "rows": args.rows,
        "max_new_tokens": args.max_new_tokens,
        **drawn,
    }
    rows = [Row(f"question {index}") for index in range(args.rows)]
    journal = Journal(partial_of(args.out), settings)
    with deferred_stops() as stops:
        Inventor(params, checked, rows, journal).run(args.batch_size, lambda: heed(stops))
    whole = [row.replies[0].text.strip() for row in rows if row.replies and not row.replies[0].cut]
    questions = list(dict.fromkeys(filter(None, whole)))
    if not questions:
        raise ValueError(f"{args.model} ended none of {args.rows} questions in {args.max_new_tokens} tokens")
    with whole_file(args.out) as staged, staged.open("w", encoding="utf-8") as file:
        for number, question in enumerate(questions):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": NO_REPLY}]
            file.write(json.dumps({"id": f"invented-{number}", "messages": messages}) + "\n")
    journal.path.unlink()
    cut = sum(reply.cut for row in rows for reply in row.replies)
    return (
        f"{len(questions):,} questions written to {args.out}; left out: {cut:,} without an end, "
        f"{args.rows - cut - len(questions):,} that were there or empty"
    )


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError in one line if an option makes no sense or the file is there; before anything is loaded."""
    for name, least in (("rows", 1), ("max_new_tokens", 1), ("batch_size", 1), ("seed", 0)):
        integer(f"--{name.replace('_', '-')}", getattr(args, name), least)
    real("--temperature", args.temperature, "0 or more", 0, None)
    real("--top-p", args.top_p, "a share from 0 to 1", 0, 1)
    check_out(args.out, args.force)
    resolve(args.model)


def main(argv: list[str] | None = None) -> int:
    """Write (or go on with) the file that the options describe, and return the exit status."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        check_options(args)
        with claimed(partial_of(args.out), "is writing", file=True):
            print(invent(args))

    return exit_status(work, afterwards="the same command goes on from the last batch", refused=1)


if __name__ == "__main__":
    sys.exit(main())
