"""A checkpoint of the Llama family, converted leaf by leaf: memory for a few tensors, and no work lost to a kill."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convert.check import Report
from convert.outline import outline
from convert.sources import TEXT_FILES
from kangaroo_jax.files import check_vacant, partial_of, resumable_directory, write_json
from kangaroo_jax.gguf import is_gguf
from kangaroo_jax.progress import progress
from kangaroo_jax.store import (
    FORMAT,
    Leaf,
    ParamsWriter,
    checkpoint_tensors,
    config_to_hf,
    open_hf,
    read_config,
    weight_files,
)
from kangaroo_jax.text import gguf_tokenizer_files

_PARTS = "parts"


def convert(
    source: Path,
    out: Path,
    dtype: str | None = None,
    *,
    force: bool = False,
    verify: Callable[[Path, Path], Report] | None = None,
) -> dict[str, Any]:
    """Convert a local checkpoint, some tensors at a time; interrupted or killed, the next call goes on.

    Args:
        source: directory in Hugging Face's layout, or a GGUF file.
        out: the directory to make.
        dtype: of the params; None keeps the source's, which of quantised weights is float32.
        force: whether a converted directory at ``out`` is replaced.
        verify: takes the directory that will be ``out`` and the source; after a bad report nothing is written.

    Returns:
        What was written: ``tensors``, ``parameters``, ``bytes``, ``dtype``, ``destination``.

    Raises:
        ValueError: if the source is unusable, ``out`` is in the way, or the check fails; nothing is written then.
        OSError: if writing fails.
    """
    _check_destination(source, out, force)
    config, leaves = open_hf(source, dtype)
    texts = gguf_tokenizer_files(source) if is_gguf(source) else {}
    _check_room(leaves, out)
    with resumable_directory(out, _work(source, leaves), replace=force) as staged:
        if not (staged / "params").is_dir():
            _write_params(leaves, staged, source.name)
        shutil.rmtree(staged / _PARTS, ignore_errors=True)  # Killed while it removed them, a conversion comes here.
        write_json(staged / "config.json", config_to_hf(config))
        for file in (file for pattern in TEXT_FILES for file in source.glob(pattern)):
            (staged / file.relative_to(source)).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, staged / file.relative_to(source))
        for name, text in texts.items():
            (staged / name).write_text(text, encoding="utf-8")
        if (source / "adapter").is_dir():
            shutil.copytree(source / "adapter", staged / "adapter", dirs_exist_ok=True)
        if verify is not None:
            report = verify(staged, source)
            print(report, file=sys.stderr)
            if not report.passed:
                raise ValueError(f"the check of {source} failed, so nothing was written; please report the line above")
    return {
        "tensors": sum(len(leaf.parts) for leaf in leaves),
        "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
        "bytes": sum(leaf.nbytes for leaf in leaves),
        "dtype": leaves[0].dtype.name,
        "destination": out,
    }


def dry_run(source: Path, dtype: str | None = None) -> str:
    """Return what converting a local checkpoint would do; nothing is written.

    Raises:
        ValueError: where ``convert`` would, but for what only reading the elements can show.
    """
    tensors = checkpoint_tensors(source)
    return outline(read_config(source), tensors, dtype)


def _check_destination(source: Path, out: Path, force: bool) -> None:
    """Refuse sources that are converted already, and destinations that would cost the user something else."""
    if (source / "params").is_dir():
        raise ValueError(f"{source} is converted already; give the directory it was converted from")
    check_vacant(out, force)
    if source.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{out} holds the source {source}; choose another --out")
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{out} is inside the source {source}; choose another --out")
    if out.exists() and not (out.is_dir() and ((out / "params").is_dir() or not any(out.iterdir()))):
        raise ValueError(f"{out} is not a converted directory, so --force does not replace it; choose another --out")


def _check_room(leaves: list[Leaf], out: Path) -> None:
    """Refuse to begin what the disk cannot hold."""
    parent = next(path for path in out.absolute().parents if path.is_dir())
    staged = partial_of(out)
    there = sum(file.stat().st_size for file in staged.rglob("*") if file.is_file()) if staged.is_dir() else 0
    needed, free = sum(leaf.nbytes for leaf in leaves), shutil.disk_usage(parent).free + there
    if needed > free:
        there_is, it_takes = (tqdm.format_sizeof(number, "B") for number in (free, needed))
        raise ValueError(
            f"{parent} has {there_is} free and the converted model takes {it_takes}; "
            "make room, choose another --out, or a narrower --dtype"
        )


def _work(source: Path, leaves: list[Leaf]) -> dict[str, Any]:
    """Return what makes two conversions the same, so that one may go on where the other stopped."""
    files = {file: file.stat() for file in weight_files(source)}
    return {
        "format": FORMAT,
        "source": str(source.resolve()),
        "files": {file.name: [found.st_size, found.st_mtime_ns] for file, found in files.items()},
        "leaves": {leaf.path: [list(leaf.shape), leaf.dtype.name] for leaf in leaves},
    }


def _write_params(leaves: list[Leaf], staged: Path, name: str) -> None:
    writer = ParamsWriter(staged / _PARTS)
    done = sum(leaf.nbytes for leaf in leaves if leaf.path in writer.saved)
    total = sum(leaf.nbytes for leaf in leaves)
    with progress(total=total, initial=done, desc=f"converting {name}", unit="B", unit_scale=True) as bar:
        for leaf in leaves:
            if leaf.path not in writer.saved:
                writer.add(leaf.path, leaf.read())
                bar.update(leaf.nbytes)
        writer.finish(staged / "params")
