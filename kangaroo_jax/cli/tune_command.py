"""Find the gamma and eta that are fastest on this machine, and of several adapters the one; store the choice.

python -m kangaroo_jax tune                                   joey, on the built-in prompts
python -m kangaroo_jax tune --model vicuna-7b --save          and store the choice with the adapter
python -m kangaroo_jax tune --prompts mine.jsonl --json       JSON lines with a 'prompt' each; all settings as JSON
python -m kangaroo_jax tune --adapter l2 --adapter l3         which of these adapters, of any exit layers?
python -m kangaroo_jax tune --save tuned-adapter              leave the adapter alone, write a copy with the choice

One run for each prompt tells the rounds of every setting, and what a round takes is measured: that gives "predicted",
the speedup over plain decoding. The settings that look best are run for real: "measured". The fastest of these is
chosen. Where it is no faster than plain decoding, the choice is plain decoding: stored, it makes that the default.

With --save, load() and every command use the choice from then on. Ctrl-C stores nothing. Run this on a quiet machine,
with prompts like those to come.

Exit status: 0 whatever is chosen, 2 on bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import kangaroo_jax
from kangaroo_jax.cli import common_options as options
from kangaroo_jax.progress import progress
from kangaroo_jax.store import check_writable, find_adapter, resolve
from kangaroo_jax.tuning import steps

IN_PLACE = Path()


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = options.new_parser("tune", __doc__)
    add = parser.add_argument
    options.add_model(parser, adapters=True)
    options.add_prompts(parser)
    add("--max-new-tokens", type=int, metavar="N", default=128, help="token budget (default: %(default)s)")
    add("--max-gamma", type=int, metavar="N", default=15, help="largest gamma to look at (default: %(default)s)")
    add("--candidates", type=int, metavar="N", default=3, help="settings to run for real (default: %(default)s)")
    add(
        "--repeats",
        type=int,
        metavar="N",
        default=3,
        help="measured runs of each (default: %(default)s)",
    )
    add(
        "--save",
        type=Path,
        nargs="?",
        const=IN_PLACE,
        metavar="DIR",
        help="store the choice with the adapter, or in a copy of it that is written to DIR",
    )
    add("--json", action="store_true", help="print one JSON object with all settings instead of a table")
    return parser


def run(args: argparse.Namespace) -> int:
    """Tune, print, and store if asked to; returns the exit status 0.

    Raises:
        ValueError: on bad input.
    """
    options.read(args)
    adapters = _adapters(args)
    _check_save(args.save, adapters)  # Before minutes are spent.
    params = options.load(args)
    prompts = [row["prompt"] for row in options.prompts(params, args)]
    total = steps(len(prompts), max(len(adapters), 1), args.repeats)
    with progress(total=total, desc="tuning", unit="step", disable=args.json) as bar:
        tuning = kangaroo_jax.tune(
            params,
            prompts,
            adapters=adapters,
            exit_layer=args.exit_layer,
            max_new_tokens=args.max_new_tokens,
            max_gamma=args.max_gamma,
            candidates=args.candidates,
            repeats=args.repeats,
            tick=bar.update,
        )
    saved = None
    if args.save is not None:
        saved = tuning.save(out=None if args.save == IN_PLACE else args.save)
    print(json.dumps(tuning.as_dict() | {"saved": saved and str(saved)}) if args.json else tuning)
    if not args.json:
        _explain(args, tuning, saved)
    return 0


def _adapters(args: argparse.Namespace) -> list[Path]:
    """Return the directories of the adapters that are meant; none where the model has no adapter."""
    directory = resolve(args.model)
    found = [find_adapter(directory, adapter) for adapter in args.adapter or [None]]
    return [path for path in found if path is not None]


def _check_save(save: Path | None, adapters: list[Path]) -> None:
    """Refuse to store where that cannot be done.

    Raises:
        ValueError: if an adapter cannot be written to, or the copy's directory exists.
    """
    if save == IN_PLACE:
        for adapter in adapters:
            try:
                check_writable(adapter)
            except ValueError as error:
                raise ValueError(f"{error}, as --save DIR") from None
    elif save is not None and save.exists():
        raise ValueError(f"{save} exists; choose another directory for --save")


def _explain(args: argparse.Namespace, tuning: kangaroo_jax.Tuning, saved: Path | None) -> None:
    """Say on standard error what was stored, or how to."""
    if saved is None:
        print("nothing is stored; --save stores the choice with the adapter", file=sys.stderr)
    elif args.save == IN_PLACE:
        print(f"stored in {saved}; it is the default from now on", file=sys.stderr)
    else:
        print(f"stored in {saved}; use it with --adapter {saved}", file=sys.stderr)
