"""From the tensors of a Hugging Face checkpoint to this package's params and back, by the rows of a table."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from kangaroo_jax.model import Columns, LlamaConfig, fused_at
from kangaroo_jax.store.tables import EMBEDDING, HEAD, TARGET, Table

Params = dict[str, Any]
Shape = tuple[int, ...]
_ROWS = 16


class Tensor(Protocol):
    """What ``to_flax`` needs of a tensor; ``np.asarray`` may be what reads it from disk."""

    @property
    def shape(self) -> Shape:
        """Extents, in torch's order."""

    @property
    def dtype(self) -> Any:
        """Element type, known without reading the elements."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read the elements."""


Tensors = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


class MappingError(ValueError):
    """Tensors and model do not fit; ``keys`` has all the names, the message the first few."""

    def __init__(self, problem: str, fix: str, keys: Sequence[str], details: Sequence[str] = ()) -> None:
        """Compose the message: what is wrong, with which tensors (``details`` say more than ``keys``), and the fix."""
        shown = list(details or keys)[:6]
        rest = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
        super().__init__(f"{len(keys)} {problem}: {', '.join(shown)}{rest}; {fix}")
        self.keys = tuple(keys)


class MissingTensors(MappingError):
    """The model needs tensors that are not there."""


class ExtraTensors(MappingError):
    """There are tensors the model has no place for."""


class DuplicateTensors(MappingError):
    """A tensor occurs more than once."""


class MisshapenTensors(MappingError):
    """Tensors have other shapes than the config implies."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A rule for one layer of one model: these columns of a leaf are the tensor ``name``, transposed or not."""

    name: str
    path: str
    transpose: bool
    columns: Columns
    shape: Shape
    leaf_shape: Shape


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of the params that is still on disk.

    Attributes:
        path: its place in the params.
        shape: its extents.
        dtype: what it is read as.
        parts: the tensors it is made of, one or those of a fused leaf.
    """

    path: str
    shape: Shape
    dtype: np.dtype
    parts: tuple[tuple[Entry, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Return the elements; one tensor at a time is held beside them.

        Raises:
            ValueError: if a value is too large for the dtype.
        """
        values = np.empty(self.shape, self.dtype)
        with np.errstate(over="ignore"):  # Looked for below.
            self._fill(values)
        return values

    def _fill(self, values: np.ndarray) -> None:
        for entry, tensor in self.parts:
            stored, at = np.asarray(tensor), 0
            columns = stored.T if entry.transpose else stored
            for run in _runs(entry):
                block = values[..., run]
                width = block.shape[-1]
                given, at = columns[..., at : at + width], at + width
                step = _ROWS if entry.transpose else width  # In caches' reach: five times as fast.
                for start in range(0, width, step):
                    block[..., start : start + step] = given[..., start : start + step]
                if np.dtype(stored.dtype) != self.dtype == np.float16 and np.isinf(block).any() > np.isinf(given).any():
                    raise ValueError(f"{entry.name} has values too large for float16; choose bfloat16 or float32")


def _runs(entry: Entry) -> Iterable[slice]:
    """Return the columns of an entry as slices, as few as there can be."""
    (start, stop, every), end = entry.columns, entry.leaf_shape[-1]
    if stop - start == 1:
        return [slice(start, end, every)]
    return [slice(at + start, at + stop) for at in range(0, end, every)]


_LAYER = re.compile(r"model\.layers\.([0-9]+)\.")
_FIX = "are config and weights those of one complete checkpoint?"
_HEADLESS = (
    "this is a base model: save it with its head (AutoModelForCausalLM), or, if the head is the embedding table, set "
    "tie_word_embeddings to true in config.json"
)
_TWO_HEADS = (
    "it differs from the embedding table, and config.json ties the two: set tie_word_embeddings to false to keep both, "
    "or remove the tensor"
)
# What wrappers add: torch.compile and FSDP anywhere, DDP in front. Base models lack a "model." there.
WRAPPERS = r"^(?:module\.)+|\b(?:_orig_mod|_fsdp_wrapped_module)\.(?:module\.)?"
_BASE = re.compile(r"(?:embed_tokens|layers|norm)\.")


