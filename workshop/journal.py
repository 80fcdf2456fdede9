"""Files that grow line by line and survive a kill: what was begun is gone on with, by the same command alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kangaroo_jax.files import first_line

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
        lines, _ = whole_lines(content)
        if lines:
            found = _parsed(lines[0], path)["settings"]
            fix = "pass another --out, or delete that file to start anew"
            check_same(f"{path} holds a run", found, settings, settings, fix)
            self.records = [_parsed(line, path) for line in lines[1:]]
        drop_cut_line(path)
        if not lines:
            self.add({"settings": settings})

    def add(self, record: Any) -> None:
        """Write a record; when this returns, it is on the disk."""
        append_line(self.path, json.dumps(record))


def append_line(path: Path, line: str) -> None:
    """Write a line at the end of a file; when this returns, it is on the disk."""
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def whole_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """Return the lines of a file's content that are whole, and the one behind them that a kill has cut."""
    *lines, cut = content.split(b"\n")
    return lines, cut


def drop_cut_line(path: Path) -> None:
    """Remove a last line that a kill has cut, if the file is there and has one."""
    content = path.read_bytes() if path.exists() else b""
    if cut := whole_lines(content)[1]:
        os.truncate(path, len(content) - len(cut))


def check_same(
    holder: str, found: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str], fix: str
) -> None:
    """Raise ValueError if what is on the disk was made with other settings than those of now.

    Args:
        holder: begins the message: "FOLDER holds a run".
        found: settings on the disk.
        wanted: those of now.
        names: the settings that count.
        fix: ends the message.
    """
    for name in names:
        if found.get(name) != wanted.get(name):
            older = (
                " (runs of versions before 0.2.0, which laid weights out otherwise, too)" if "weights" in name else ""
            )
            raise ValueError(f"{holder} with {name} {found.get(name)!r}, not {wanted.get(name)!r}{older}; {fix}")


def _parsed(line: bytes, path: Path) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); delete it to start anew") from error
