"""The pickle inside a torch file, read by a machine that knows containers and tensors, and can do nothing else.

Python's own unpickler calls what a file tells it to call. This one calls nothing: a name in the file is a string that
is compared with the few below, and what they stand for is described, not run. So there is nothing to escape from.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from kangaroo_jax.store.torch_zip import Refused, shown

MAX_DIMENSIONS = 64
_LARGEST = 1 << 62

_FUNCTIONS = (
    "collections OrderedDict",
    *(f"torch._utils _rebuild_{x}" for x in ("parameter", "tensor_v2", "tensor_v3")),
)
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_BYTES = "torch.storage UntypedStorage"
_DTYPES: dict[str, tuple[str | None, Any]] = {  # torch's dtype: the name of its storages, what NumPy calls it
    "float32": ("Float", np.float32),
    "float16": ("Half", np.float16),
    "bfloat16": ("BFloat16", ml_dtypes.bfloat16),
    "float64": ("Double", np.float64),
    "int64": ("Long", np.int64),
    "int32": ("Int", np.int32),
    "int16": ("Short", np.int16),
    "int8": ("Char", np.int8),
    "uint8": ("Byte", np.uint8),
    "bool": ("Bool", np.bool_),
    "uint16": (None, np.uint16),
    "uint32": (None, np.uint32),
    "uint64": (None, np.uint64),
}
_STORAGES = {f"torch {name}Storage": np.dtype(kind) for name, kind in _DTYPES.values() if name}
_ELEMENTS = {f"torch {name}": np.dtype(kind) for name, (_, kind) in _DTYPES.items()}
STORAGE_NAMES = {kind: name for name, kind in _STORAGES.items()}
_KNOWN = {*_FUNCTIONS, _BYTES, *_STORAGES, *_ELEMENTS}


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A tensor: which elements of which storage.

    Attributes:
        storage: name of the storage.
        dtype: element type.
        offset: first element.
        shape: extents.
        strides: steps, in elements.
    """

    storage: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Name:
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    key: str
    dtype: np.dtype | None  # None: bytes
    size: int  # in elements


