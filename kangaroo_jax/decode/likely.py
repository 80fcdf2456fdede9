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


def surest(
    weights: Weights, scores: Float[Array, "B V"], others: int = 0
) -> tuple[Int[Array, " B"], Float[Array, " B"], Int[Array, "B K"]]:
    """Return the most likely token of each sequence, its probability, and the tokens that come next.

    The probability is the confidence of a draft (paper, 3.2). Of equally likely ones behind the first there is one.
    """
    if kernels.packs(weights["target"]):
        token, share, lower = kernels.surest(scores[:, None], others)
        return token[:, 0], share[:, 0], lower[:, 0]
    left, following = scores, []
    for _ in range(others):
        left = jnp.where(left >= left.max(-1, keepdims=True), -jnp.inf, left)
        following.append(most_likely(left))
    share = 1.0 / jnp.exp(scores - scores.max(-1, keepdims=True)).sum(-1)
    return most_likely(scores), share, jnp.stack(following, 1) if others else jnp.zeros((len(scores), 0), jnp.int32)
