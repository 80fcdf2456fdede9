"""torch's zip files of weights (``pytorch_model.bin``), read and written without torch.

A file is an archive with a pickle, ``data.pkl``, that describes the tensors, and one stored entry for the bytes of each
storage. ``torch_zip`` finds the entries, ``torch_pickle`` reads the description; neither runs anything of the file.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from kangaroo_jax.files import first_line, whole_file
from kangaroo_jax.store.torch_pickle import STORAGE_NAMES, Layout, read_pickle
from kangaroo_jax.store.torch_zip import Entry, Refused, read_directory, shown

MAX_PICKLE = 2 << 20  # Bytes, at about 170 for a tensor.
_ALIGNMENT = 64


class TorchFile:
    """The tensors of a file that ``torch.save(state_dict, file)`` wrote.

    Attributes:
        file: the file.
        layouts: name -> type, shape and place of every tensor.
    """

    def __init__(self, file: Path) -> None:
        """Read what the file says about its tensors, and none of their elements.

        Raises:
            ValueError: if it is not such a file, is damaged, or describes anything but named tensors.
        """
        self.file = Path(file)
        try:
            self._entries = read_directory(self.file)
            self.layouts = _describe(self.file, self._entries)
        except Refused as error:
            raise ValueError(f"{self.file} {error}") from None
        except OSError as error:
            raise ValueError(f"{self.file} cannot be read ({first_line(error)})") from error

    def get_tensor(self, name: str) -> np.ndarray:
        """Return a tensor as a read-only view of the mapped file; the last array to go unmaps it.

        Raises:
            ValueError: if the file has become shorter since it was opened.
        """
        layout = self.layouts[name]
        if not np.prod(layout.shape, dtype=object):
            return np.empty(layout.shape, layout.dtype)
        entry, width = self._entries[f"data/{layout.storage}"], layout.dtype.itemsize
        try:
            storage = np.memmap(self.file, np.uint8, mode="r", offset=entry.start, shape=(entry.size,))
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.file} changed while it was read; download it again") from error
        # NumPy checks once more that shape and strides stay within the buffer.
        strides = tuple(stride * width for stride in layout.strides)
        return np.ndarray(layout.shape, layout.dtype, storage, layout.offset * width, strides)


class Writable(Protocol):
    """What ``write_torch`` needs of a tensor; ``np.asarray`` may be what makes its elements, one tensor at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""

    @property
    def dtype(self) -> np.dtype:
        """Element type."""

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray:
        """Return the elements."""


def write_torch(file: Path, tensors: Mapping[str, Writable]) -> None:
    """Write named tensors as ``torch.save`` would, readable by ``torch.load(file, weights_only=True)``.

    The file appears whole or not at all. So one may be replaced by what was read from it, whose pages stay mapped.

    Args:
        file: replaced when it exists.
        tensors: of any dtype that torch has a storage for.

    Raises:
        ValueError: if a dtype is another one.
    """
    if other := [name for name, values in tensors.items() if values.dtype not in STORAGE_NAMES]:
        raise ValueError(f"{other[0]} is {tensors[other[0]].dtype}; torch has no storage for it, cast it first")
    with whole_file(file) as staged, zipfile.ZipFile(staged, "w") as archive:
        _write_entry(archive, "data.pkl", _pickle(tensors))
        _write_entry(archive, "byteorder", b"little")
        for number, values in enumerate(tensors.values()):
            _write_entry(archive, f"data/{number}", np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        _write_entry(archive, "version", b"3\n")


def _describe(file: Path, entries: Mapping[str, Entry]) -> dict[str, Layout]:
    """Return the tensors of the dict in ``data.pkl``."""
    if "data.pkl" not in entries:
        raise Refused("has no data.pkl, so torch.save did not write it; give another file")
    if (size := entries["data.pkl"].size) > MAX_PICKLE:
        raise Refused(f"has a data.pkl of {size} bytes; at most {MAX_PICKLE} are read")
    with file.open("rb") as archive:
        if "byteorder" in entries and (order := _bytes(archive, entries["byteorder"], 16)) != b"little":
            raise Refused(f"has the byte order {shown(order.decode(errors='replace'))}; only 'little' is read")
        data = _bytes(archive, entries["data.pkl"], MAX_PICKLE)
    folder = "data/"
    sizes = {name.removeprefix(folder): entry.size for name, entry in entries.items() if name.startswith(folder)}
    found = read_pickle(data, sizes)
    if not isinstance(found, dict):
        raise Refused(f"holds a {type(found).__name__}, not a state dict; save model.state_dict()")
    for name, value in found.items():
        if not isinstance(value, Layout):
            kind = type(value).__name__.strip("_")
            raise Refused(f"is refused: {shown(name)} is a value of type {kind}; only named tensors are read")
    return dict(found)


def _bytes(archive: BinaryIO, entry: Entry, limit: int) -> bytes:
    archive.seek(entry.start)
    return archive.read(min(entry.size, limit))


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Write a stored entry whose bytes begin at a multiple of 64, as torch's do, so that mapped they are aligned."""
    entry = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
    size = memoryview(data).nbytes
    wide = size >= zipfile.ZIP64_LIMIT
    assert archive.fp is not None
    # Header, name, the four bytes that begin the padding, and the zip64 sizes that zipfile puts before it.
    start = archive.fp.tell() + 30 + len(entry.filename) + 4 + 20 * wide
    padding = -start % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    entry.file_size = size
    with archive.open(entry, "w", force_zip64=wide) as target:
        target.write(data)


def _pickle(tensors: Mapping[str, Writable]) -> bytes:
    """Return the pickle (protocol 2) of a dict of tensors, each with a storage of its own."""

    def text(value: str) -> bytes:
        encoded = value.encode()
        return b"X" + struct.pack("<I", len(encoded)) + encoded

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    parts = [b"\x80\x02}("]
    for index, (name, values) in enumerate(tensors.items()):
        strides = tuple(int(np.prod(values.shape[axis + 1 :], dtype=object)) for axis in range(len(values.shape)))
        storage = f"c{STORAGE_NAMES[values.dtype].replace(' ', chr(10))}\n".encode()
        parts += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n("]
        parts += [b"(", text("storage"), storage, text(str(index)), text("cpu"), number(math.prod(values.shape)), b"tQ"]
        parts += [number(0), numbers(values.shape), numbers(strides), b"\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join([*parts, b"u."])
