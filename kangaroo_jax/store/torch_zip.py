"""Where the parts of a torch zip archive are: the directory of the archive, read strictly, and nothing unpacked.

torch writes its archives in one way, and that way is all that is read: stored entries below one top-level folder, no
encryption, no comment, no gaps in the logic. An archive that two programs could understand differently is refused.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import BinaryIO

_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_LEGACY = (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", b"ustar")
_UNSET, _UNSET16 = 0xFFFFFFFF, 0xFFFF
MAX_DIRECTORY = 1 << 20  # Bytes; a 33B model has a few hundred entries of about 70 bytes.


class Refused(ValueError):
    """Why a file is not read; the caller puts the file's name before it."""


@dataclasses.dataclass(frozen=True, order=True)
class Entry:
    """One stored file of an archive.

    Attributes:
        name: below the archive's top-level folder.
        start: offset of its first byte in the archive.
        size: bytes.
    """

    name: str
    start: int
    size: int


def shown(text: str) -> str:
    """Return a name from a file as it may appear in a message: quoted, in ASCII, on one line, not long."""
    return ascii(text if len(text) <= 100 else text[:97] + "...")


def read_directory(file: Path) -> dict[str, Entry]:
    """Return the entries of a torch zip archive by their name below its top-level folder.

    Raises:
        Refused: if it is another kind of file, damaged, compressed, encrypted, or ambiguous: names that are absolute,
            climb or occur twice, several top-level folders, entries that overlap.
    """
    with file.open("rb") as archive:
        size = archive.seek(0, 2)
        _check_kind(_read(archive, 0, min(size, 262)))
        start, length, count = _find_directory(archive, size)
        if length > MAX_DIRECTORY:
            raise Refused(f"has a directory of {length} bytes; at most {MAX_DIRECTORY} are read")
        found = _parse_directory(_read(archive, start, length), count)
        entries = [_locate(archive, start, *item) for item in found]
    spans = sorted((header, entry) for (_, header, _), entry in zip(found, entries, strict=True))
    for (_, entry), following in zip(spans, [*(header for header, _ in spans[1:]), start], strict=True):
        if entry.start + entry.size > following:
            raise Refused(f"has an entry {shown(entry.name)} of {entry.size} bytes that runs into the next one")
    return _strip_folder(entries)


def _check_kind(head: bytes) -> None:
    if head.startswith(_LEGACY[0]) or head[257:262] == _LEGACY[1]:
        raise Refused("is in torch's legacy format, not zip; torch.load and torch.save it again, or use safetensors")
    if not head.startswith(_LOCAL):
        raise Refused("is not a file of torch.save; download it again, or use safetensors")


def _read(archive: BinaryIO, start: int, length: int) -> bytes:
    """Return exactly these bytes."""
    archive.seek(start)
    data = archive.read(length)
    if len(data) != length:
        raise Refused("ends too early; download it again")
    return data


