"""torch files made by hand: a pickle from its opcodes, an archive from its entries."""

from __future__ import annotations

import struct
import types
import zipfile

import pytest


def text(value):
    encoded = value if isinstance(value, bytes) else value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def row(*items):
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def numbers(*values):
    return row(*map(number, values))


HOOKS = name("collections", "OrderedDict") + b")R"


def storage(size, key="0", kind="FloatStorage", module="torch"):
    """A reference to a storage."""
    return row(text("storage"), name(module, kind), text(key), text("cpu"), number(size)) + b"Q"


def tensor(stored, offset=0, shape=(6,), strides=(1,), more=b""):
    """A tensor of a storage."""
    arguments = (stored, number(offset), numbers(*shape), numbers(*strides), b"\x89", HOOKS, more)
    return name("torch._utils", "_rebuild_tensor_v2") + row(*arguments) + b"R"


def state(*values):
    """A whole pickle: a dict with the values under a, b, c, ..."""
    items = [text(key) + value for key, value in zip("abcdefgh", values, strict=False)]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def write(file, pickled, storages=(bytes(24),), **more):
    """Write an archive as torch does; ``more`` are further entries, or others in place of the usual ones."""
    entries = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    entries |= {f"data/{number}": data for number, data in enumerate(storages)} | more
    with zipfile.ZipFile(file, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(f"archive/{entry}", data)
    return file


@pytest.fixture(scope="session")
def torch_parts():
    """The functions above."""
    functions = (text, number, name, row, numbers, storage, tensor, state, write)
    return types.SimpleNamespace(hooks=HOOKS, **{function.__name__: function for function in functions})
