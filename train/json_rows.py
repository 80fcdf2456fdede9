"""The rows of a JSON file, one after the other: of an array or of lines; of a file that breaks off, the whole ones."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

CHUNK = 1 << 20
_BEFORE = re.compile(r"[\ufeff\s]*[\[,]?\s*(\]?)")
# No word, number or escape is longer: what is found so near to the end of a piece may be another thing with the next.
_NEAR = 32
_END, _BROKEN = object(), object()
_DECODE = json.JSONDecoder().raw_decode


class BrokenOff(NamedTuple):
    """Where a file is no JSON any more: the first byte that is lost, and how many bytes the file has."""

    byte: int
    size: int


def json_rows(path: Path) -> Iterator[Any]:
    """Yield the elements of an array, the documents of lines, or the one document of a file.

    Arrays and lines are read piece by piece: they take the memory of a row.

    Yields:
        Rows as JSON has them, where bytes that are no Unicode are lone surrogates; None for a line that is no JSON,
        ``b""`` for a blank one; and last ``BrokenOff``, if there is something behind the last whole row.

    Raises:
        ValueError: if a .json file is neither an array nor lines nor one document.
    """
    with path.open("rb") as file:
        head = file.read(_NEAR)
        file.seek(0)
        encoding = json.detect_encoding(head)
        if head.decode(encoding, "ignore").lstrip().startswith("["):
            yield from _elements(file, encoding, path.stat().st_size)
        elif path.suffix == ".jsonl" or isinstance(_parsed(file.readline()), dict):
            file.seek(0)
            yield from _lines(file)
        else:
            yield json.loads(path.read_bytes())


def _lines(file: BinaryIO) -> Iterator[Any]:
    at = 0
    for line in file:
        row, start, at = _parsed(line), at, at + len(line)
        yield BrokenOff(start, at) if row is None and not line.endswith(b"\n") else row


def _parsed(line: bytes) -> Any:
    """Return what a line of JSON says, None if it is broken, and ``b""`` if it is blank."""
    try:
        return json.loads(line) if line.strip() else b""
    except (ValueError, RecursionError):
        return None


def _elements(file: BinaryIO, encoding: str, size: int) -> Iterator[Any]:
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    text, at, more = "", 0, True
    while True:
        row, end = _element(text, at)
        if more and end > len(text) - _NEAR:
            piece = file.read(max(CHUNK, len(text) - at))
            text, at, more = text[at:] + decoder.decode(piece, not piece), 0, bool(piece)
            continue
        if row is _END:
            text, at = text + decoder.decode(file.read(CHUNK)), end  # Nothing but blanks should follow.
        if row is _BROKEN or (row is _END and text[at:].strip()):
            lost = len(text[at:].encode(encoding.removesuffix("-sig"), "surrogateescape"))
            yield BrokenOff(file.tell() - lost, size)
        if row is _END or row is _BROKEN:
            return
        yield row
        at = end


def _element(text: str, at: int) -> tuple[Any, int]:
    """Return the next element of an array, or that it ends or is broken there, and the place where that is known."""
    before = _BEFORE.match(text, at)
    assert before is not None
    if before[1]:
        return _END, before.end()
    try:
        return _DECODE(text, before.end())
    except json.JSONDecodeError as error:
        return _BROKEN, len(text) if error.msg.startswith("Unterminated string") else error.pos
    except (ValueError, RecursionError):  # More digits, or more brackets in brackets, than Python takes.
        return _BROKEN, before.end()
