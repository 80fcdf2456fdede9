"""GGUF files: headers read strictly, against the file's size, and tensors that are dequantised one at a time.

What a header says may be a lie. Nothing is allocated by what it counts, each step is checked to stay inside the file,
and tensors are to lie where llama.cpp asks for them: one behind the other, aligned. The ``gguf`` package knows the
kinds of tensors and dequantises them; its own reader believes what it is told.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kangaroo_jax.checks import INT32, WIDEST, brief
from kangaroo_jax.files import first_line

MAGIC = b"GGUF"
AGAIN = "get it from another source"
MOST = 1 << 16  # Keys, and tensors; a model of 1,000 layers has 12,000.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_DTYPES: dict[str, Any] = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Value:
    """Where the value of a key is: ``count`` of a ``kind``; one that is no array has count None."""

    kind: int
    start: int
    count: int | None = None


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file; ``read`` reads it, and nothing before.

    Attributes:
        file: the file.
        name: the tensor's name in it.
        kind: how it is stored, as ``"Q4_K"``.
        shape: extents, rows first.
        start: offset of its first byte.
        nbytes: bytes in the file.
    """

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def dtype(self) -> np.dtype:
        """What its values are read as: float16 and bfloat16 as they are, all else as float32."""
        return np.dtype(_DTYPES.get(self.kind, np.float32))

    def read(self) -> np.ndarray:
        """Return the values; beside them the tensor is held as it is in the file.

        It is not mapped: a mapped file that becomes shorter ends the process.

        Raises:
            ValueError: if the file has become shorter since it was opened.
        """
        try:
            stored = np.fromfile(self.file, np.uint8, self.nbytes, offset=self.start)
        except OSError as error:
            raise ValueError(f"{self.file} cannot be read ({first_line(error)})") from error
        if len(stored) < self.nbytes:
            raise ValueError(f"{self.file} changed while it was read; {AGAIN}")
        if self.kind in ("F32", *_DTYPES):
            return stored.view(self.dtype).reshape(self.shape)
        package = _package(self.file)
        with np.errstate(all="ignore"):  # A scale may be anything that 16 bits hold.
            values = package.quants.dequantize(
                stored.reshape(*self.shape[:-1], -1), package.GGMLQuantizationType[self.kind]
            )
        return values.reshape(self.shape)


class Gguf:
    """What a GGUF model says of itself, in one file or several parts, and its tensors.

    Attributes:
        files: its parts.
        tensors: of all parts.
    """

    def __init__(self, file: Path) -> None:
        """Read headers only.

        Raises:
            ValueError: if a file is none, is damaged, or lies about itself; or the ``gguf`` package is missing.
        """
        self.file = Path(file)
        _package(self.file)
        self.files = _parts(self.file)
        try:
            headers = [_Header(part) for part in self.files]
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({first_line(error)})") from error
        self._first = headers[0]
        self.tensors: dict[str, GgufTensor] = {}
        for header in headers:
            for name, tensor in header.tensors.items():
                if name in self.tensors:
                    raise ValueError(f"{header.file} has a tensor {brief(name)} that another part has, too; {AGAIN}")
                self.tensors[name] = tensor
        count = self.integer("split.count") or 1
        if count not in (1, len(self.files)):
            raise ValueError(
                f"{file} is one of {brief(count)} parts; name them as llama.cpp does: "
                f"NAME-00001-of-{brief(count):0>5}.gguf"
            )

    def __contains__(self, key: str) -> bool:
        return key in self._first.values

    def scalar(self, key: str) -> Any:
        """Return a value of any type, or None where the key is absent; of an array, the one value that all of it is."""
        value = self._first.values.get(key)
        if value is None:
            return None
        if value.count is None:
            return next(self._first.texts(value)) if value.kind == _TEXT else self._first.numbers(value).tolist()[0]
        same = [] if value.kind == _TEXT else np.unique(self._first.numbers(value)).tolist()
        if len(same) != 1:
            raise self._wrong(key, f"an array of {value.count}", "one value for the whole model")
        return same[0]

    def integer(self, key: str) -> int | None:
        """Return a whole number, or None where the key is absent; of an array, the one number that all of it is."""
        value = self.scalar(key)
        return None if value is None else self._as(key, value, type(value) is int, "a whole number")

    def number(self, key: str) -> float | None:
        """Return a finite number, or None where the key is absent."""
        value = self.scalar(key)
        fits = type(value) in (int, float) and math.isfinite(value)
        return None if value is None else float(self._as(key, value, fits, "a finite number"))

    def flag(self, key: str) -> bool | None:
        """Return true or false, or None where the key is absent."""
        value = self.scalar(key)
        return None if value is None else self._as(key, value, type(value) is bool, "true or false")

    def text(self, key: str) -> str | None:
        """Return a text, or None where the key is absent."""
        value = self.scalar(key)
        return None if value is None else self._as(key, value, type(value) is str, "text")

    def count(self, key: str) -> int:
        """Return how many values an array has, 0 where the key is absent; none is read."""
        return 0 if (value := self._array(key)) is None else value.count or 0

    def texts(self, key: str) -> list[str] | None:
        """Return an array of texts, or None where the key is absent."""
        if (value := self._array(key)) is None:
            return None
        if value.kind != _TEXT:
            raise self._wrong(key, "an array of another kind", "an array of texts")
        return list(self._first.texts(value))

    def numbers(self, key: str) -> np.ndarray | None:
        """Return an array of finite numbers, or None where the key is absent."""
        if (value := self._array(key)) is None:
            return None
        if value.kind == _TEXT:
            raise self._wrong(key, "an array of texts", "an array of numbers")
        found = self._first.numbers(value)
        if not np.isfinite(found).all():
            raise self._wrong(key, "not finite throughout", "an array of finite numbers")
        return found

    def _array(self, key: str) -> Value | None:
        value = self._first.values.get(key)
        if value is not None and value.count is None:
            raise self._wrong(key, brief(self.scalar(key)), "an array")
        return value

    def _as(self, key: str, value: Any, fits: bool, expected: str) -> Any:
        if not fits:
            raise self._wrong(key, brief(value), expected)
        return value

    def _wrong(self, key: str, value: str, expected: str) -> ValueError:
        return ValueError(f"{self.file}: {key} is {value}; it must be {expected}: {AGAIN}")