def _find_directory(archive: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return the directory's offset, length and number of entries, on which zip and zip64 records must agree."""
    end = size - 22
    if end < 0 or not (record := _read(archive, end, 22)).startswith(_END):
        raise Refused("is a zip archive without its end, or with more behind it; download it again")
    disk, other, here, count, length, start, comment = struct.unpack("<4H2IH", record[4:])
    if disk or other or here != count or comment:
        raise Refused("is a zip archive of several parts or with a comment, which torch.save does not write")
    limit = end
    if end >= 20 and (locator := _read(archive, end - 20, 20)).startswith(_LOCATOR64):
        disk, limit, disks = struct.unpack("<IQI", locator[4:])
        if disk or disks > 1 or limit != end - 20 - 56 or not (wide := _read(archive, limit, 56)).startswith(_END64):
            raise Refused("has a damaged zip64 record; download it again")
        body, _, _, disk, other, here, count64, length64, start64 = struct.unpack("<Q2H2I4Q", wide[4:])
        pairs = ((count, count64, _UNSET16), (length, length64, _UNSET), (start, start64, _UNSET))
        if body != 44 or disk or other or here != count64 or any(a not in (b, unset) for a, b, unset in pairs):
            raise Refused("has zip and zip64 records that differ; download it again")
        count, length, start = count64, length64, start64
    if start + length != limit:
        raise Refused("has a directory that is not where its end says; download it again")
    return start, length, count


def _parse_directory(data: bytes, count: int) -> list[tuple[bytes, int, int]]:
    """Return name, header offset and size of every entry."""
    found, at = [], 0
    while at < len(data):
        if data[at : at + 4] != _CENTRAL or at + 46 > len(data):
            raise Refused("has a damaged directory; download it again")
        flags, method = struct.unpack_from("<2H", data, at + 8)
        packed, size, n_name, n_extra, n_comment, disk = struct.unpack_from("<2I4H", data, at + 20)
        (header,) = struct.unpack_from("<I", data, at + 42)
        name, extra = data[at + 46 : at + 46 + n_name], data[at + 46 + n_name : at + 46 + n_name + n_extra]
        at += 46 + n_name + n_extra + n_comment
        size, packed, header = _widen(extra, (size, packed, header))
        if flags & 0x2041:
            raise Refused("has an encrypted entry; torch.save writes none")
        if method or packed != size:
            raise Refused("has a compressed entry; torch.save writes none, so save it again with torch")
        if disk:
            raise Refused("is a zip archive of several parts, which torch.save does not write")
        found.append((name, header, size))
    if at != len(data) or len(found) != count:
        raise Refused("has a damaged directory; download it again")
    return found


def _widen(extra: bytes, values: tuple[int, ...]) -> tuple[int, ...]:
    """Return size, packed size and header offset with those that did not fit taken from the zip64 extra field."""
    wide, at = b"", 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide += extra[at + 4 : at + 4 + length]
        at += 4 + length
    unset = values.count(_UNSET)
    if len(wide) != 8 * unset:
        raise Refused("has an entry whose zip64 sizes are missing, or too many; download it again")
    parts = iter(struct.unpack(f"<{unset}Q", wide))
    return tuple(next(parts) if value == _UNSET else value for value in values)


def _locate(archive: BinaryIO, end: int, name: bytes, header: int, size: int) -> Entry:
    """Return the entry whose local header is at ``header``, which must say what the directory says."""
    if header + 30 + len(name) + size > end:
        raise Refused(f"ends before its entry {shown(name.decode(errors='replace'))} of {size} bytes does")
    local = _read(archive, header, 30 + len(name))
    flags, method = struct.unpack_from("<2H", local, 6)
    n_name, n_extra = struct.unpack_from("<2H", local, 26)
    if not local.startswith(_LOCAL) or n_name != len(name) or local[30:] != name or flags & 0x2041 or method:
        raise Refused("has an entry that differs from the archive's directory; download it again")
    try:
        return Entry(name.decode(), header + 30 + n_name + n_extra, size)
    except UnicodeDecodeError:
        raise Refused("has an entry whose name is not text; download it again") from None


def _strip_folder(entries: list[Entry]) -> dict[str, Entry]:
    """Return the entries by their name below the one top-level folder."""
    found: dict[str, Entry] = {}
    folders = set()
    for entry in entries:
        parts = entry.name.split("/")
        if len(parts) < 2 or {"", ".", ".."} & {*parts} or any(c in entry.name for c in "\\:\0"):
            raise Refused(f"has an entry with the name {shown(entry.name)}, which torch.save does not write")
        folders.add(parts[0])
        name = "/".join(parts[1:])
        if name in found and len(folders) == 1:
            raise Refused(f"has two entries with the name {shown(entry.name)}; download it again")
        found[name] = entry
    if len(folders) > 1:
        raise Refused(f"has several top-level folders, {', '.join(shown(name) for name in sorted(folders)[:3])}")
    return found
