"""Optimised HLO, read: what a compiled program copies. The text is ``jax.jit(f).lower(...).compile().as_text()``.

Two questions, for every backend: what in a loop is as large as a cache and no update in place (``cache_copies``), and
what is written to memory that holds all of a given array once more (``second_copies``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax

Shape = tuple[int, ...]

UPDATES = {"dynamic-update-slice", "scatter"}
NAMES = {"bitcast", "get-tuple-element", "parameter", "tuple", "constant"}
"""Opcodes that do nothing at run time: other names for what is there."""
NESTED = {"while", "call", "conditional"}
"""Opcodes that run other computations, instruction by instruction."""
# What may have the size of a cache inside the loop: its update in place, and names for the result.
IN_PLACE = {*UPDATES, "bitcast", "get-tuple-element", "parameter", "fusion"}

_TURNS = {"transpose", "copy"}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\w+\[[\d,]*\]\S*) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\w+\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}")


class Instruction(NamedTuple):
    """A line of HLO; ``shapes`` has one shape, or those of a tuple."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    line: str
    root: bool

    @property
    def size(self) -> int:
        """Elements of the array; 0 of a tuple."""
        return math.prod(self.shapes[0]) if len(self.shapes) == 1 else 0


class Module(NamedTuple):
    """Computations by name, and the name of the one that is run."""

    computations: dict[str, list[Instruction]]
    entry: str


def parse(hlo: str | None) -> Module:
    """Read a module's text.

    Raises:
        ValueError: if there is none, as on backends that do not show it.
    """
    computations: dict[str, list[Instruction]] = {}
    lines: list[Instruction] = []
    entry = ""
    for line in (hlo or "").splitlines():
        if start := _COMPUTATION.match(line):
            lines = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif found := _INSTRUCTION.match(line):
            lines.append(_instruction(found))
    if not entry:
        raise ValueError("no HLO: this backend does not show the code it compiles")
    return Module(computations, entry)


def _instruction(found: re.Match[str]) -> Instruction:
    arrays = tuple(
        tuple(int(extent) for extent in extents.split(",") if extent) for extents in _ARRAY.findall(found[3])
    )
    arguments, _, attributes = found[5].partition("), ")
    listed = [name.strip().lstrip("%") for names in _CALLED_LIST.findall(attributes) for name in names.split(",")]
    called = (*_CALLED.findall(attributes), *listed)
    operands = tuple(_OPERAND.findall(arguments))
    return Instruction(found[2], found[4], arrays, operands, called, found[0].strip(), bool(found[1]))


def in_loops(module: Module) -> list[Instruction]:
    """Return the instructions of all while bodies, with those of what they call, inside of fusions too.

    Raises:
        ValueError: if there is no loop.
    """
    every = [instruction for lines in module.computations.values() for instruction in lines]
    waiting = [body for one in every for body in re.findall(r"body=%?([\w.\-]+)", one.line)]
    if not waiting:
        raise ValueError("there is no loop in this program")
    seen: dict[str, None] = {}
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen[name] = None
            waiting += [inner for one in module.computations[name] for inner in one.called]
    return [instruction for name in seen for instruction in module.computations[name]]


def cache_copies(module: Module, sizes: set[int]) -> set[str]:
    """Return the opcodes in loops that make something as large as a cache, other than updating one in place.

    Strict: counts what a fusion computes within itself, too. For shapes where nothing else has a cache's size.
    """
    return {found.opcode for found in in_loops(module) if found.size in sizes and found.opcode not in IN_PLACE}


def cache_updates(module: Module, sizes: set[int]) -> int:
    """Return how often a cache is updated in loops."""
    return sum(found.size in sizes and found.opcode in UPDATES for found in in_loops(module))


def large_constants(module: Module, least: int = 1000) -> list[str]:
    """Return the names of constants with more than ``least`` elements: weights that became part of the program."""
    every = [instruction for lines in module.computations.values() for instruction in lines]
    return [found.name for found in every if found.opcode == "constant" and found.size > least]


def executed(module: Module, name: str | None = None) -> Iterator[tuple[str, Instruction]]:
    """Yield what is run, one by one, with its computation's name: not what fusions compute within themselves."""
    for found in module.computations[name or module.entry]:
        if found.opcode in NESTED:
            for inner in found.called:
                yield from executed(module, inner)
        elif found.opcode not in NAMES:
            yield name or module.entry, found


