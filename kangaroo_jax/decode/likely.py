"""The most likely token of each row: found by the native kernels where the target is packed for them, else by XLA."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kangaroo_jax import kernels
from kangaroo_jax.decode.sampling import most_likely
from kangaroo_jax.decode.state import Weights


def first_choices(
    weights: Weights, scores: Float[Array, "B R V"], count: Int[Array, " B"] | None = None
) -> Int[Array, "B R"]:
    """Return the most likely token of each row; rows from ``count`` on are not looked at."""
    return kernels.highest(scores, count) if kernels.packs(weights["target"]) else most_likely(scores)


def surest(weights: Weights, scores: Float[Array, "B V"]) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Return the most likely token of each sequence, and its probability: the confidence of a draft (paper, 3.2)."""
    if kernels.packs(weights["target"]):
        token, share = kernels.surest(scores[:, None])
        return token[:, 0], share[:, 0]
    return most_likely(scores), 1.0 / jnp.exp(scores - scores.max(-1, keepdims=True)).sum(-1)
