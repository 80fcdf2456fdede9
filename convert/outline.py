"""What a conversion would do: every stored tensor, its place in the params, and sizes; nothing is read or written."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from kangaroo_jax.model import Columns, LlamaConfig
from kangaroo_jax.store import DTYPES, Entry, Shape, StoredTensor, as_dtype, canonical, common_dtype, entries, matched

_LAYER = re.compile(r"(?<=layers[._])\d+")
_WHY = {"lm_head.weight": "tied to the embedding table; a conversion compares the two and refuses one that differs"}
_COMPUTED = "which the model computes itself"


@dataclasses.dataclass(frozen=True)
class Row:
    """A stored tensor and its place, or those of several layers that differ by the layer's number only.

    Attributes:
        name: the tensor's name, with the layers' numbers as ``0-31``.
        shape: as stored.
        dtype: as stored, by name.
        path: the leaf of the params, in the same notation.
        columns: which of the leaf's columns the tensor fills, or None for all.
        transposed: whether the leaf holds it transposed.
        result: its dtype in the params.
        nbytes: what the tensor takes in the source.
        count: number of tensors.
    """

    name: str
    shape: Shape
    dtype: str
    path: str
    columns: Columns | None
    transposed: bool
    result: str
    nbytes: int
    count: int = 1

    @property
    def parameters(self) -> int:
        """Elements of all of them."""
        return self.count * math.prod(self.shape)

    @property
    def bytes_read(self) -> int:
        """Bytes that all of them take in the source."""
        return self.count * self.nbytes

    @property
    def bytes_written(self) -> int:
        """Bytes that all of them take in the params."""
        return self.parameters * np.dtype(DTYPES[self.result]).itemsize


def outline(config: LlamaConfig, tensors: Sequence[StoredTensor], dtype: Any = None, *, full: bool = False) -> str:
    """Return the table and the totals that a dry run prints.

    Args:
        config: the model the tensors belong to.
        tensors: those of all files of the checkpoint; their elements are not read.
        dtype: of the params; None as in ``to_flax``.
        full: whether each layer is listed, instead of one row for all.

    Raises:
        MissingTensors, ExtraTensors, DuplicateTensors, MisshapenTensors: as a conversion would.
        ValueError: if the dtype is none that params can have.
    """
    found = rows(config, tensors, dtype)
    head = ("tensor", "stored", "place in the params", f"in {found[0].result}", "bytes")
    lines = _aligned([head, *(_cells(row) for row in (found if full else collapsed(found)))])
    return "\n".join([*lines, *_left_out(found, tensors), "", *_totals(found, tensors)])


def rows(config: LlamaConfig, tensors: Sequence[StoredTensor], dtype: Any = None) -> list[Row]:
    """Return a row for every tensor that a conversion reads, in the order of the model; arguments as for ``outline``.

    Raises:
        ValueError: as ``outline`` does.
    """
    found = {entry.name: (entry, tensor) for entry, tensor in matched(config, [(item.name, item) for item in tensors])}
    result = as_dtype(dtype) or common_dtype(tensor.dtype for _, tensor in found.values())
    # Of all layers the first rule, then of all the second: by layer reads better.
    ordered = sorted((found[name] for name in entries(config)), key=lambda pair: _depth(pair[0], config))
    return [
        Row(
            name=entry.name,
            shape=entry.shape,
            dtype=cast(StoredTensor, tensor).kind,
            path=entry.path,
            columns=entry.columns if entry.columns[:2] != (0, entry.leaf_shape[-1]) else None,
            transposed=entry.transpose,
            result=result.name,
            nbytes=cast(StoredTensor, tensor).nbytes,
        )
        for entry, tensor in ordered
    ]


def collapsed(found: Iterable[Row]) -> list[Row]:
    """Return the rows with those merged that differ by the number of the layer only."""
    groups: dict[Row, list[int]] = {}
    for row in found:
        name, layers = _without_layer(row.name)
        key = dataclasses.replace(row, name=name, path=_without_layer(row.path)[0])
        groups.setdefault(key, []).extend(layers)
    return [
        dataclasses.replace(
            row, name=_with_layers(row.name, layers), path=_with_layers(row.path, layers), count=len(layers) or 1
        )
        for row, layers in groups.items()
    ]


def _depth(entry: Entry, config: LlamaConfig) -> int:
    """Return where in the model a tensor is: -1 before the layers, their number behind them."""
    if layer := _LAYER.search(entry.name):
        return int(layer[0])
    return -1 if entry.path.startswith("embed_tokens") else config.num_hidden_layers


def _without_layer(name: str) -> tuple[str, list[int]]:
    """Return a name or path with ``{}`` for the number of the layer, and that number, if it has one."""
    return _LAYER.sub("{}", name), [int(number) for number in _LAYER.findall(name)]


def _with_layers(pattern: str, layers: Iterable[int]) -> str:
    """Return the pattern with ``0-2,5`` for layers 0, 1, 2 and 5."""
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    ranges = (str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return pattern.replace("{}", ",".join(ranges))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.dtype} {_extents(row.shape)}",
        row.path + (" [{}:{} of every {}]".format(*row.columns) if row.columns else ""),
        _extents(row.shape[::-1] if row.transposed else row.shape),
        (f"{row.count} x " if row.count > 1 else "") + f"{row.bytes_written // row.count:,}",
    )


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return ["  ".join(line).rstrip() for line in padded]


def _left_out(found: Iterable[Row], tensors: Iterable[StoredTensor]) -> list[str]:
    """Say which tensors are not converted; a head among them is one that is tied."""
    names = [canonical(tensor.name) for tensor in tensors]
    known = {row.name for row in found}
    if "model.embed_tokens.weight" not in names:  # A head alone is the table.
        known.add("lm_head.weight")
    groups: dict[str, list[int]] = {}
    for name, layers in (_without_layer(name) for name in names if name not in known):
        groups.setdefault(name, []).extend(layers)
    return [f"left out: {_with_layers(name, layers)}, {_WHY.get(name, _COMPUTED)}" for name, layers in groups.items()]


def _totals(found: Sequence[Row], tensors: Iterable[StoredTensor]) -> list[str]:
    largest = max(found, key=lambda row: row.bytes_read)
    files = len({tensor.file for tensor in tensors})
    totals = {
        "tensors": f"{len(found):,} in {files} {'file' if files == 1 else 'files'}",
        "parameters": f"{sum(row.parameters for row in found):,}",
        "bytes read": f"{sum(row.bytes_read for row in found):,}",
        "bytes written": f"{sum(row.bytes_written for row in found):,}",
        "largest": f"{largest.name}, {largest.bytes_read:,} bytes",
    }
    return [f"{name:<14} {value}" for name, value in totals.items()]


def _extents(shape: Shape) -> str:
    return "x".join(map(str, shape))
