"""Convert a checkpoint of the Llama family to the Orbax checkpoint that kangaroo_jax.load reads fastest.

    python -m convert.hf_to_flax SOURCE [--out DIR] [--dtype bfloat16] [--revision main] [--dry-run] [--check]

SOURCE is a Hugging Face directory, a hub id or a GGUF file. The result is a directory with ``params/`` (Orbax),
``config.json``, the tokenizer's files and, when the source has one, its ``adapter/``. It appears under its name only
when it is complete; until then it grows in a hidden folder beside it, where the same command goes on after Ctrl-C, a
kill or a full disk. Memory is needed for a few tensors only.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from convert.check import check, check_reference
from convert.conversion import convert, dry_run
from convert.sources import locate
from kangaroo_jax.files import check_vacant
from kangaroo_jax.gguf import whole_name
from kangaroo_jax.progress import progress
from kangaroo_jax.store import ALIASES, DTYPES, EMBEDDED, converted, expand, find_adapter
from workshop.command import exit_status

_TRANSFORMERS = Path("-")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.hf_to_flax",
        description="Convert a checkpoint to the format kangaroo_jax.load reads fastest.",
    )
    known = ", ".join((*EMBEDDED, *(f"{alias} = {hub_id}" for alias, hub_id in ALIASES.items())))
    add = parser.add_argument
    add("source", metavar="SOURCE", help=f"a directory, a GGUF file, a hub id (OWNER/NAME), or one of: {known}")
    add("--out", type=Path, help="directory to write (default: SOURCE's name in $KANGAROO_HOME, ~/.cache/kangaroo_jax)")
    add(
        "--dtype",
        choices=tuple(DTYPES),
        help="dtype of the result (default: the source's; of quantised weights float32, which holds their values)",
    )
    add("--revision", help="branch, tag or commit of a hub id (default: its main branch)")
    add("--dry-run", action="store_true", help="print mapping and sizes, after all checks; write nothing")
    add(
        "--check",
        nargs="?",
        type=Path,
        const=_TRANSFORMERS,
        metavar="FILE",
        help="compare the result's logits with transformers' (needs torch), or with tokens and logits in FILE "
        "(.npz, .safetensors)",
    )
    add("--force", action="store_true", help="replace a converted directory that is already there")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert, print what was written, and return the exit status: 0, 2 for bad input, 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    out = (_destination(args.source) if args.out is None else expand(args.out)).absolute()
    then = "the same command goes on where it stopped"
    return exit_status(partial(_run, args, out), name="hf_to_flax", afterwards=then, out=out)


def _run(args: argparse.Namespace, out: Path) -> None:
    if args.dry_run:
        if args.check is not None:
            raise ValueError("--dry-run makes nothing that --check could check; pass one of them")
        print(dry_run(locate(args.source, args.revision), args.dtype))
        return
    check_vacant(out, args.force)  # Before a download of gigabytes, not after it.
    source = locate(args.source, args.revision)
    verify = None
    if args.check is not None:
        reference = None if args.check == _TRANSFORMERS else expand(args.check)
        check_reference(source, reference)
        verify = partial(check, reference=reference, progress=partial(progress, desc="checking", unit="layer"))
    print(_table(convert(source, out, args.dtype, force=args.force, verify=verify)))
    by_name = args.out is None and args.source not in EMBEDDED
    model = out.name if by_name else shlex.quote(str(out))
    # Without an adapter there is nothing to draft with yet.
    method = "" if find_adapter(out, None) else " --method plain"
    print(f'\nNext: python -m kangaroo_jax --model {model}{method} "Once upon a time"')


def _destination(source: str) -> Path:
    """Return the default destination; a directory's real name counts, so that ``.`` has one."""
    path = expand(source)
    if source in EMBEDDED or not os.path.exists(path):  # Path's own method raises for odd names.
        return converted(source)
    return converted(path.resolve().name if os.path.isdir(path) else whole_name(path))


def _table(written: dict[str, Any]) -> str:
    rows = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in written.items()}
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())


if __name__ == "__main__":
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # All is done or undone: Ctrl-C would only break JAX's exit handlers.
    sys.exit(status)