def second_copies(module: Module, shapes: Iterable[Shape]) -> list[Instruction]:
    """Return what reads an array of one of these shapes and writes as many elements, anywhere in the program.

    Copies, transposes, conversions, selections and products element by element; not updates in place, nor products of
    matrices, which may happen to have as many elements. Of a shape, extents of 1 and the order of the rest do not
    matter.
    """
    found = []
    for one, operands in _readers(module, shapes):
        written = {math.prod(shape) for shape in _written(module, one)}
        if operands and not _multiplies(module, one) and any(read.size in written for read in operands.values()):
            found.append(one)
    return found


def transposes(module: Module, shapes: Iterable[Shape]) -> list[Instruction]:
    """Return the fusions that turn an array of one of these shapes round, be it only to read it."""
    found = []
    for one, operands in _readers(module, shapes):
        if one.opcode == "fusion":
            table = {inner.name: inner for inner in module.computations[one.called[0]]}
            turned = [_origin(table, inner.operands[0]) for inner in table.values() if inner.opcode in _TURNS]
            if any(f" parameter({index})" in origin.line for index in operands for origin in turned if origin):
                found.append(one)
    return found


def products(module: Module, shapes: Iterable[Shape]) -> dict[str, list[str]]:
    """Return how each array of these shapes is multiplied, by its name: once for every reading of it from memory.

    A loop calls an array by another name than what is around it: it is read once in each of its iterations.
    """
    found: dict[str, list[str]] = {}
    for one, operands in _readers(module, shapes):
        kind = re.search(r'"kind":"(__\w+)"|custom_call_target="([^"]+)"', one.line)
        how = (kind[1] or kind[2]) if kind else one.opcode
        if _multiplies(module, one):
            split = one.shapes[0][0] if len(one.shapes[0]) > 2 else 1
            for origin in operands.values():
                extents = " x ".join(str(extent) for extent in origin.shapes[0])
                found.setdefault(origin.name, []).append(f"{extents} by {how}" + f", in {split} parts" * (split > 1))
    return found


def _readers(module: Module, shapes: Iterable[Shape]) -> Iterator[tuple[Instruction, dict[int, Instruction]]]:
    """Yield what is executed, and which of its operands are such arrays, by position: not results like them."""
    wanted = {_canonical(shape) for shape in shapes}
    tables = {name: {one.name: one for one in lines} for name, lines in module.computations.items()}
    for computation, one in executed(module):
        operands = {}
        for index, name in enumerate(one.operands):
            origin = _origin(tables[computation], name)
            if origin is None or len(origin.shapes) != 1 or _canonical(origin.shapes[0]) not in wanted:
                continue
            if origin.opcode in NAMES or not _written(module, origin):  # An argument, or one updated in place.
                operands[index] = origin
        yield one, operands


def _canonical(shape: Shape) -> Shape:
    return tuple(sorted(extent for extent in shape if extent != 1))


def _multiplies(module: Module, one: Instruction) -> bool:
    inner = module.computations[one.called[0]] if one.opcode == "fusion" else [one]
    return any(found.opcode in ("dot", "convolution") or '"__cublas' in found.line for found in inner)


def _origin(table: dict[str, Instruction], name: str) -> Instruction | None:
    """Return what an operand was before bitcasts gave it other shapes."""
    while name in table and table[name].opcode == "bitcast":
        name = table[name].operands[0]
    return table.get(name)


def _written(module: Module, one: Instruction) -> list[Shape]:
    """Return the shapes of an instruction's results that are not updates in place."""
    if one.opcode in UPDATES:
        return []
    if one.opcode != "fusion":
        return list(one.shapes)
    table = {inner.name: inner for inner in module.computations[one.called[0]]}
    root = next(inner for inner in table.values() if inner.root)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    return [shape for name in results if not _updates(table, name) for shape in table[name].shapes]


def _updates(table: dict[str, Instruction], name: str) -> bool:
    origin = _origin(table, name)
    return origin is not None and origin.opcode in UPDATES


def sizes_of(tree: Any) -> set[int]:
    """Return the numbers of elements that a tree's leaves have."""
    return {math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)}


def bytes_of(tree: Any) -> int:
    """Return the bytes of a tree's leaves."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
