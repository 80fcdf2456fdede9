"""Acceptance: which drafted tokens are kept, and what follows them. Integers and probabilities only; no model here."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from kangaroo_jax.decode.sampling import ACCEPT, TARGET, Cut, Sampling, cut, draw, keys, no_cuts, total


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
    drawn: tuple[Float[Array, "B G V"], Cut],
    logits: Float[Array, "B R V"],
    sampling: Sampling,
    truncate: int,
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
        drawn: logits and cuts that each drafted token was drawn with: q.
        logits: the target's after the newest committed token and after each drafted one; R > G. What is p there is
            found one row after the other, as far as some sequence has accepted.
        sampling: temperature and cuts.
        truncate: as for ``cut``.
        seed: seed of each sequence.
        place: committed length the round started from.

    Returns:
        The number of accepted tokens, and the token to commit after them.
    """
    gamma = drafted.shape[1]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (gamma,), jnp.float32))(keys(seed, place, ACCEPT))
    most = uniform * drawn[1].probability(drawn[0], drafted)  # Less than q.

    def judge(carry: tuple[Array, Array, Array, Cut]) -> tuple[Array, Array, Array, Cut]:
        step, going, accepted, ends = carry
        row = jax.lax.dynamic_index_in_dim(logits, step, axis=1, keepdims=False)
        left = cut(sampling, row, truncate)
        at = jnp.minimum(step, gamma - 1)
        kept = going & (step < count) & (most[:, at] < left.probability(row, drafted[:, at]))
        ends = jax.tree.map(lambda new, old: jnp.where(going, new, old), left, ends)
        return step + 1, kept, accepted + kept.astype(jnp.int32), ends

    start = (jnp.zeros((), jnp.int32), count >= 0, jnp.zeros_like(count), no_cuts(count.shape))
    _, _, accepted, ends = jax.lax.while_loop(lambda carry: carry[1].any(), judge, start)

    def of_row(leaf: Array, row: Int[Array, " B"]) -> Array:
        return jnp.take_along_axis(leaf, row.reshape(-1, *(1,) * (leaf.ndim - 1)), axis=1)[:, 0]

    given, cuts = jax.tree.map(lambda leaf: of_row(leaf, jnp.minimum(accepted, gamma - 1)), drawn)

    def rest(rejected: Array) -> Callable[..., Array]:
        def weigh(logits: Array, given: Array, tokens: Array) -> Array:
            p = ends.weigh(logits, tokens) / ends.total[:, None]
            q = cuts.weigh(given, tokens) / cuts.total[:, None]
            return jnp.maximum(p - jnp.where(rejected[:, None], q, 0.0), 0.0)

        return weigh

    rows, rejected = (of_row(logits, accepted), given), accepted < count
    # Where p and q are equal but for rounding, a rejection may find nothing left.
    rejected &= total(rest(rejected), *rows) > 0
    return accepted, draw(keys(seed, place, TARGET), rest(rejected), *rows)


def _prefix(good: Bool[Array, "B G"], count: Int[Array, " B"]) -> Int[Array, " B"]:
    """Return how many of the first ``count`` entries are true before the first that is not."""
    valid = good & (jnp.arange(good.shape[1])[None] < count[:, None])
    return jnp.cumprod(valid.astype(jnp.int32), axis=1).sum(axis=1, dtype=jnp.int32)
