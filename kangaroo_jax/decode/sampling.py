"""Sampling: logits to a distribution, and draws from it that depend on nothing but a sequence's own seed and place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key, UInt32

TARGET, ACCEPT, DRAFT = 0, 1, 2
"""What a random number is for: the target's own token, acceptance, and (with the step added) a drafted token."""


class Sampling(struct.PyTreeNode):
    """How the tokens of each sequence are drawn; all traced, so that one batch holds sequences with different settings.

    Meanings are those of Hugging Face's logits processors, applied in this order.

    Attributes:
        temperature: divides the logits, ``[B]``; at 0 the most likely token is taken, the first of equals.
        top_k: only the k most likely tokens stay, and what ties with the last of them; the vocabulary's size for all,
            ``[B]``.
        top_p: of those, only the smallest set of most likely tokens stays whose probabilities sum to at least top_p,
            ``[B]``.
        min_p: only tokens stay that are at least min_p times as likely as the most likely one; 0 for all, ``[B]``.
    """

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]


def log_probabilities(sampling: Sampling, logits: Float[Array, "B *T V"], truncate: bool) -> Float[Array, "B *T V"]:
    """Return the log-probabilities tokens are drawn with, ``-inf`` for those that temperature and cuts leave out.

    The most likely token always stays. Tokens that tie with the last one that stays do, too: the result does not
    depend on the order of the vocabulary. At temperature 0 one token is left, with probability 1.

    Args:
        sampling: temperature, top_k, top_p and min_p.
        logits: fp32 logits.
        truncate: whether top_k and top_p are applied; they need a sort, which is not compiled when it is not needed.
    """
    # Settings of a sequence hold for all its positions.
    sampling = jax.tree.map(lambda values: values.reshape(-1, *(1,) * (logits.ndim - 1)), sampling)
    # The maximum goes first: a temperature close to 0 then overflows to -inf, and never to nan.
    scaled = (logits - logits.max(-1, keepdims=True)) / jnp.maximum(sampling.temperature, 1e-30)
    least = jnp.log(sampling.min_p)  # The most likely token is at 0; min_p 0 is -inf.
    if truncate:
        least = jnp.maximum(least, _least_kept(sampling, scaled))
    first = jnp.arange(logits.shape[-1]) == most_likely(logits)[..., None]
    kept = jnp.where(sampling.temperature > 0, scaled >= least, first)
    return jax.nn.log_softmax(jnp.where(kept, scaled, -jnp.inf), axis=-1)


def _least_kept(sampling: Sampling, scaled: Float[Array, "B *T V"]) -> Float[Array, "B *T 1"]:
    """Return the lowest value that top_k and top_p leave in."""
    ranked = jnp.sort(scaled, axis=-1, descending=True)
    last_of_k = jnp.broadcast_to(sampling.top_k - 1, (*ranked.shape[:-1], 1))
    kth = jnp.take_along_axis(ranked, last_of_k, axis=-1)
    probability = jax.nn.softmax(jnp.where(ranked >= kth, ranked, -jnp.inf), axis=-1)
    above = jnp.cumsum(probability, axis=-1) - probability  # Probability of what is more likely.
    last = jnp.maximum(jnp.sum(above < sampling.top_p, axis=-1, keepdims=True) - 1, 0)
    pth = jnp.take_along_axis(ranked, last, axis=-1)
    return jnp.maximum(kth, jnp.where(sampling.top_p < 1, pth, -jnp.inf))


def keys(seed: UInt32[Array, "B 2"], place: Int[Array, " B"], purpose: Int[Array, ""] | int) -> Key[Array, " B"]:
    """Return one key for every sequence: a function of its seed, the committed length a round starts from, and purpose.

    No key is used twice, since lengths only grow; and none depends on the batch around a sequence.
    """

    def key(seed: Array, at: Array) -> Array:
        # One generator by name: the same seed then means the same whatever JAX's default is.
        whole = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(whole, at), purpose)

    return jax.vmap(key)(seed, place)


def draw(key: Key[Array, " B"], log_weights: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Draw one token for every sequence, with probabilities proportional to ``exp(log_weights)``."""
    return jax.vmap(jax.random.categorical)(key, log_weights).astype(jnp.int32)


def most_likely(logits: Float[Array, "... V"]) -> Array:
    """Return the token with the highest logit ``[...]``, the first of equals; the first NaN, if there is one.

    XLA:CPU finds an argmax number by number, at 5 to 7 ns each: for 8 rows of 32,000 more than a millisecond. Looking
    for the maximum, and then for its place, takes a seventh of that.
    """
    return jax.lax.platform_dependent(logits, cpu=_first_maximum, default=_argmax)


def _argmax(logits: Float[Array, "... V"]) -> Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _first_maximum(logits: Float[Array, "... V"]) -> Array:
    size = logits.shape[-1]
    place = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    highest = logits.max(-1, keepdims=True)
    # A NaN comes before all others: its place is a negative number.
    found = jnp.where(logits == highest, place, size - 1)
    found = jnp.where(jnp.isnan(logits), place - size, found).min(-1)
    return jnp.where(found < 0, found + size, found)


def choose(
    sampling: Sampling | None,
    logits: Float[Array, "B V"],
    key: tuple[UInt32[Array, "B 2"], Int[Array, " B"], Int[Array, ""] | int],
    truncate: bool,
) -> tuple[Int[Array, " B"], Float[Array, "B V"] | None]:
    """Return one token for every sequence, and the log-probabilities it was drawn with; None if it is the most likely.

    Args:
        sampling: temperature and cuts; None takes the most likely token of every sequence.
        logits: fp32 logits.
        key: seeds, committed lengths the round started from, and purpose (TARGET, or DRAFT and the step), as in
            ``keys``.
        truncate: as for ``log_probabilities``.
    """
    if sampling is None:
        return most_likely(logits), None
    log_weights = log_probabilities(sampling, logits, truncate)
    return draw(keys(*key), log_weights), log_weights
