"""The static tree of Medusa, as numbers: which ranks of which heads are verified together."""

from __future__ import annotations

import dataclasses

import numpy as np

PUBLISHED = (
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 40 21 004 005 0000 "
    "011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 90 060 0001 16 070"
)
"""``mc_sim_7b_63`` of FasterDecoding/Medusa (medusa/model/medusa_choices.py): 63 paths, the most promising first, found
by the authors for Vicuna-7B with four heads. Each digit is a rank: ``02`` is the first choice of head 1, then the third
choice of head 2."""


@dataclasses.dataclass(frozen=True)
class Paths:
    """A tree as the path of each node, parents first; hashable, for it is static.

    Attributes:
        paths: ranks along the path of each node.
    """

    paths: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for index, path in enumerate(self.paths):
            if not path or (path[:-1] and path[:-1] not in self.paths[:index]):
                raise ValueError(f"path {path} comes without its parent; list parents first")

    @property
    def deepest(self) -> int:
        """Heads that the tree needs."""
        return max(map(len, self.paths))

    @property
    def width(self) -> int:
        """Choices of a head that the tree needs."""
        return 1 + max(max(path) for path in self.paths)

    def depth(self) -> np.ndarray:
        """Return the depth of each node, ``[nodes]``; the root's children have 1."""
        return np.array([len(path) for path in self.paths])

    def rank(self) -> np.ndarray:
        """Return which choice of the head of its depth each node is, ``[nodes]``."""
        return np.array([path[-1] for path in self.paths])

    def parent(self) -> np.ndarray:
        """Return the row of each node's parent, ``[nodes]``; row 0 is the root, node i is row i + 1."""
        return np.array([1 + self.paths.index(path[:-1]) if path[:-1] else 0 for path in self.paths])


def published(nodes: int) -> Paths:
    """Return the first nodes of the published tree; each beginning of it is a tree."""
    return Paths(tuple(tuple(map(int, word)) for word in PUBLISHED.split()[:nodes]))


def line(heads: int) -> Paths:
    """Return the tree of each head's first choice."""
    return Paths(tuple((0,) * depth for depth in range(1, heads + 1)))
