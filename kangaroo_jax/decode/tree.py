"""Trees of drafted tokens: how their rows hang together, and which path through them the target agrees with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int


class Tree(struct.PyTreeNode):
    """How the rows of a verification hang together, when they are more than one line of tokens.

    Row 0 is the newest committed token, the root. A row that is no candidate is computed, and never committed.

    Attributes:
        parent: row that each row follows; that of the root, and of rows that are none, is 0, ``[B, R]``.
        depth: distance from the root, ``[B, R]``.
        visible: which rows each row sees: itself and its ancestors, ``[B, R, R]``.
        candidate: rows that hold a drafted token; never the root, ``[B, R]``.
        count: rows that matter, counted from the first, ``[B]``.
    """

    parent: Int[Array, "B R"]
    depth: Int[Array, "B R"]
    visible: Bool[Array, "B R R"]
    candidate: Bool[Array, "B R"]
    count: Int[Array, " B"]


def tree_of(parent: Int[Array, "B R"], depth: Int[Array, "B R"], candidate: Bool[Array, "B R"], deepest: int) -> Tree:
    """Return the tree in which each row follows its parent; parents come before their children.

    Args:
        parent: row that each row follows.
        depth: distance from the root.
        candidate: rows that hold a drafted token.
        deepest: bound of ``depth``.
    """
    rows = parent.shape[1]
    visible = jnp.broadcast_to(jnp.eye(rows, dtype=bool), (*parent.shape, rows))
    ancestor = parent
    for _ in range(deepest):
        visible |= jax.nn.one_hot(ancestor, rows, dtype=bool)
        ancestor = jnp.take_along_axis(parent, ancestor, axis=1)
    return Tree(parent, depth, visible, candidate, last_row(candidate) + 1)


def last_row(marked: Bool[Array, "B R"]) -> Int[Array, " B"]:
    """Return the last marked row of each sequence, and 0 where there is none."""
    return jnp.where(marked, jnp.arange(marked.shape[1])[None], 0).max(1)


def accept_tree(
    drafted: Int[Array, "B R1"], tree: Tree, target: Int[Array, "B R"], gamma: int
) -> tuple[Int[Array, " B"], Int[Array, "B G1"]]:
    """Return the longest path of drafted tokens that equals the target's own choices.

    A row is right if the target chooses its token after its parent, and accepted if it and all its ancestors are right.
    Of several longest paths, which hold the same tokens, the first counts::

        rows      0 root   1 a (after 0)   2 b (after 0)   3 c (after 2)
        target    b        .               c               x
        accepted  2, path 0 2 3, committed b c x

    Args:
        drafted: tokens of rows 1 to R - 1.
        tree: how the rows hang together.
        target: the target's argmax after each row.
        gamma: bound of the tree's depth.

    Returns:
        The number of accepted tokens, and their rows in order, the root first; the last one repeated beyond its end.
    """
    tokens = jnp.pad(drafted, ((0, 0), (1, 0)))
    right = (tokens == jnp.take_along_axis(target, tree.parent, axis=1)) & tree.candidate
    right = right.at[:, 0].set(True)
    accepted = (right[:, None, :] | ~tree.visible).all(-1)
    last = jnp.argmax(jnp.where(accepted, tree.depth, -1), axis=1)
    count = jnp.take_along_axis(tree.depth, last[:, None], axis=1)
    seen = jnp.take_along_axis(tree.visible, last[:, None, None], axis=1)
    at = jnp.minimum(jnp.arange(gamma + 1)[None], count)
    path = jnp.argmax(seen & (tree.depth[:, None, :] == at[:, :, None]), axis=-1)
    return count[:, 0], path.astype(jnp.int32)