def entries(config: LlamaConfig, table: Table = TARGET) -> dict[str, Entry]:
    """Expand a table for one model: tensor name -> its entry, in the order of the table.

    Rows whose leaf the model does not have (``lm_head`` of tied embeddings, biases of Llama) are left out.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(table.abstract(config)).items()}
    expanded = {}
    for rule in table.rules:
        for i in range(config.num_hidden_layers) if "{i}" in rule.name else (0,):
            name, path = rule.name.replace("{i}", str(i)), rule.path.replace("{i}", str(i))
            if (leaf := shapes.get(path)) is None:
                continue
            fused = fused_at(config, path)
            columns = fused.columns(rule.part) if fused and rule.part else Columns(0, leaf[-1], leaf[-1])
            shape = (*leaf[:-1], leaf[-1] // columns.every * (columns.stop - columns.start))
            expanded[name] = Entry(name, path, rule.transpose, columns, shape[::-1] if rule.transpose else shape, leaf)
    assert {entry.path for entry in expanded.values()} == set(shapes), "the table does not cover the params"
    return expanded


def canonical(name: str) -> str:
    """Return the name that a target's tensor has where transformers saves the whole model, unwrapped.

    torch.compile, DDP and FSDP put names of their own before those of the parameters, and a base model (``LlamaModel``)
    lacks the first: ``_orig_mod.layers.0.mlp.up_proj.weight`` is ``model.layers.0.mlp.up_proj.weight``.
    """
    name = re.sub(WRAPPERS, "", name)
    return f"model.{name}" if _BASE.match(name) else name


def matched(config: LlamaConfig, tensors: Tensors, table: Table = TARGET) -> list[tuple[Entry, Tensor]]:
    """Return the tensors that a conversion reads, each with its entry, in the order given; no element is read.

    A target's tensors may have the names of a base model or of a wrapper; see ``canonical``. What the table ignores is
    left out. Of tied embeddings the head may be what is stored. A head beside them is left out, if it has their shape;
    that it has their values, too, only ``check_tied_head`` can say.

    Args:
        config: the model the tensors belong to.
        tensors: names and tensors; pairs may repeat a name, which is an error that is found.
        table: ``TARGET``, or an adapter's.

    Raises:
        MissingTensors, ExtraTensors, DuplicateTensors, MisshapenTensors: ValueErrors that name the tensors.
    """
    pairs = [(name, tensor) for name, tensor in _pairs(config, tensors, table) if not table.ignored.fullmatch(name)]
    names = {name for name, _ in pairs}
    if table is TARGET:
        _check_depth(config, names)
    expanded = entries(config, table)
    expected = {name: entry.shape for name, entry in expanded.items()}
    if EMBEDDING in expected and _tied_head(config, pairs):
        expected[HEAD] = expected[EMBEDDING]
    check_shapes(
        expected,
        [(name, tuple(tensor.shape)) for name, tensor in pairs],
        fix=_HEADLESS if expected.keys() - names == {HEAD} else _FIX,
    )
    return [(expanded[name], tensor) for name, tensor in pairs if name in expanded]


def check_tied_head(config: LlamaConfig, tensors: Tensors) -> None:
    """Refuse a stored head that differs from the embedding table it is tied to; reads both, where there are both.

    Raises:
        ExtraTensors: if it differs.
    """
    if (found := _tied_head(config, _pairs(config, tensors))) is None:
        return
    head, table = found
    if not np.array_equal(np.asarray(head), np.asarray(table)):
        raise ExtraTensors("tensors have no place in this model", _TWO_HEADS, [HEAD])


def leaves(config: LlamaConfig, tensors: Tensors, dtype: Any = None, table: Table = TARGET) -> list[Leaf]:
    """Return the leaves of the params, in the order of the tensors, once all are known to fit.

    Args:
        config: the model the tensors belong to.
        tensors: names and tensors; pairs may repeat a name, which is an error that is found.
        dtype: of the leaves; None keeps the tensors' own, or float32 where they differ among each other.
        table: ``TARGET``, or an adapter's.

    Raises:
        MissingTensors, ExtraTensors, DuplicateTensors, MisshapenTensors: ValueErrors that name the tensors.
    """
    pairs = _pairs(config, tensors, table)
    found = matched(config, pairs, table)
    check_tied_head(config, pairs)
    kind = common_dtype(tensor.dtype for _, tensor in found) if dtype is None else np.dtype(dtype)
    parts: dict[str, list[tuple[Entry, Tensor]]] = {}
    for entry, tensor in found:
        parts.setdefault(entry.path, []).append((entry, tensor))
    return [Leaf(path, several[0][0].leaf_shape, kind, tuple(several)) for path, several in parts.items()]


def to_flax(
    config: LlamaConfig,
    tensors: Tensors,
    dtype: Any = None,
    table: Table = TARGET,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Params:
    """Build the params' tree of NumPy arrays from named tensors, each read once and only when all fit.

    Args:
        config: the model the tensors belong to.
        tensors: names and tensors; pairs may repeat a name, which is an error that is found.
        dtype: of the result; None keeps the tensors' own, or float32 where they differ among each other.
        table: ``TARGET``, or an adapter's.
        progress: wraps the sequence of leaves while it is read, as ``tqdm`` does.

    Raises:
        MissingTensors, ExtraTensors, DuplicateTensors, MisshapenTensors: ValueErrors that name the tensors.
    """
    return unflatten({leaf.path: leaf.read() for leaf in progress(leaves(config, tensors, dtype, table))})


def from_flax(config: LlamaConfig, params: Params, table: Table = TARGET) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the named tensors of a checkpoint, contiguous, in the dtype the params have; inverse of ``to_flax``.

    Raises:
        MissingTensors, ExtraTensors, MisshapenTensors: ValueErrors that name the leaves of the params.
    """
    found = flatten(params)
    expanded = entries(config, table)
    check_shapes(
        {entry.path: entry.leaf_shape for entry in expanded.values()},
        [(path, tuple(leaf.shape)) for path, leaf in found.items()],
        fix="are these the params of this config?",
    )
    for name, entry in expanded.items():
        leaf = np.asarray(found[entry.path])
        start, stop, every = entry.columns
        values = leaf.reshape(*leaf.shape[:-1], -1, every)[..., start:stop].reshape(*leaf.shape[:-1], -1)
        yield name, np.ascontiguousarray(values.T if entry.transpose else values)


