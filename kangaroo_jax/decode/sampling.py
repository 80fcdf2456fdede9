"""Sampling: logits to a distribution, and draws from it that depend on nothing but a sequence's own seed and place.

No vocabulary is sorted. What top_k and top_p leave is what is at least some value, the least that is kept, and mostly
that is one of the highest few; where it is not, it is found by bisection. A draw takes three random numbers, whatever
the size of the vocabulary. Sums are added up in an order that is written down here: XLA's own depends on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from kangaroo_jax import kernels

TARGET, ACCEPT, DRAFT = 0, 1, 2
"""What a random number is for: the target's own token, acceptance, and (with the step added) a drafted token."""

NATIVE = 2
"""Value of ``truncate``."""

RANKED = 64
"""Tokens that are looked at one by one, the most likely ones; where a cut leaves more, bisection finds how many."""

_ROWS = 64  # Of the table that a large vocabulary is laid out as.
_INFINITY = 0x7F800000  # Its bits; those of what is not negative are in the order of the numbers.


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


class Cut(struct.PyTreeNode):
    """What temperature and cuts leave of logits: with these, the distribution that a token is drawn from.

    The most likely token always stays. Tokens that tie with the last one that stays do, too: the result does not
    depend on the order of the vocabulary. At temperature 0 one token is left, with probability 1.

    Attributes:
        factor: 1 / temperature, at most 1e30; a quotient is not the same wherever XLA computes it, ``[B, *T]``.
        highest: highest logit, ``[B, *T]``.
        least: lowest value of ``(logit - highest) * factor`` that stays, ``[B, *T]``.
        only: the one token that stays at temperature 0; elsewhere -1, ``[B, *T]``.
        total: sum of ``weights``, ``[B, *T]``.
    """

    factor: Float[Array, " *S"]
    highest: Float[Array, " *S"]
    least: Float[Array, " *S"]
    only: Int[Array, " *S"]
    total: Float[Array, " *S"]

    def weights(self, logits: Float[Array, "*S V"]) -> Float[Array, "*S V"]:
        """Return what the probability of each token is proportional to; 1 for the most likely one."""
        return self.weigh(logits, _tokens(logits))

    def probability(self, logits: Float[Array, "*S V"], token: Int[Array, " *S"]) -> Float[Array, " *S"]:
        """Return the probability of one token of each."""
        logit = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
        return self.weigh(logit[..., None], token[..., None])[..., 0] / self.total

    def weigh(self, logits: Float[Array, "*S N"], tokens: Int[Array, "*S N"]) -> Float[Array, "*S N"]:
        """Return the weights of some tokens with these logits."""
        return jnp.exp(self.scaled(logits, tokens))

    def scaled(self, logits: Float[Array, "*S N"], tokens: Int[Array, "*S N"]) -> Float[Array, "*S N"]:
        """Return the logarithms of the weights, ``-inf`` for what is left out."""
        each = jax.tree.map(lambda leaf: leaf[..., None], self)
        # The maximum goes first: a temperature close to 0 then overflows to -inf, and never to nan.
        scaled = (logits - each.highest) * each.factor
        kept = jnp.where(each.only < 0, scaled >= each.least, tokens == each.only)
        return jnp.where(kept, scaled, -jnp.inf)


def cut(sampling: Sampling, logits: Float[Array, "B *T V"], truncate: int) -> Cut:
    """Return what tokens are drawn with; settings of a sequence hold for all its positions.

    Args:
        sampling: temperature, top_k, top_p and min_p.
        logits: fp32 logits.
        truncate: whether top_k and top_p are applied; what finds them is not compiled when it is not needed. NATIVE:
            with the native kernels where more than a few tokens stay.
    """
    shape, each = logits.shape[:-1], math.prod(logits.shape[1:-1])
    rows = jax.tree.map(lambda values: jnp.repeat(jnp.broadcast_to(values, shape[:1]), each), sampling)
    found = _cut(rows, logits.reshape(-1, logits.shape[-1]), truncate)
    return jax.tree.map(lambda leaf: leaf.reshape(shape), found)


def no_cuts(shape: tuple[int, ...]) -> Cut:
    """Return cuts that hold nothing yet."""
    real = jnp.zeros(shape, jnp.float32)
    return Cut(real, real, real, jnp.zeros(shape, jnp.int32), real)


def log_probabilities(sampling: Sampling, logits: Float[Array, "B *T V"], truncate: int) -> Float[Array, "B *T V"]:
    """Return the log-probabilities tokens are drawn with, ``-inf`` for what is left out; arguments as for ``cut``."""
    left = cut(sampling, logits, truncate)
    return left.scaled(logits, _tokens(logits)) - jnp.log(left.total)[..., None]


