"""A pool of n-grams by their first token, on the device: the most recently seen ones of each token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

NONE = -1
"""Token of a place in the pool that holds no n-gram."""


def empty(batch: int, vocab_size: int, most: int, length: int) -> Int[Array, "B V M L"]:
    """Return a pool without n-grams: for each token, ``most`` places for the ``length`` tokens that followed it."""
    return jnp.full((batch, vocab_size, most, length), NONE, jnp.int32)


def find(pool: Int[Array, "B V M L"], first: Int[Array, " B"]) -> tuple[Int[Array, "B M L"], Bool[Array, "B M"]]:
    """Return the n-grams that begin with a token, the latest one last, and which places hold one."""
    found = jax.vmap(lambda own, token: own[token])(pool, first)
    return found, found[..., 0] != NONE


def insert(pool: Int[Array, "B V M L"], grams: Int[Array, "B K N"]) -> Int[Array, "B V M L"]:
    """Put n-grams in, one after the other and in place; of each first token, the ``M`` latest ones stay.

    An n-gram that is there already becomes the latest (least recently used goes first, as in the authors' code)::

        of token a    . . bc de      in: a bc, a fg      of token a    . de bc fg
        of token a    xy zz bc de    in: a fg            of token a    zz bc de fg

    All are put in at once: what one after the other would leave are the M latest different ones.

    Args:
        pool: the pool.
        grams: n-grams of ``L + 1`` tokens; those that begin with ``NONE`` are passed over.
    """
    batch, vocab_size, most, length = pool.shape
    flat = pool.reshape(batch * vocab_size, most, length)
    first, rest = grams[..., 0], grams[..., 1:]
    valid = first != NONE
    # Beyond the pool where there is nothing to put in: such a place is read as empty, and never written.
    place = jnp.where(valid, first + vocab_size * jnp.arange(batch)[:, None], batch * vocab_size)
    old = flat.at[place].get(mode="fill", fill_value=NONE)
    new = jnp.broadcast_to(rest[:, None], (batch, rest.shape[1], *rest.shape[1:]))
    mine = (place[:, :, None] == place[:, None, :]) & valid[:, None, :]
    merged = _latest(jnp.concatenate([old, new], axis=2), jnp.concatenate([old[..., 0] != NONE, mine], axis=2), most)
    # N-grams with the same first token write the same.
    return flat.at[place].set(merged, mode="drop").reshape(pool.shape)


def _latest(items: Int[Array, "B K I L"], there: Bool[Array, "B K I"], most: int) -> Int[Array, "B K M L"]:
    """Return the last ``most`` different ones of the items that are there, in order, at the end of the places."""
    same = (items[:, :, :, None] == items[:, :, None, :]).all(-1)
    later = jnp.triu(jnp.ones_like(same), 1)
    kept = there & ~(same & later & there[:, :, None, :]).any(-1)
    after = kept.sum(-1, keepdims=True) - jnp.cumsum(kept, axis=-1)
    here = kept[..., None] & (most - 1 - after[..., None] == jnp.arange(most)[None, None, None])
    taken = jnp.take_along_axis(items, jnp.argmax(here, axis=2)[..., None], axis=2)
    return jnp.where(here.any(2)[..., None], taken, NONE)
