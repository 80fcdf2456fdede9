"""Key/value caches. Slots are positions: slot s of a row holds absolute position s of that sequence.

Rows of a cache are (head, sequence) pairs folded into one axis, ``[K * B, S, hd]``: the one layout that XLA updates
in place on CPU and GPU for one sequence as for many. Heads come first, so that a split of the rows over devices gives
each some heads of all sequences. A cache is never rolled back or copied: what lies beyond a sequence's length is
masked, and overwritten before it is ever read. Rows of 2 heads and 3 sequences::

    row       0   1   2   3   4   5
    head      0   0   0   1   1   1
    sequence  0   1   2   0   1   2

A single row (one sequence, one key/value head) has no leading axis, ``[S, hd]``: XLA would drop a leading axis of 1
itself, by a bitcast between update and use that costs a copy of the cache at every layer of every step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from kangaroo_jax.model.config import LlamaConfig


class KVCache(struct.PyTreeNode):
    """Keys and values of one attention layer.

    Attributes:
        k: rotated keys, ``[K * B, S, hd]``, or ``[S, hd]`` for a single row.
        v: values, in the same shape.
    """

    k: Float[Array, "*KB S hd"]
    v: Float[Array, "*KB S hd"]

    @property
    def slots(self) -> int:
        """Positions the cache has room for."""
        return self.k.shape[-2]


def init_cache(config: LlamaConfig, batch: int, slots: int, dtype: jnp.dtype, layers: int) -> tuple[KVCache, ...]:
    """Return ``layers`` zeroed caches of ``slots`` positions for ``batch`` sequences.

    Zeros, not uninitialised memory: a NaN in a masked slot would still poison the weighted sum over values.
    """
    rows = batch * config.num_key_value_heads
    shape = (*((rows,) if rows > 1 else ()), slots, config.head_dim)
    return tuple(KVCache(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype)) for _ in range(layers))


def write_cache(
    cache: KVCache, k: Float[Array, "B T K hd"], v: Float[Array, "B T K hd"], start: Int[Array, " B"]
) -> KVCache:
    """Store a block of keys and values at slots ``[start[b], start[b] + T)`` of each sequence b, in place.

    A start without room for the block behind it is clamped: the caller allocates enough slots (``decode.cache_slots``).
    """
    return KVCache(k=_write(cache.k, k, start), v=_write(cache.v, v, start))


def keep_path(cache: KVCache, start: Int[Array, " B"], path: Int[Array, "B T"]) -> KVCache:
    """Move slots ``start[b] + path[b, t]`` of each sequence to ``start[b] + t``, in place.

    After a tree is verified, what follows the committed tokens are the slots of one path through it::

        tree a b c d (c follows a, d follows c), path 0 2 3:  a b c d  ->  a c d .
    """
    batch, length = path.shape
    slots = start[:, None] + path

    def move(buffer: Float[Array, "*KB S hd"]) -> Array:
        split = buffer.reshape(-1, batch, *buffer.shape[-2:])
        if batch == 1:  # XLA:CPU fuses a gather with the write that follows, and then copies the buffer for both.
            pieces = [jax.lax.dynamic_slice_in_dim(split, slots[0, index], 1, axis=2) for index in range(length)]
            rows = jnp.concatenate(pieces, axis=2)
        else:
            rows = jnp.take_along_axis(split, slots[None, :, :, None], axis=2)
        return _write(buffer, rows.transpose(1, 2, 0, 3), start)

    return KVCache(k=move(cache.k), v=move(cache.v))


def fold_heads(x: Float[Array, "B T K hd"]) -> Float[Array, "KB T hd"]:
    """Fold heads and batch into the leading axis, as the cache has them."""
    batch, length, heads, width = x.shape
    return x.transpose(2, 0, 1, 3).reshape(heads * batch, length, width)


def _write(buffer: Float[Array, "*KB S hd"], new: Float[Array, "B T K hd"], start: Int[Array, " B"]) -> Array:
    batch = len(new)
    new = new.astype(buffer.dtype)
    if buffer.ndim == 2:
        return jax.lax.dynamic_update_slice(buffer, new[0, :, 0], (start[0], 0))
    if batch == 1:
        return jax.lax.dynamic_update_slice(buffer, fold_heads(new), (0, start[0], 0))
    # One in-place scatter for sequences of different lengths: vmap would move the batch to the front of the buffer.
    blocks = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(2,),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    split, update = buffer.reshape(-1, batch, *buffer.shape[1:]), new.transpose(0, 2, 1, 3)
    written = jax.lax.scatter(split, start[:, None], update, blocks, unique_indices=True, mode="clip")
    return written.reshape(buffer.shape)