def check_shapes(expected: Mapping[str, Shape], found: Iterable[tuple[str, Shape]], fix: str) -> None:
    """Compare names and shapes; one error per kind of mismatch, duplicates first, then missing, extra, mis-shaped.

    Raises:
        MissingTensors, ExtraTensors, DuplicateTensors, MisshapenTensors: ValueErrors that name the tensors.
    """
    shapes: dict[str, Shape] = {}
    duplicates: dict[str, None] = {}
    for name, shape in found:
        if name in shapes:
            duplicates[name] = None
        shapes[name] = shape
    if duplicates:
        raise DuplicateTensors(
            "tensors occur more than once", "remove the file that should not be there", [*duplicates]
        )
    if missing := [name for name in expected if name not in shapes]:
        raise MissingTensors("tensors are missing", fix, missing)
    if extra := [name for name in shapes if name not in expected]:
        raise ExtraTensors("tensors have no place in this model", fix, extra)
    if wrong := [name for name, shape in expected.items() if shapes[name] != shape]:
        details = [f"{name} is {shapes[name]} instead of {expected[name]}" for name in wrong]
        raise MisshapenTensors("tensors have another shape than the config implies", fix, wrong, details)


def common_dtype(dtypes: Iterable[Any]) -> np.dtype:
    """Return the one dtype of all, or float32, which holds bfloat16 and float16 exactly."""
    kinds = {np.dtype(dtype) for dtype in dtypes}
    return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a/b": leaf}`` of nested dicts."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Return the nested dicts of ``{"a/b": leaf}``; inverse of ``flatten``."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _pairs(config: LlamaConfig, tensors: Tensors, table: Table = TARGET) -> list[tuple[str, Tensor]]:
    """Return names, as the table has them, and tensors; names may repeat."""
    pairs = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    if table is not TARGET:
        return pairs
    pairs = [(canonical(name), tensor) for name, tensor in pairs]
    if config.tie_word_embeddings and EMBEDDING not in dict(pairs):
        pairs = [(EMBEDDING if name == HEAD else name, tensor) for name, tensor in pairs]
    return pairs


def _check_depth(config: LlamaConfig, names: Iterable[str]) -> None:
    """Raise MissingTensors for layers that have no tensor at all, before time is spent on the shapes of each layer."""
    found = {match[1] for name in names if (match := _LAYER.match(name))}
    if absent := [f"model.layers.{i}" for i in range(config.num_hidden_layers) if str(i) not in found]:
        problem = f"layers of the {config.num_hidden_layers} that the config has (num_hidden_layers) have no tensors"
        raise MissingTensors(problem, _FIX, absent)


def _tied_head(config: LlamaConfig, pairs: Iterable[tuple[str, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """Return head and embedding table where embeddings are tied and both are stored, in one shape."""
    found = dict(pairs)
    head, table = found.get(HEAD), found.get(EMBEDDING)
    if not config.tie_word_embeddings or head is None or table is None or head.shape != table.shape:
        return None
    return head, table
