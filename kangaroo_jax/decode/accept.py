"""Acceptance: which drafted tokens the target agrees with. Integers only; no model here."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int


def accept_greedy(drafted: Int[Array, "B G"], count: Int[Array, " B"], target: Int[Array, "B R"]) -> Int[Array, " B"]:
    """Return the length of the longest prefix of the draft that equals the target's own choices.

    The round then commits the accepted tokens and one of the target's::

        drafted a b c      target a b x y      accepted 2, committed a b x

    Args:
        drafted: drafted tokens.
        count: valid drafted tokens of each row.
        target: the target's argmax after the newest committed token and after each drafted one; R > G.
    """
    agrees = (drafted == target[:, : drafted.shape[1]]) & (jnp.arange(drafted.shape[1]) < count[:, None])
    return jnp.cumprod(agrees.astype(jnp.int32), axis=1).sum(axis=1, dtype=jnp.int32)