def _cut(sampling: Sampling, logits: Float[Array, "B V"], truncate: int) -> Cut:
    factor = 1.0 / jnp.maximum(sampling.temperature, jnp.float32(1e-30))
    columns = _fold(jnp.maximum, _table(logits, -jnp.inf))
    highest = _all(jnp.maximum, columns, -jnp.inf)
    greedy, nothing = sampling.temperature <= 0, jnp.full(len(logits), -1, jnp.int32)
    only = jax.lax.cond(greedy.any(), lambda: jnp.where(greedy, most_likely(logits), nothing), lambda: nothing)
    least = jnp.log(sampling.min_p)  # The most likely token is at 0; min_p 0 is -inf.
    if truncate:
        least = jnp.maximum(least, _least_kept(sampling, factor, highest, logits, columns, truncate))
    left = Cut(factor, highest, least, only, jnp.ones_like(highest))
    return left.replace(total=_total(left.weights(logits)))


def _least_kept(
    sampling: Sampling,
    factor: Float[Array, " B"],
    highest: Float[Array, " B"],
    logits: Float[Array, "B V"],
    columns: Float[Array, "B C"],
    truncate: int,
) -> Float[Array, " B"]:
    """Return the lowest value of ``(logit - highest) * factor`` that top_k and top_p leave in.

    The k most likely tokens lie in those k columns of the table whose highest ones are highest: in the others there is
    nothing above the lowest of these. So a few columns hold the ``RANKED`` most likely tokens, in whose order both cuts
    are read off. A sequence whose cuts leave more is searched as a whole.
    """
    size = logits.shape[1]

    def scaled(values: Float[Array, "B N"]) -> Float[Array, "B N"]:
        return (values - highest[:, None]) * factor[:, None]

    near = logits
    if columns.shape[1] > RANKED:
        places = jax.lax.top_k(columns, RANKED)[1]
        near = jnp.take_along_axis(_table(logits, -jnp.inf), places[:, None], axis=2).reshape(len(logits), -1)
    ranked = scaled(jax.lax.top_k(near, min(RANKED, size))[0])
    last = ranked.shape[1] - 1
    few, all_of_them, open_ended = sampling.top_k <= last + 1, sampling.top_k >= size, sampling.top_p >= 1

    def at(place: Int[Array, " B"]) -> Float[Array, " B"]:
        return jnp.take_along_axis(ranked, jnp.clip(place, 0, last)[:, None], axis=1)[:, 0]

    kth = jnp.where(few, at(sampling.top_k - 1), -jnp.inf)
    counted = few | all_of_them

    def nucleus() -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
        values = scaled(logits)
        wanted = sampling.top_p * _total(jnp.where(values >= kth[:, None], jnp.exp(values), 0.0))
        upto = _upto(jnp.where(ranked >= kth[:, None], jnp.exp(ranked), 0.0))
        pth = at((upto < wanted[:, None]).sum(-1, dtype=jnp.int32))
        reached = open_ended | (upto[:, -1] >= wanted)
        return jnp.where(open_ended, kth, jnp.maximum(kth, pth)), counted & reached

    least, settled = jax.lax.cond(open_ended.all(), lambda: (kth, counted), nucleus)
    if size <= RANKED:
        return least

    def search() -> Float[Array, " B"]:
        if truncate == NATIVE:
            count = sampling.top_k.astype(jnp.float32)
            at_last = (kth, ranked[:, -1], counted, ~settled)
            return kernels.search(logits, highest, factor, count, sampling.top_p, *at_last)
        return _search(sampling, factor, highest, logits, ranked, kth, counted, ~settled)

    return jnp.where(settled, least, jax.lax.cond(settled.all(), lambda: least, search))


