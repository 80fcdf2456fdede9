"""Acceptance: which drafted tokens are kept, and what follows them. Integers and probabilities only; no model here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from kangaroo_jax.decode.sampling import ACCEPT, TARGET, draw, keys


def accept_greedy(drafted: Int[Array, "B G"], count: Int[Array, " B"], target: Int[Array, "B R"]) -> Int[Array, " B"]:
    """Return the length of the longest prefix of the draft that equals the target's own choices.

    The round then commits the accepted tokens and one of the target's::

        drafted a b c      target a b x y      accepted 2, committed a b x

    Args:
        drafted: drafted tokens.
        count: valid drafted tokens of each row.
        target: the target's argmax after the newest committed token and after each drafted one; R > G.
    """
    return _prefix(drafted == target[:, : drafted.shape[1]], count)


def accept_sampled(
    drafted: Int[Array, "B G"],
    count: Int[Array, " B"],
    log_q: Float[Array, "B G V"],
    log_p: Float[Array, "B R V"],
    seed: UInt32[Array, "B 2"],
    place: Int[Array, " B"],
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Accept drafted tokens with probability ``min(1, p / q)``, then draw the token that follows the accepted ones.

    After a rejection that token comes from ``norm(max(0, p - q))``, after a draft accepted whole from ``p``; what a
    round commits is then distributed as if every token had been drawn from p (Leviathan et al. 2023, appendix A.1)::

        p  .5 .3 .2     drafted 1 (q .6): kept with probability .3 / .6
        q  .2 .6 .2     rejected: the next token is 0, the one token that q gives too little

    Args:
        drafted: drafted tokens, drawn from q.
        count: valid drafted tokens of each row.
        log_q: log-probabilities each drafted token was drawn with.
        log_p: the target's log-probabilities after the newest committed token and after each drafted one; R > G.
        seed: seed of each sequence.
        place: committed length the round started from.

    Returns:
        The number of accepted tokens, and the token to commit after them.
    """
    gamma = drafted.shape[1]
    chosen = drafted[:, :, None]
    ratio = (
        jnp.take_along_axis(log_p[:, :gamma], chosen, axis=-1) - jnp.take_along_axis(log_q, chosen, axis=-1)
    ).squeeze(-1)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (gamma,)))(keys(seed, place, ACCEPT))
    accepted = _prefix(jnp.log(uniform) < ratio, count)

    p = jnp.exp(jnp.take_along_axis(log_p, accepted[:, None, None], axis=1)[:, 0])
    q = jnp.exp(jnp.take_along_axis(log_q, jnp.minimum(accepted, gamma - 1)[:, None, None], axis=1)[:, 0])
    left = jnp.maximum(p - jnp.where((accepted < count)[:, None], q, 0.0), 0.0)
    # Where p and q are equal but for rounding, a rejection may find nothing left.
    left = jnp.where(left.sum(-1, keepdims=True) > 0, left, p)
    return accepted, draw(keys(seed, place, TARGET), jnp.log(left))


def _prefix(good: Bool[Array, "B G"], count: Int[Array, " B"]) -> Int[Array, " B"]:
    """Return how many of the first ``count`` entries are true before the first that is not."""
    valid = good & (jnp.arange(good.shape[1])[None] < count[:, None])
    return jnp.cumprod(valid.astype(jnp.int32), axis=1).sum(axis=1, dtype=jnp.int32)