def read_pickle(data: bytes, sizes: Mapping[str, int]) -> Any:
    """Return what the pickle of a torch file describes: dicts, lists, tuples, numbers, strings and ``Layout``.

    Args:
        data: the pickle; its length bounds the time and memory this takes.
        sizes: bytes of every storage that is in the file; what the pickle claims must fit them.

    Raises:
        Refused: if it names anything that is not part of a tensor, or is not well-formed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # Of escapes in damaged names: they are compared and refused.
            return _run(_Machine(sizes), io.BytesIO(data))
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, OverflowError):  # Of an argument, an empty stack, an unset memo.
        raise Refused("has a damaged pickle; download it again") from None


def _run(machine: _Machine, stream: io.BytesIO) -> Any:
    """Obey the opcodes of a stream up to STOP; return what is then on the stack."""
    while (opcode := _OPCODES[stream.read(1).decode("latin-1")]).name != "STOP":
        if (step := _STEPS.get(opcode.name)) is None:
            raise Refused(f"has a pickle with the opcode {opcode.name}, which weights do not need")
        step(machine, opcode.arg.reader(stream) if opcode.arg else None)
    return machine.result()


class _Machine:
    """The unpickler's stack and memo. A mark begins a new stack, so that nothing reaches below it."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.stacks: list[list[Any]] = [[]]
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        (stack,) = self.stacks
        (value,) = stack
        return value

    def push(self, value: Any) -> None:
        self.stacks[-1].append(value)

    def pop(self) -> Any:
        return self.stacks[-1].pop()

    def since_mark(self) -> list[Any]:
        items = self.stacks.pop()
        _ = self.stacks[-1]  # A pickle may not close more than it opened.
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stacks[-1][-1]

    def last(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def name(self, text: str) -> None:
        if text not in _KNOWN:
            dotted = shown(text.replace(" ", ".", 1))
            raise Refused(f"names {dotted}, which is no part of a tensor, so it is not read and nothing of it was run")
        self.push(_Name(text))

    def stack_name(self) -> None:
        module, name = self.last(2)
        if type(module) is not str or type(name) is not str:
            raise Refused("has a pickle with a name that is not text")
        self.name(f"{module} {name}")

    def extend(self, items: list[Any]) -> None:
        if type(target := self.stacks[-1][-1]) is not list:
            raise Refused(f"has a pickle that appends to a {type(target).__name__}")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        if type(target := self.stacks[-1][-1]) not in (dict, OrderedDict):
            raise Refused(f"has a pickle that sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:  # Others are not needed, and a nested tuple can take forever to hash.
                raise Refused(f"has a dict with a key that is a {type(key).__name__.strip('_')}, not a string")
            if key in target:
                raise Refused(f"has a dict with two values for {shown(key)}")
            target[key] = value

    def build(self) -> None:
        state = self.pop()
        # state_dict() hangs its versions on the dict it returns; nothing reads them.
        if type(self.stacks[-1][-1]) is not OrderedDict or type(state) is not dict or [*state] != ["_metadata"]:
            raise Refused("has a pickle that sets attributes; only a state dict's _metadata may be set")

    def find_storage(self) -> None:
        match self.pop():
            case ("storage", _Name(text=kind), str(key), str(), int(size)) if kind in _STORAGES or kind == _BYTES:
                dtype = _STORAGES.get(kind)
            case _:
                raise Refused("has a pickle that refers to something else than a storage")
        if key not in self.sizes:
            raise Refused(f"lacks the storage {shown(key)}, which its pickle names")
        claimed = size * (1 if dtype is None else dtype.itemsize) if 0 <= size < _LARGEST else "an impossible number"
        if claimed != self.sizes[key]:
            raise Refused(
                f"has {self.sizes[key]} bytes in storage {shown(key)} instead of {claimed}; download it again"
            )
        self.push(_Storage(key, dtype, size))

    def call(self) -> None:
        function, arguments = self.last(2)
        if type(function) is not _Name or type(arguments) is not tuple:
            raise Refused("has a pickle that calls something that is not a name")
        match (function.text, *arguments):
            case ("collections OrderedDict",):
                self.push(OrderedDict())
            case ("torch._utils _rebuild_parameter", Layout() as tensor, bool(), hooks) if _is_empty(hooks):
                self.push(tensor)
            case ("torch._utils _rebuild_tensor_v2", _Storage() as storage, *place, bool(), hooks) if (
                len(place) == 3 and storage.dtype is not None and _is_empty(hooks)
            ):
                self.push(_layout(storage, storage.dtype, *place))
            case (
                "torch._utils _rebuild_tensor_v3",
                _Storage() as storage,
                *place,
                bool(),
                hooks,
                _Name(text=kind),
            ) if len(place) == 3 and storage.dtype is None and kind in _ELEMENTS and _is_empty(hooks):
                self.push(_layout(storage, _ELEMENTS[kind], *place))
            case _:  # A further argument would conjugate or negate the tensor.
                raise Refused(f"calls {function.text.replace(' ', '.')} with other arguments than torch.save does")


def _is_empty(hooks: Any) -> bool:
    return hooks is None or (type(hooks) in (dict, OrderedDict) and not hooks)


def _layout(storage: _Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any) -> Layout:
    """Return a tensor that lies inside its storage and has no more elements than that."""
    if type(shape) is not tuple or type(strides) is not tuple or not len(shape) == len(strides) <= MAX_DIMENSIONS:
        raise Refused(
            f"has a tensor whose shape and strides are not two tuples of one length, at most {MAX_DIMENSIONS}"
        )
    if bad := [x for x in (offset, *shape, *strides) if type(x) is not int or not 0 <= x < _LARGEST]:
        text = str(bad[0]) if type(bad[0]) is int and abs(bad[0]) < _LARGEST else "out of range"
        raise Refused(f"has a tensor with an offset, extent or stride that is {text}")
    available = storage.size // dtype.itemsize if storage.dtype is None else storage.size
    count = math.prod(shape)
    furthest = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    if count and (furthest >= available or count > available):
        raise Refused(f"has a tensor of shape {shown(str(shape))} in a storage of only {available} elements")
    if math.prod(max(extent, 1) for extent in shape) > _LARGEST // 8:
        raise Refused("has an empty tensor of impossible shape")
    # The strides of extents 0 and 1 are never used; torch writes any number there.
    strides = tuple(stride if count and extent > 1 else 0 for extent, stride in zip(shape, strides, strict=True))
    return Layout(storage.key, dtype, offset if count else 0, shape, strides)


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
        lambda m, value: m.push(value),
    ),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "MARK": lambda m, _: m.stacks.append([]),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(m.last(1)),
    "TUPLE2": lambda m, _: m.push(m.last(2)),
    "TUPLE3": lambda m, _: m.push(m.last(3)),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.update([*m.last(2)]),
    "SETITEMS": lambda m, _: m.update(m.since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, index: m.put(index)),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index])),
    "GLOBAL": lambda m, name: m.name(name),
    "STACK_GLOBAL": lambda m, _: m.stack_name(),
    "BINPERSID": lambda m, _: m.find_storage(),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
}
