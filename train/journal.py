"""A file that grows line by line and survives a kill: what was begun is gone on with, by the same command alone."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kangaroo_jax.files import first_line, locked

_START = b'{"settings": {'


class Journal:
    """JSON lines: the settings of the work, then one record for each part of it that is done.

    Attributes:
        path: the file.
        records: what was found in it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin a file, or go on with one; a last line that a kill has cut is dropped.

        Args:
            path: the file; its folder is there.
            settings: what decides the work, as JSON can hold it.

        Raises:
            ValueError: if the file is of work with other settings, or no journal at all.
        """
        self.path = path
        self.records: list[Any] = []
        content = path.read_bytes() if path.exists() else b""
        if content[: len(_START)] != _START[: len(content)]:
            raise ValueError(f"{path} is in the way, where the rows are collected; remove it")
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].split(b"\n")[:-1]
        if lines:
            self._check(_parsed(lines[0], path)["settings"], settings)
            self.records = [_parsed(line, path) for line in lines[1:]]
        if len(content) > whole:
            os.truncate(path, whole)
        if not lines:
            self.add({"settings": settings})

    def add(self, record: Any) -> None:
        """Write a record; when this returns, it is on the disk."""
        with self.path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _check(self, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{self.path} holds a run with {name} {found.get(name)!r}, not {value!r}; "
                    "pass another --out, or delete that file to start anew"
                )


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from a file that this one writes, while the block runs.

    Raises:
        ValueError: if another process is at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Path(f"{path}.lock")
    with locked(file, f"another process is writing {path}; wait for it, or pass another --out"):
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _parsed(line: bytes, path: Path) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); delete it to start anew") from error
