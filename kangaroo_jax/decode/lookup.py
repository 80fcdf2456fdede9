"""Tokens that are looked up: what followed the newest ones where they stood before in the text."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int


def look_up(
    tokens: Int[Array, "B S"], length: Int[Array, " B"], size: int, most: int
) -> tuple[Int[Array, "B G"], Int[Array, " B"]]:
    """Return what followed the newest ``size`` tokens of each text in the last place where they stood before.

    As prompt lookup does it (Saxena 2023; LLMA, arXiv 2304.04487), but from the last place, and for one size. Where
    the text ends, it goes on as if it repeated itself from there::

        text a b c d a b e f a b, size 2, most 3    drafted e f a
        text a b b b b, size 2, most 3              drafted b b b

    Args:
        tokens: texts.
        length: their lengths.
        size: tokens that must be the same, at least 1.
        most: tokens to return.

    Returns:
        The tokens, and how many of them are valid: all, or 0 where there is no such place.
    """
    place, end = jnp.arange(tokens.shape[1])[None], length[:, None] - 1
    same = (place < end) & (place >= size - 1)
    for back in range(size):
        token = jnp.take_along_axis(tokens, jnp.maximum(end - back, 0), axis=1)
        earlier = jnp.pad(tokens, ((0, 0), (back, 0)))[:, : tokens.shape[1]]
        same &= earlier == token
    last = jnp.where(same, place, -1).max(1)
    period = jnp.maximum(end[:, 0] - last, 1)[:, None]
    after = last[:, None] + 1 + jnp.arange(most)[None] % period
    found = jnp.take_along_axis(tokens, jnp.minimum(after, tokens.shape[1] - 1), axis=1)
    return found, jnp.where(last < 0, 0, most).astype(jnp.int32)