class _Header:
    """The header of one file.

    Attributes:
        file: the file.
        values: where the values of the keys are.
        tensors: the tensors of this file.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.values = file, dict[str, Value]()
        with file.open("rb") as opened:
            if opened.read(4) != MAGIC:
                raise ValueError(f"{file} is not a GGUF file; give a .gguf file, or the directory of a checkpoint")
            self._data: mmap.mmap | bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 4
        self._check_version()
        tensors, keys = self._unpack("QQ")
        for count, what in ((tensors, "tensors"), (keys, "keys")):
            if count > MOST:
                raise self._refused(f"says that it has {count} {what}; at most {MOST} are read")
        for _ in range(keys):
            key = self._name("key")
            if key in self.values:
                raise self._refused(f"has the key {brief(key)} twice")
            self.values[key] = self._skip_value(key)
        self.tensors = self._read_tensors(tensors)
        self._data = self._data[: self._at]  # Not mapped: see GgufTensor.read.

    def texts(self, value: Value) -> Iterator[str]:
        """Yield the texts of a value."""
        at = value.start
        for _ in range(1 if value.count is None else value.count):
            (length,) = struct.unpack_from("<Q", self._data, at)
            at += 8 + length
            try:
                yield self._data[at - length : at].decode()
            except UnicodeDecodeError:
                raise self._refused("has a text that is not UTF-8") from None

    def numbers(self, value: Value) -> np.ndarray:
        """Return the numbers of a value, one or several."""
        count = 1 if value.count is None else value.count
        return np.frombuffer(self._data, np.dtype("<" + _SCALARS[value.kind]), count, value.start).copy()

    def _check_version(self) -> None:
        (version,) = self._unpack("I")
        if version in (2, 3):
            return
        if version & 0xFFFF == 0:
            raise ValueError(f"{self.file} is big-endian, which is not read; convert the model again, little-endian")
        raise ValueError(
            f"{self.file} is of version {version} of GGUF; 2 and 3 are read: convert the model again with llama.cpp"
        )

    def _read_tensors(self, count: int) -> dict[str, GgufTensor]:
        found = []
        names: set[str] = set()
        for _ in range(count):
            name = self._name("tensor")
            if name in names:
                raise self._refused(f"has the tensor {brief(name)} twice")
            names.add(name)
            (dimensions,) = self._unpack("I")
            if not 1 <= dimensions <= 4:
                raise self._refused(f"has a tensor {brief(name)} of {dimensions} dimensions; there are 1 to 4")
            extents = self._unpack("Q" * dimensions)
            kind, offset = self._unpack("IQ")
            found.append((name, extents, kind, offset))
        alignment = self._alignment()
        base = _aligned(self._at, alignment)
        due, tensors = 0, {}
        for name, extents, number, offset in found:
            kind, shape, nbytes = self._extent(name, extents, number)
            if offset != due:
                raise self._refused(f"says that {brief(name)} is at {offset} of its data, where {due} is due")
            if base + offset + nbytes > len(self._data):
                raise self._refused(f"ends before its tensor {brief(name)} of {nbytes} bytes does")
            tensors[name] = GgufTensor(self.file, name, kind, shape, base + offset, nbytes)
            due = _aligned(offset + nbytes, alignment)
        return tensors

    def _extent(self, name: str, extents: tuple[int, ...], number: int) -> tuple[str, tuple[int, ...], int]:
        """Return how a tensor is stored, its shape and its bytes."""
        package = _package(self.file)
        try:
            kind = package.GGMLQuantizationType(number)
        except ValueError:
            raise ValueError(
                f"{self.file}: {brief(name)} is of kind {number}, which the installed gguf package does not know; "
                "upgrade it: pip install --upgrade gguf"
            ) from None
        if not _dequantised(kind):
            raise ValueError(
                f"{self.file}: {brief(name)} is {kind.name}, which the gguf package does not dequantise; "
                "get the model in another quantisation"
            )
        block, size = package.GGML_QUANT_SIZES[kind]
        if not all(1 <= extent <= INT32 for extent in extents) or extents[0] % block:
            raise self._refused(f"has a tensor {brief(name)} of {list(extents)}, whose rows are no blocks of {block}")
        return kind.name, extents[::-1], math.prod(extents) // block * size

    def _alignment(self) -> int:
        value = self.values.get("general.alignment")
        if value is None:
            return 32
        (alignment,) = self.numbers(value).tolist() if value.count is None and value.kind == 4 else (0,)
        if alignment < 1 or alignment & (alignment - 1):
            raise self._refused("has a general.alignment that is no power of two")
        return alignment

    def _skip_value(self, key: str) -> Value:
        """Step over a value, and say where it is."""
        (kind,) = self._unpack("I")
        if kind != _ARRAY:
            return self._skip(key, kind, None)
        kind, count = self._unpack("IQ")
        if count > WIDEST:
            raise self._refused(f"says that {brief(key)} is an array of {count}; at most {WIDEST} are read")
        return self._skip(key, kind, count)

    def _skip(self, key: str, kind: int, count: int | None) -> Value:
        value = Value(kind, self._at, count)
        if kind in _SCALARS:
            self._step(struct.calcsize("<" + _SCALARS[kind]) * (1 if count is None else count))
        elif kind == _TEXT:
            self._step_texts(1 if count is None else count)
        else:
            raise self._refused(f"has a value of kind {kind} for {brief(key)}, and there is no such kind")
        return value

    def _step_texts(self, count: int) -> None:
        at, size, length_at = self._at, len(self._data), struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise self._refused("ends too early")
            at += 8 + length_at(self._data, at)[0]
        self._step(at - self._at)

    def _name(self, what: str) -> str:
        (length,) = self._unpack("Q")
        start = self._at
        self._step(length)
        name = self._data[start : min(self._at, start + 256)].decode(errors="replace")
        if not name or length > 255 or not name.isprintable():
            raise self._refused(f"has a {what} with the name {brief(name)}")
        return name

    def _unpack(self, format: str) -> tuple[Any, ...]:
        start = self._at
        self._step(struct.calcsize("<" + format))
        return struct.unpack_from("<" + format, self._data, start)

    def _step(self, length: int) -> None:
        if self._at + length > len(self._data):
            raise self._refused("ends too early")
        self._at += length

    def _refused(self, problem: str) -> ValueError:
        return ValueError(f"{self.file} {problem}; {AGAIN}")


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file that is GGUF, by its name or by its first bytes."""
    if not os.path.isfile(path):  # Path's own method raises where a folder is locked.
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as opened:
            return opened.read(4) == MAGIC
    except OSError:
        return False


def whole_name(path: Path) -> str:
    """Return the name of a GGUF file without suffix and without the number of its part."""
    part = _PART.fullmatch(path.name)
    return part[1] if part else path.stem if path.suffix.lower() == ".gguf" else path.name


def _parts(file: Path) -> list[Path]:
    """Return the files of a model that is split as llama.cpp does it, or the one file."""
    if (part := _PART.fullmatch(file.name)) is None or not 1 <= int(part[2]) <= int(part[3]):
        return [file]
    files = [file.with_name(f"{part[1]}-{i:05}-of-{part[3]}{part[4]}") for i in range(1, int(part[3]) + 1)]
    if absent := [each.name for each in files if not each.is_file()]:
        raise ValueError(f"{file} lacks its part {absent[0]}; all parts are to lie beside each other")
    return files


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _package(file: Path) -> Any:
    """Return the ``gguf`` package; imported here, because other models do without it."""
    try:
        import gguf
    except ImportError as error:
        raise ValueError(f"{file} is a GGUF file, for which the package gguf is missing: pip install gguf") from error
    return gguf


@functools.cache
def _dequantised(kind: Any) -> bool:
    """Return whether the package has values for a kind of tensor; it only says so by trying."""
    import gguf

    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