def _search(
    sampling: Sampling,
    factor: Float[Array, " B"],
    highest: Float[Array, " B"],
    logits: Float[Array, "B V"],
    ranked: Float[Array, "B K"],
    kth: Float[Array, " B"],
    counted: Bool[Array, " B"],
    sought: Bool[Array, " B"],
) -> Float[Array, " B"]:
    """Return the same as ``_least_kept`` for the sequences whose cuts leave more than what is ranked.

    Args:
        sampling: temperature, top_k, top_p and min_p.
        factor: as in ``Cut``.
        highest: highest logit.
        logits: all logits.
        ranked: the highest values of ``(logit - highest) * factor``.
        kth: the lowest one that top_k leaves in, where it is known.
        counted: where it is.
        sought: the sequences; for others something is returned.
    """

    def find(row: tuple[Any, ...]) -> Float[Array, ""]:
        settings, factor, highest, logits, ranked, known, counted, _ = row
        values = (logits - highest) * factor
        count = settings.top_k.astype(jnp.float32)

        def of_k() -> Float[Array, ""]:
            return _reach(values, jnp.ones_like, count, ranked, jnp.full_like(count, jnp.inf))

        kth = jax.lax.cond(counted, lambda: known, of_k)

        def of_p() -> Float[Array, ""]:
            mass = _total(jnp.where(values >= kth, jnp.exp(values), 0.0)[None])[0]
            wanted = settings.top_p * mass
            # What is less likely than this is not all that top_p leaves out, even if it were the whole vocabulary.
            far = jnp.log(len(values) / (mass - wanted)) + 0.01
            return jnp.maximum(kth, _reach(values, jnp.exp, wanted, ranked, far))

        return jax.lax.cond(settings.top_p < 1, of_p, lambda: kth)

    def one_by_one(*rows: Any) -> Float[Array, " B"]:
        # A row stays in the cache of a core.
        return jax.lax.map(lambda row: jax.lax.cond(row[-1], find, lambda row: row[-3], row), rows)

    def together(*rows: Any) -> Float[Array, " B"]:
        return jax.vmap(lambda *row: find(row))(*rows)

    rows = (sampling, factor, highest, logits, ranked, kth, counted, sought)
    return jax.lax.platform_dependent(*rows, cpu=one_by_one, default=together)


