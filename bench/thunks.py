"""What a compiled program launches, as a tree: loops and CUDA graphs are nodes, kernels are leaves.

XLA calls an entry a thunk. On a GPU the tree is read from XLA's own dump, on a CPU from the HLO, which the CPU's
runtime follows instruction by instruction. A decode loop of Kangaroo under default flags looks like this::

    while                          rounds; the host asks after each whether there is another
      graph      37 kernels        shallow layers on the newest token
      while                        drafts; the host asks again
        graph    59 kernels
      graph     424 kernels        verification and commit
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from bench.hlo import NAMES, NESTED, Module

LOOP, GRAPH, BRANCHES = "while", "graph", "conditional"

_THUNK = re.compile(r"^( *)\d+: k(\w+)\s+(?:\[[^\]]*\])?\s*(\S*)")
_SECTION = re.compile(r"^ *(condition|body):")


@dataclasses.dataclass
class Thunk:
    """A node.

    Attributes:
        kind: LOOP, GRAPH, BRANCHES, or what XLA calls a leaf.
        name: of a kernel; empty if it has none.
        condition: what a loop runs to know whether it goes on.
        body: what it runs then; what is in a graph.
    """

    kind: str
    name: str = ""
    condition: list[Thunk] = dataclasses.field(default_factory=list)
    body: list[Thunk] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Launches:
    """Kernels of a program, by what runs them. ``None`` where there is no such part.

    Attributes:
        outside: once a call, outside of all loops.
        round: once a round, all parts but drafting; a step of plain decoding; a piece of a prefill.
        before: of these, those before the first draft: the shallow layers on the newest token.
        draft: for each drafted token.
        after: of ``round``, those after the last draft: verification and commit.
    """

    outside: int
    round: int
    before: int | None
    draft: int | None
    after: int | None


def parse_dump(text: str) -> list[Thunk]:
    """Read XLA:GPU's dump of a thunk sequence.

    Raises:
        ValueError: if there is no loop in it.
    """
    top = Thunk("top")
    open_nodes: list[tuple[int, Thunk]] = [(-1, top)]
    section = "body"
    for line in text.splitlines():
        if header := _SECTION.match(line):
            section = header[1]
        elif found := _THUNK.match(line):
            depth = len(found[1])
            while open_nodes[-1][0] >= depth:
                open_nodes.pop()
            parent = open_nodes[-1][1]
            kind = {"While": LOOP, "CommandBuffer": GRAPH, "Conditional": BRANCHES}.get(found[2], found[2])
            node = Thunk(kind, found[3])
            (parent.condition if parent.kind == LOOP and section == "condition" else parent.body).append(node)
            open_nodes.append((depth, node))
    if not any(node.kind == LOOP for node in walk(top.body)):
        raise ValueError("no loop in the dump of thunks: this version of XLA writes it in another form")
    return top.body


def from_hlo(module: Module, computation: str | None = None) -> list[Thunk]:
    """Return the tree of a program whose runtime follows its HLO, as on a CPU."""
    nodes: list[Thunk] = []
    for found in module.computations[computation or module.entry]:
        parts = {match[0]: match[1] for match in re.findall(r"(body|condition)=%?([\w.\-]+)", found.line)}
        if found.opcode == "while":
            loop = Thunk(LOOP)
            loop.condition, loop.body = (from_hlo(module, parts[part]) for part in ("condition", "body"))
            nodes.append(loop)
        elif found.opcode == "conditional":
            nodes.append(Thunk(BRANCHES, body=[node for name in found.called for node in from_hlo(module, name)]))
        elif found.opcode in NESTED:
            nodes += [node for name in found.called for node in from_hlo(module, name)]
        elif found.opcode not in NAMES:
            nodes.append(Thunk(found.opcode, found.name))
    return nodes


def walk(nodes: list[Thunk]) -> Iterator[Thunk]:
    """Yield all nodes, depth first, in the order they run."""
    for node in nodes:
        yield node
        yield from walk(node.condition)
        yield from walk(node.body)


def kernels(nodes: list[Thunk]) -> int:
    """Return the number of leaves."""
    return sum(node.kind not in (LOOP, GRAPH, BRANCHES) for node in walk(nodes))


def graphs(nodes: list[Thunk]) -> int:
    """Return the number of CUDA graphs."""
    return sum(node.kind == GRAPH for node in walk(nodes))


def host_loops(nodes: list[Thunk]) -> int:
    """Return the number of loops that are in no graph: the host waits for the predicate of every iteration."""
    return sum((node.kind == LOOP) + host_loops(node.body) for node in nodes if node.kind != GRAPH)


def flat(nodes: list[Thunk]) -> list[Thunk]:
    """Return the same without graphs: what is in one stands in its place."""
    return [inner for node in nodes for inner in (flat(node.body) if node.kind == GRAPH else [node])]


def launches(nodes: list[Thunk]) -> Launches:
    """Count kernels by the part of decoding they belong to."""
    nodes = flat(nodes)
    rounds = next(node for node in nodes if node.kind == LOOP)
    outside, body = kernels([node for node in nodes if node is not rounds]), flat(rounds.body)
    again = kernels(rounds.condition)
    at = next((index for index, node in enumerate(body) if node.kind == LOOP), None)
    if at is None:
        return Launches(outside, again + kernels(body), None, None, None)
    before, after = kernels(body[:at]), again + kernels(body[at + 1 :])
    return Launches(outside, before + after, before, kernels(body[at : at + 1]), after)


def outline(nodes: list[Thunk], names: bool = False, indent: str = "") -> list[str]:
    """Draw the tree: a line for each loop, graph and run of kernels; one for each kernel with ``names``."""
    lines: list[str] = []
    count = 0
    for node in [*nodes, None]:
        if node is not None and node.kind not in (LOOP, GRAPH, BRANCHES):
            count += 1
            if names:
                lines.append(f"{indent}{node.kind} {node.name}".rstrip())
            continue
        if count and not names:
            lines.append(f"{indent}{count} {'kernel' if count == 1 else 'kernels'}")
        count = 0
        if node is not None:
            lines.append(f"{indent}{node.kind}")
            lines += [f"{line}  (condition)" for line in outline(node.condition, names, indent + "  ")]
            lines += outline(node.body, names, indent + "  ")
    return lines
