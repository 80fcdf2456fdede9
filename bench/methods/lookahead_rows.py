"""The rows of a verification in lookahead decoding: what they hold, and which of them each one sees."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from kangaroo_jax import decode as dec


class Rows(struct.PyTreeNode):
    """Where the window lies, ``[B, R]``.

    Attributes:
        ahead: rows of the lookahead branch, the root among them.
        level: their level.
        index: their place in it.
    """

    ahead: Bool[Array, "B R"]
    level: Int[Array, "B R"]
    index: Int[Array, "B R"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows are used: the window, its root among them, then the n-grams, then padding to a multiple of 8.

    Attributes:
        W: tokens of a level.
        N: tokens of an n-gram.
        G: n-grams.
    """

    W: int
    N: int
    G: int

    @property
    def widest(self) -> int:
        """Tokens of a level at first; the window loses one with each level that is filled."""
        return self.W + self.N - 2

    @property
    def window_rows(self) -> int:
        """Rows of the window: the most that any state of filling takes."""
        return max((filled + 1) * (self.widest - filled) for filled in range(self.N - 1))

    @property
    def rows(self) -> int:
        """All rows."""
        return -(-(self.window_rows + self.G * (self.N - 1)) // 8) * 8

    def window(self, filled: Int[Array, " B"]) -> Rows:
        """Return where the window lies: the levels one after the other, as wide as they are by now.

        Args:
            filled: levels filled beside the first.
        """
        width = (self.widest - filled)[:, None]
        row = jnp.arange(self.rows)[None]
        level = row // width
        return Rows(level <= filled[:, None], level, row % width)

    def tree(self, rows: Rows, candidate: Bool[Array, "B R"]) -> dec.Tree:
        """Return how the rows hang together, as in the mask that the authors' README draws.

        A token of the window sees two lines that meet in it: along level 0 up to its own place, then up its place
        through the levels. With W = 3, N = 3, G = 2, levels r a b
        (r is the root) and d e f, n-grams g h and i j::

              r a b d e f g h i j   depth
            r x . . . . . . . . .   0
            a x x . . . . . . . .   1
            b x x x . . . . . . .   2
            d x . . x . . . . . .   1
            e x x . . x . . . . .   2
            f x x x . . x . . . .   3
            g x . . . . . x . . .   1
            h x . . . . . x x . .   2
            i x . . . . . . . x .   1
            j x . . . . . . . x x   2
        """
        row = np.arange(self.rows)
        guess = (row >= self.window_rows) & (row < self.window_rows + self.G * (self.N - 1))
        line, place = np.divmod(row - self.window_rows, self.N - 1)
        along = guess[:, None] & guess & (line[:, None] == line) & (place <= place[:, None])
        parent = np.where(guess & (place > 0), row - 1, 0)

        level, index = rows.level, rows.index
        below = (level[:, None] == 0) & (index[:, None] <= index[:, :, None])
        up = (level[:, None] > 0) & (level[:, None] <= level[:, :, None]) & (index[:, None] == index[:, :, None])
        ahead = rows.ahead[:, None] & rows.ahead[:, :, None] & (below | up)
        visible = ahead | (along | np.eye(len(row), dtype=bool) | (row == 0))[None]
        depth = jnp.where(rows.ahead, level + index, np.where(guess, place + 1, 0)[None])
        count = dec.last_row(rows.ahead | candidate) + 1
        return dec.Tree(jnp.broadcast_to(parent, depth.shape), depth, visible, candidate, count)
