"""Key/value caches. Slots are positions: slot s of a row holds absolute position s of that sequence.

Rows of a cache are (sequence, head) pairs folded into one axis, ``[B * K, S, hd]``: the one layout that XLA updates
in place on CPU and GPU for one sequence as for many. A cache is never rolled back or copied: what lies beyond a
sequence's length is masked, and overwritten before it is ever read.

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
        k: rotated keys, ``[B * K, S, hd]``, or ``[S, hd]`` for a single row.
        v: values, in the same shape.
    """

    k: Float[Array, "*BK S hd"]
    v: Float[Array, "*BK S hd"]

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

    ``lax.dynamic_update_slice`` clamps its start: the caller allocates enough slots (see ``decode.cache_slots``).
    """
    return KVCache(k=_write(cache.k, k, start), v=_write(cache.v, v, start))


def keep_path(cache: KVCache, start: Int[Array, " B"], path: Int[Array, "B T"]) -> KVCache:
    """Move slots ``start[b] + path[b, t]`` of each sequence to ``start[b] + t``, in place.

    After a tree is verified, what follows the committed tokens are the slots of one path through it::

        tree a b c d (c follows a, d follows c), path 0 2 3:  a b c d  ->  a c d .
    """
    batch, length = path.shape
    slots = start[:, None] + path

    def move(buffer: Float[Array, "*BK S hd"]) -> Array:
        split = buffer.reshape(batch, -1, *buffer.shape[-2:])
        if batch == 1:  # XLA:CPU fuses a gather with the write that follows, and then copies the buffer for both.
            pieces = [jax.lax.dynamic_slice_in_dim(split, slots[0, index], 1, axis=2) for index in range(length)]
            rows = jnp.concatenate(pieces, axis=2)
        else:
            rows = jnp.take_along_axis(split, slots[:, None, :, None], axis=2)
        return _write(buffer, rows.transpose(0, 2, 1, 3), start)

    return KVCache(k=move(cache.k), v=move(cache.v))


def fold_heads(x: Float[Array, "B T K hd"]) -> Float[Array, "BK T hd"]:
    """Fold batch and heads into the leading axis, as the cache has them."""
    batch, length, heads, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch * heads, length, width)


def _write(buffer: Float[Array, "*BK S hd"], new: Float[Array, "B T K hd"], start: Int[Array, " B"]) -> Array:
    batch, heads = new.shape[0], new.shape[2]
    rows = fold_heads(new).astype(buffer.dtype)
    if buffer.ndim == 2:
        return jax.lax.dynamic_update_slice(buffer, rows[0], (start[0], 0))
    if batch == 1:
        return jax.lax.dynamic_update_slice(buffer, rows, (0, start[0], 0))
    # One in-place scatter for sequences of different lengths.
    split = buffer.reshape(batch, heads, *buffer.shape[1:])
    update = jax.vmap(lambda row, block, at: jax.lax.dynamic_update_slice(row, block, (0, at, 0)))
    return update(split, rows.reshape(batch, heads, *rows.shape[1:]), start).reshape(buffer.shape)
