"""Run decoding methods on Spec-Bench's questions, side by side, and say what each gives against plain decoding.

python -m bench.spec_bench                                        joey: plain and kangaroo on its own 120 questions
python -m bench.spec_bench --methods all                          every method there is
python -m bench.spec_bench --list                                 the methods, their settings and what they need
python -m bench.spec_bench --model vicuna-7b --questions question.jsonl --methods plain,kangaroo
python -m bench.spec_bench --tasks qa,rag --per-task 5            a part of the questions; later calls go on from there
python -m bench.spec_bench --methods all --fitted                 also with settings that suit this machine (bench.fit)
python -m bench.spec_bench --set kangaroo.gamma=4 --set kangaroo.eta=0.4 --out runs/other-settings

All methods run one after the other on each question, three times, after three warm-ups; greedy, batch 1. Every answer
is compared with plain decoding's: in float32 a difference is an error (exit status 1), in narrower dtypes rounding may
decide ties, and differences are counted. Answers are written as they come: a run that was stopped goes on when the
same command is given again. The answer files are Spec-Bench's; record.json says how they came about, results.json and
results.md hold the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.folder import GOES_ON
from bench.methods import METHODS
from bench.question_set import JOEY_QUESTIONS
from bench.run_bench import run
from kangaroo_jax.store import EMBEDDED
from workshop.command import check_counts, exit_status

TOKENS, EMBEDDED_TOKENS = 1024, 128


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.spec_bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="joey", help="as for kangaroo_jax.load (default: %(default)s)")
    add("--adapter", type=Path, metavar="DIR", help="adapter directory (default: the model's own)")
    add("--exit-layer", type=int, metavar="N", help="layer the adapter was trained after, where it does not say it")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32 on a CPU, else bfloat16)")
    add(
        "--methods",
        default="plain,kangaroo",
        help="names with commas, or all; plain always runs (default: %(default)s)",
    )
    add("--set", action="append", default=[], metavar="METHOD.NAME=VALUE", help="change a setting; may be repeated")
    fitted = "run methods a second time, with settings fitted to this machine on questions that are not measured"
    add("--fitted", action="store_true", help=fitted)
    add("--list", action="store_true", help="print the methods and their settings, and do nothing else")
    add("--questions", type=Path, metavar="FILE", help="Spec-Bench's question.jsonl, or alike (joey has its own)")
    add("--tasks", metavar="NAMES", help="only questions of these tasks or categories, with commas")
    add("--per-category", type=int, metavar="N", help="only the first N questions of each category")
    add(
        "--per-task", type=int, metavar="N", help="only N questions of each task; of MT-bench's, all categories in turn"
    )
    add("--question-begin", type=int, metavar="N", help="leave out the first N questions")
    add("--question-end", type=int, metavar="N", help="leave out all but the first N questions")
    add("--skip-long", action="store_true", help="leave out questions that do not fit the model's context")
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"token budget of a turn (default: Spec-Bench's {TOKENS}; {EMBEDDED_TOKENS} for joey)",
    )
    add("--repeats", type=int, default=3, metavar="N", help="runs (default: %(default)s)")
    add(
        "--prepare",
        action=argparse.BooleanOptionalAction,
        help="first make what methods need and is not there, by the commands of --list (default: for joey)",
    )
    add("--no-split", action="store_true", help="do not measure what the parts of a round cost")
    add("--out", type=Path, metavar="DIR", help="where everything goes (default: runs/spec_bench/MODEL)")
    add("--force", action="store_true", help="remove the answers that --out holds, and begin anew")
    return parser


def listing() -> str:
    """Return the methods, what they can be told and what they need."""
    lines = []
    for method in METHODS.values():
        lines.append(f"{method.name:15} {method.about}")
        settings = ", ".join(
            f"{name}={'(chosen by the model)' if value is None else value}" for name, value in method.defaults.items()
        )
        notes = (("source", method.source), ("settings", settings), ("needs", method.needs))
        lines += [f"{'':15}   {label}: {text}" for label, text in notes if text]
    return "\n".join(lines)


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the model, and refuse what cannot be run before one is loaded.

    Raises:
        ValueError: if there are no questions for the model, or a number is out of range.
    """
    embedded = args.model in EMBEDDED
    if args.questions is None:
        if not embedded:
            raise ValueError(
                f"no questions for {args.model}; pass --questions FILE, such as Spec-Bench's question.jsonl"
            )
        args.questions = JOEY_QUESTIONS
    if args.prepare is None:
        args.prepare = embedded
    if args.max_new_tokens is None:
        args.max_new_tokens = EMBEDDED_TOKENS if embedded else TOKENS
    check_counts(args, "max_new_tokens", "repeats")
    if args.out is None:
        args.out = Path("runs", "spec_bench", Path(args.model).resolve().name)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status: 0, 1 if float32 ids differed, 2 on bad input, 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    if args.list:
        print(listing())
        return 0
    return exit_status(lambda: run(checked(args), ["bench.spec_bench", *words]), afterwards=GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
