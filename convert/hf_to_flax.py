"""Convert a Hugging Face checkpoint of the Llama family to the Orbax checkpoint that kangaroo_jax.load reads fastest.

    python -m convert.hf_to_flax SOURCE [--out DIR] [--dtype bfloat16] [--revision main]

The result is a directory with ``params/`` (Orbax), ``config.json``, the tokenizer's files and, when the source has one,
its ``adapter/``. It appears under its name only when it is complete; until then it grows in a hidden folder beside it,
where the same command goes on after Ctrl-C, a kill or a full disk. Memory is needed for a few tensors only.
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convert.sources import TEXT_FILES, locate
from kangaroo_jax.store import DTYPES, find_adapter, open_hf
from kangaroo_jax.store.checkpoint import ParamsWriter
from kangaroo_jax.store.files import check_vacant, partial_of, resumable_directory, write_json
from kangaroo_jax.store.hf import weight_files
from kangaroo_jax.store.mapping import Leaf
from kangaroo_jax.store.names import ALIASES, EMBEDDED, converted, expand


def convert(source: Path, out: Path, dtype: str | None = None, *, force: bool = False) -> dict[str, Any]:
    """Convert a local checkpoint, some tensors at a time; interrupted or killed, the next call goes on.

    Args:
        source: directory in Hugging Face's layout.
        out: the directory to make.
        dtype: of the params; None keeps the source's.
        force: whether a converted directory at ``out`` is replaced.

    Returns:
        What was written: ``tensors``, ``parameters``, ``bytes``, ``dtype``, ``destination``.

    Raises:
        ValueError: if the source is unusable, or ``out`` is in the way; nothing is written then.
        OSError: if writing fails.
    """
    _check_destination(source, out, force)
    config, leaves = open_hf(source, dtype)
    _check_room(leaves, out)
    with resumable_directory(out, _work(source, leaves), replace=force) as staged:
        if not (staged / "params").is_dir():
            _write_params(leaves, staged, source.name)
        write_json(staged / "config.json", config.to_hf())
        for name in TEXT_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, staged / name)
        if (source / "adapter").is_dir():
            shutil.copytree(source / "adapter", staged / "adapter", dirs_exist_ok=True)
    return {
        "tensors": sum(len(leaf.parts) for leaf in leaves),
        "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
        "bytes": sum(leaf.nbytes for leaf in leaves),
        "dtype": leaves[0].dtype.name,
        "destination": out,
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.hf_to_flax",
        description="Convert a Hugging Face checkpoint to the format kangaroo_jax.load reads fastest.",
    )
    known = ", ".join((*EMBEDDED, *(f"{alias} = {hub_id}" for alias, hub_id in ALIASES.items())))
    add = parser.add_argument
    add("source", metavar="SOURCE", help=f"a local directory, a hub id (OWNER/NAME), or one of: {known}")
    add("--out", type=Path, help="directory to write (default: SOURCE's name in $KANGAROO_HOME, ~/.cache/kangaroo_jax)")
    add("--dtype", choices=tuple(DTYPES), help="dtype of the result (default: the source's)")
    add("--revision", help="branch, tag or commit of a hub id (default: its main branch)")
    add("--force", action="store_true", help="replace a converted directory that is already there")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert, print what was written, and return the exit status: 0, 2 for bad input, 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    out = _destination(args.source) if args.out is None else expand(args.out)
    try:
        check_vacant(out, args.force)  # Before a download of gigabytes, not after it.
        written = convert(locate(args.source, args.revision), out, args.dtype, force=args.force)
    except ValueError as error:
        print(f"hf_to_flax: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"hf_to_flax: {error}; is {out} a place that can be written, with room for the model? "
            "The same command goes on where it stopped",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"\nhf_to_flax: interrupted; the same command goes on from there ({partial_of(out)})", file=sys.stderr)
        return 130
    print(_table(written))
    by_name = args.out is None and args.source not in EMBEDDED
    model = out.name if by_name else shlex.quote(str(out))
    # Without an adapter there is nothing to draft with yet.
    method = "" if find_adapter(out, None) else " --method plain"
    print(f'\nNext: python -m kangaroo_jax --model {model}{method} "Once upon a time"')
    return 0


def _destination(source: str) -> Path:
    """Return the default destination; a directory's real name counts, so that ``.`` has one."""
    path = expand(source)
    return converted(path.resolve().name if path.is_dir() and source not in EMBEDDED else source)


def _check_destination(source: Path, out: Path, force: bool) -> None:
    """Refuse sources that are converted already, and destinations that would cost the user something else."""
    if (source / "params").is_dir():
        raise ValueError(f"{source} is converted already; give the directory it was converted from")
    check_vacant(out, force)
    if source.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{out} holds the source {source}; choose another --out")
    if out.exists() and not (out.is_dir() and ((out / "params").is_dir() or not any(out.iterdir()))):
        raise ValueError(f"{out} is not a converted directory, so --force does not replace it; choose another --out")


def _check_room(leaves: list[Leaf], out: Path) -> None:
    """Refuse to begin what the disk cannot hold."""
    parent = next(path for path in out.absolute().parents if path.is_dir())
    staged = partial_of(out)
    there = sum(file.stat().st_size for file in staged.rglob("*") if file.is_file()) if staged.is_dir() else 0
    needed, free = sum(leaf.nbytes for leaf in leaves), shutil.disk_usage(parent).free + there
    if needed > free:
        raise ValueError(
            f"{parent} has {free / 10**9:.1f} GB free and the converted model takes {needed / 10**9:.1f} GB; "
            "make room, choose another --out, or a narrower --dtype"
        )


def _work(source: Path, leaves: list[Leaf]) -> dict[str, Any]:
    """Return what makes two conversions the same, so that one may go on where the other stopped."""
    files = {file: file.stat() for file in weight_files(source)}
    return {
        "source": str(source.resolve()),
        "files": {file.name: [found.st_size, found.st_mtime_ns] for file, found in files.items()},
        "leaves": {leaf.path: [list(leaf.shape), leaf.dtype.name] for leaf in leaves},
    }


def _write_params(leaves: list[Leaf], staged: Path, name: str) -> None:
    writer = ParamsWriter(staged / "parts")
    done = sum(leaf.nbytes for leaf in leaves if leaf.path in writer.saved)
    total = sum(leaf.nbytes for leaf in leaves)
    with tqdm(total=total, initial=done, desc=f"converting {name}", unit="B", unit_scale=True) as bar:
        for leaf in leaves:
            if leaf.path not in writer.saved:
                writer.add(leaf.path, leaf.read())
                bar.update(leaf.nbytes)
        writer.finish(staged / "params")


def _table(written: dict[str, Any]) -> str:
    rows = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in written.items()}
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())


if __name__ == "__main__":
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # All is done or undone: Ctrl-C would only break JAX's exit handlers.
    sys.exit(status)
