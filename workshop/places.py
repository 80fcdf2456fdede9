"""Where a command writes: tried before minutes have gone into it, and written by one process at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kangaroo_jax.files import locked, unwritable, whole_file


def check_file(option: str, path: Path | None) -> None:
    """Raise ValueError if a file cannot be written; nothing is left behind, and what is there is not touched.

    Args:
        option: what names the file, as it is typed.
        path: the file; None is none to write.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} is {path}, and that is a directory: name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"{option} is {path}, and there is no directory {path.parent}: make it first")
    if reason := unwritable(path.parent):
        raise ValueError(f"{option} is {path}, and {path.parent} cannot be written ({reason}): choose another")


def write_figures(path: Path | None, figures: Any) -> None:
    """Write figures as JSON, whole or not at all, where ``check_file`` has found that it can be done."""
    if path is not None:
        with whole_file(path) as staged:
            staged.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def check_folder(folder: Path) -> None:
    """Raise ValueError if a folder cannot be written, or not be made where the nearest one above it is."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{place} is a file; pass another --out")
    if unwritable(place):
        raise ValueError(f"{place} is not writable; pass another --out")


@contextlib.contextmanager
def claimed(path: Path, doing: str, *, file: bool = False) -> Iterator[None]:
    """Keep other processes from a folder, or a file, while the block runs.

    Args:
        path: the folder; it is made. Of a file, the folder that it is in.
        doing: what another process would be doing there: "trains in".
        file: whether it is a file; the lock lies beside it, and is removed in the end.

    Raises:
        ValueError: if another process has it.
    """
    lock = path.with_name(f"{path.name}.lock") if file else path / ".lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"another process {doing} {path}; wait for it, or pass another --out"):
        try:
            yield
        finally:
            if file:
                lock.unlink(missing_ok=True)
