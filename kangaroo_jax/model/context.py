"""Where a block of tokens stands: positions, cache slots, and which slots each token sees. The caller builds it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, Shaped


class Context(struct.PyTreeNode):
    """What a caller says of a block of T tokens; ``line`` and ``branch`` make them.

    Attributes:
        positions: absolute position of each token, ``[B, T]``.
        start: slot of the first one; the others follow in consecutive slots, ``[B]``.
        keys: position of what each slot holds, ``[B, S]``, or ``[1, S]`` where it is the same for all sequences.
        visible: which slots each token sees, itself included; a sliding window comes on top, ``[B, T, S]``.
        count: how many tokens of each sequence matter, counted from the first, ``[B]``; None is all. What becomes of
            the others, and of their slots, is not said: native kernels leave them out, XLA computes them.
        twins: slots that the tokens would be in if they followed what they see, if that is not so for all, ``[B, T]``.
            Native kernels add up in that order, so that a token's bits do not depend on its slot.
    """

    positions: Int[Array, "B T"]
    start: Int[Array, " B"]
    keys: Int[Array, "#B S"]
    visible: Bool[Array, "B T S"]
    count: Int[Array, " B"] | None = None
    twins: Int[Array, "B T"] | None = None

    def mask(self, sliding_window: int | None) -> Bool[Array, "B T S"]:
        """Return which slots each token sees in a layer with this window.

        Positions 2 and 3 with a window of 2, which is the token itself and one before::

            slot        0 1 2 3 4
            position 2  . x x . .
            position 3  . . x x .
        """
        if sliding_window is None:
            return self.visible
        return self.visible & (self.keys[:, None, :] > self.positions[:, :, None] - sliding_window)


def line(positions: Int[Array, "B T"], slots: int | None, count: Int[Array, " B"] | None = None) -> Context:
    """Return the context of tokens that follow each other: each sees every slot up to its own position.

    Positions 2 and 3, and a cache of five slots (x = visible)::

        slot        0 1 2 3 4
        position 2  x x x . .
        position 3  x x x x .

    Args:
        positions: consecutive within a sequence; a token's slot is its position.
        slots: of the caches, or None where there are none: the block then sees itself alone.
        count: as in ``Context``.
    """
    keys = positions if slots is None else jnp.arange(slots)[None]
    return Context(positions, positions[:, 0], keys, keys[:, None, :] <= positions[:, :, None], count)


def branch(
    root: Int[Array, " B"],
    depth: Int[Array, "B R"],
    seen: Bool[Array, "B R R"],
    slots: int,
    rows: tuple[int, int] | None = None,
) -> Context:
    """Return the context of a tree of tokens, or of some of its rows: each sees all before the tree and its ancestors.

    Row r of the tree goes to slot ``root + r``, whatever its position, ``root + depth[r]``. Slots 0 and 1 are the past,
    a the root at position 2, b and c two tokens at position 3, d one that follows c::

        slot          0 1 2 3 4 5
        a  position 2 x x x . . .
        b  position 3 x x x x . .
        c  position 3 x x x . x .
        d  position 4 x x x . x x

    Args:
        root: position and slot of the root.
        depth: distance of each row from the root.
        seen: which rows each row sees: itself and its ancestors.
        slots: of the caches.
        rows: the first row and one past the last that are in the block, where the rows before it are in the caches
            already; default: the whole tree.
    """
    first, end = rows or (0, depth.shape[1])
    positions = root[:, None] + depth
    keys = _put(jnp.broadcast_to(jnp.arange(slots), (len(root), slots)), positions, root)
    before = jnp.arange(slots)[None] < root[:, None]
    visible = jnp.broadcast_to(before[:, None], (len(root), end - first, slots))
    return Context(positions[:, first:end], root + first, keys, _put(visible, seen[:, first:end], root))


def fork(
    position: Int[Array, " B"],
    root: Int[Array, " B"],
    others: int,
    slots: int,
    count: Int[Array, " B"] | None = None,
) -> Context:
    """Return the context of the last token of a line, and of others behind it that follow the line's root.

    Each of these goes to a slot of its own, and sees what is before it in the text, and itself. Slot 1 is the root, 2
    and 3 the line, d its last token, x and y two that may stand in the place of what is in slot 2::

        slot          0 1 2 3 4 5
        d  position 3 x x x x . .
        x  position 2 x x . . x .
        y  position 2 x x . . . x

    Args:
        position: position and slot of the line's last token.
        root: of the root.
        others: tokens behind it.
        slots: of the caches.
        count: as in ``Context``.
    """
    slot, first = jnp.arange(slots)[None], jnp.arange(1 + others)[None] == 0
    own = position[:, None] + jnp.arange(1 + others)[None]
    positions = jnp.where(first, position[:, None], root[:, None] + 1)
    before = jnp.where(first, position[:, None], root[:, None])
    visible = (slot[:, None] <= before[:, :, None]) | (slot[:, None] == own[:, :, None])
    keys = jnp.where(slot > position[:, None], root[:, None] + 1, slot)
    return Context(positions, position, keys, visible, count, positions)


def _put(rows: Shaped[Array, "B *X S"], block: Shaped[Array, "B *X T"], start: Int[Array, " B"]) -> Array:
    """Write a block of T values along the last axis of each row, from the row's own start on."""
    return jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice_in_dim(row, new, at, axis=-1))(rows, block, start)