def _reach(
    values: Float[Array, " V"],
    weigh: Callable[[Array], Array],
    wanted: Float[Array, ""],
    ranked: Float[Array, " K"],
    far: Float[Array, ""],
) -> Float[Array, ""]:
    """Return how far down the values have to be taken until what they weigh sums to what is wanted.

    Bisection over the bits of ``-value``. It ends before the last bit where what lies between weighs less than one and
    a half times the lightest that can lie there: that is one value alone.

    Args:
        values: at most 0.
        weigh: returns the weight of values, lower for lower ones.
        wanted: the sum.
        ranked: the highest values.
        far: a distance from 0 within which the values weigh enough, if all of them do.
    """

    def value(bits: Int[Array, ""]) -> Float[Array, ""]:
        return -jax.lax.bitcast_convert_type(bits, jnp.float32)

    def bits(distance: Float[Array, ""]) -> Int[Array, ""]:
        return jax.lax.bitcast_convert_type(jnp.abs(distance), jnp.int32)

    def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
        low, high, below, above = carry
        return (high - low > 1) & (above - below >= 1.5 * weigh(value(high)))

    def halve(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        low, high, below, above = carry
        middle = low + (high - low) // 2
        found = sum_from(value(middle))
        enough = found >= wanted
        return (
            jnp.where(enough, low, middle),
            jnp.where(enough, middle, high),
            jnp.where(enough, below, found),
            jnp.where(enough, found, above),
        )

    weights = weigh(values)

    def sum_from(start: Float[Array, ""]) -> Float[Array, ""]:
        return _total(jnp.where(values >= start, weights, 0.0)[None])[0]

    below = _total(jnp.where(ranked > ranked[-1], weigh(ranked), 0.0)[None])[0]
    beyond = below < wanted
    low, below = jnp.where(beyond, bits(ranked[-1]) - 1, -1), jnp.where(beyond, below, 0.0)
    high = jnp.maximum(bits(far), low + 1)
    return value(jax.lax.while_loop(unfinished, halve, (low, high, below, jnp.full_like(below, jnp.inf)))[1])


def _table(values: Float[Array, "B N"], fill: float) -> Float[Array, "B rows C"]:
    """Lay values out in rows, one after the other, the last one filled up; a few values are one column."""
    size = values.shape[1]
    rows = min(_ROWS, size)
    return jnp.pad(values, ((0, 0), (0, -size % rows)), constant_values=fill).reshape(len(values), rows, -1)


def _fold(combine: Callable[[Array, Array], Array], table: Float[Array, "B rows C"]) -> Float[Array, "B C"]:
    """Combine the rows: 16 that are as far apart as can be, one after the other, then what they were combined to."""
    batch, rows, width = table.shape
    while rows > 1:
        # XLA:CPU makes one loop of so many, and of 64 one for each.
        parts = 16 if rows % 16 == 0 else rows
        rows //= parts
        table = table.reshape(batch, parts, rows * width)
        found = table[:, 0]
        for part in range(1, parts):
            found = combine(found, table[:, part])
        table = found
    return table.reshape(batch, width)


def _all(combine: Callable[[Array, Array], Array], values: Float[Array, "B N"], fill: float) -> Float[Array, " B"]:
    """Combine each sequence's values, in an order that depends on their number alone."""
    while values.shape[1] > 1:
        values = _fold(combine, _table(values, fill))
    return values[:, 0]


def _total(values: Float[Array, "B N"]) -> Float[Array, " B"]:
    return _all(jnp.add, values, 0.0)


def _tokens(logits: Float[Array, "*S V"]) -> Int[Array, "*S V"]:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


def _upto(values: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Return the sum of each value and those before it, for a few; it grows only where a value is above 0."""
    size = values.shape[1]
    reached = jnp.tri(size, dtype=bool).T[None]
    return _fold(jnp.add, jnp.where(reached, values[:, :, None], 0.0))


def keys(seed: UInt32[Array, "B 2"], place: Int[Array, " B"], purpose: Int[Array, ""] | int) -> Key[Array, " B"]:
    """Return one key for every sequence: a function of its seed, the committed length a round starts from, and purpose.

    No key is used twice, since lengths only grow; and none depends on the batch around a sequence.
    """

    def key(seed: Array, at: Array) -> Array:
        # One generator by name: the same seed then means the same whatever JAX's default is.
        whole = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(whole, at), purpose)

    return jax.vmap(key)(seed, place)


def total(weigh: Callable[..., Float[Array, "B V"]], *logits: Float[Array, "B V"]) -> Float[Array, " B"]:
    """Return the sum of all tokens' weights; arguments as for ``draw``."""
    return _total(weigh(*logits, _tokens(logits[0])))


def draw(
    key: Key[Array, " B"], weigh: Callable[..., Float[Array, "B N"]], *logits: Float[Array, "B V"]
) -> Int[Array, " B"]:
    """Draw one token for every sequence, with probabilities proportional to the weights; one of weight 0 never.

    The inverse of the cumulative sum, in the table: a column, found in the table of the columns' sums in the same way,
    then a row in it. Each step has a random number of its own, of 23 bits, so that each bound between two of at most 64
    probabilities is off by 2^-23 of what they sum to: for a vocabulary of 128,256, less than 1e-5 in total variation.

    Args:
        key: of each sequence.
        weigh: returns the weights of some tokens, given their logits, as many arrays as follow, and their ids.
        *logits: logits of all tokens.
    """
    size = logits[0].shape[1]
    sums = [weigh(*logits, _tokens(logits[0]))]
    while sums[-1].shape[1] > _ROWS:
        sums.append(_fold(jnp.add, _table(sums[-1], 0.0)))
    uniform = jax.vmap(lambda each: jax.random.uniform(each, (len(sums),), jnp.float32))(key)
    found = jnp.zeros(len(uniform), jnp.int32)
    for step, level in enumerate(reversed(sums)):
        table = _table(level, 0.0)
        rows, width = table.shape[1:]
        tokens = found[:, None] + jnp.arange(rows, dtype=jnp.int32)[None] * width
        if level is sums[0]:
            # Weighed once more: written down for this, the weights of all would take longer than adding them up.
            near = (jnp.take_along_axis(each, jnp.minimum(tokens, size - 1), axis=1) for each in logits)
            column = jnp.where(tokens < size, weigh(*near, tokens), 0.0)
        else:
            column = jnp.take_along_axis(table, found[:, None, None], axis=2)[:, :, 0]
        upto = _upto(column)
        row = (upto <= upto[:, -1:] * uniform[:, step, None]).sum(-1, dtype=jnp.int32)
        found = jnp.minimum(row, rows - 1) * width + found
    return found


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
    truncate: int,
) -> tuple[Int[Array, " B"], tuple[Float[Array, "B V"], Cut] | None]:
    """Return one token for every sequence, and logits and cut that it was drawn with; None if it is the most likely.

    Args:
        sampling: temperature and cuts; None takes the most likely token of every sequence.
        logits: fp32 logits.
        key: seeds, committed lengths the round started from, and purpose (TARGET, or DRAFT and the step), as in
            ``keys``.
        truncate: as for ``cut``.
    """
    if sampling is None:
        return most_likely(logits), None
    left = cut(sampling, logits, truncate)
    return draw(keys(*key), left.weigh, logits), (logits, left)
