"""Sampling: temperature and cuts against a float64 reference, draws that depend on seed and place alone, acceptance."""

from __future__ import annotations

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo_jax import decode as dec
from kangaroo_jax.decode.sampling import ACCEPT, DRAFT, TARGET, choose, draw, keys

V = 11
DRAWS = 200_000
INF = float("inf")

log_probabilities = jax.jit(dec.log_probabilities, static_argnums=2)
accept = jax.jit(dec.accept_sampled, static_argnums=5)
cut = jax.jit(dec.cut, static_argnums=2)
# Steps of 1/8 are exact in fp32, and ties are frequent.
STEPS = st.integers(-300, 300).map(lambda step: step / 8)
LOGITS = st.lists(st.one_of(STEPS, st.integers(0, 4)), min_size=V, max_size=V)


def fp32(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(least, most).map(lambda value: float(np.float32(value)))


def sampling(temperature: float = 1.0, top_k: int = V, top_p: float = 1.0, min_p: float = 0.0) -> dec.Sampling:
    temperature, top_p, min_p = (np.array([value], np.float32) for value in (temperature, top_p, min_p))
    return dec.Sampling(temperature, np.array([top_k], np.int32), top_p, min_p)


def logs(probabilities: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, np.float32))


def itself(weights: Any, tokens: Any) -> Any:
    return weights


def seeds(count: int, word: int = 0) -> Any:
    return np.stack([np.full(count, word), np.arange(count)], axis=1).astype(np.uint32)


@given(
    logits=LOGITS,
    absent=st.sets(st.integers(0, V - 2)),
    temperature=fp32(1e-3, 10),
    top_k=st.integers(1, V),
    top_p=st.one_of(st.just(1.0), fp32(1e-6, 1)),
    min_p=st.one_of(st.just(0.0), fp32(1e-6, 1)),
)
def test_log_probabilities_are_those_of_the_reference(
    reference: Any, logits: list[float], absent: set[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    scores = np.where([index in absent for index in range(V)], -INF, np.array(logits, np.float32))
    got = np.asarray(log_probabilities(sampling(temperature, top_k, top_p, min_p), scores[None], True)[0], np.float64)
    # Where a cut falls within fp32's rounding, either side of it is right.
    low, high = (1.0, 1.0) if top_p == 1 else (top_p * (1 - 1e-5) - 1e-6, min(top_p * (1 + 1e-5) + 1e-6, 1))
    least = reference(scores, temperature, top_k, low, min(min_p * (1 + 1e-5), 1)) > 0
    most = reference(scores, temperature, top_k, high, min_p * (1 - 1e-5)) > 0
    kept = got > -INF
    seen = (scores - scores.max()) / temperature > -700  # What is less likely is 0 in float64, too.
    assert (least <= kept)[seen].all() and (kept <= most)[seen].all() and not kept[scores == -INF].any()
    with np.errstate(divide="ignore"):
        expected = np.log(reference(np.where(kept, scores, -INF), temperature))
    np.testing.assert_allclose(got[seen], expected[seen], rtol=1e-5, atol=1e-5)


@given(logits=LOGITS, temperature=fp32(1e-3, 10), min_p=fp32(1e-6, 1))
def test_what_cuts_nothing_leaves_all_tokens(logits: list[float], temperature: float, min_p: float) -> None:
    scores, drawn = np.array([logits], np.float32), sampling(temperature, min_p=min_p)
    np.testing.assert_array_equal(log_probabilities(drawn, scores, True), log_probabilities(drawn, scores, False))


@given(logits=LOGITS, order=st.permutations(range(V)), cuts=st.sampled_from([(4, 1.0), (V, 0.6), (5, 0.8)]))
def test_the_order_of_the_vocabulary_does_not_matter(
    logits: list[float], order: list[int], cuts: tuple[int, float]
) -> None:
    scores, drawn = np.array([logits], np.float32), sampling(1.0, *cuts)
    shuffled = log_probabilities(drawn, scores[:, order], True)
    np.testing.assert_allclose(shuffled, log_probabilities(drawn, scores, True)[:, np.array(order)], atol=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "cuts", "expected"),
    [
        ((0.4, 0.3, 0.2, 0.1), {}, (0.4, 0.3, 0.2, 0.1)),
        ((0.4, 0.3, 0.2, 0.1), {"top_k": 2}, (4 / 7, 3 / 7, 0, 0)),
        ((0.4, 0.3, 0.2, 0.1), {"top_k": 1}, (1, 0, 0, 0)),
        ((0.4, 0.3, 0.2, 0.1), {"top_p": 0.65}, (4 / 7, 3 / 7, 0, 0)),
        ((0.4, 0.3, 0.2, 0.1), {"top_p": 1e-9}, (1, 0, 0, 0)),
        ((0.4, 0.3, 0.2, 0.1), {"min_p": 0.45}, (4 / 9, 3 / 9, 2 / 9, 0)),
        ((0.4, 0.3, 0.2, 0.1), {"min_p": 1.0}, (1, 0, 0, 0)),
        ((0.4, 0.3, 0.2, 0.1), {"temperature": 0.5}, (16 / 30, 9 / 30, 4 / 30, 1 / 30)),
        # One after the other: after temperature or top_k the first token alone has 0.5.
        ((0.4, 0.3, 0.2, 0.1), {"temperature": 0.5, "top_p": 0.5}, (1, 0, 0, 0)),
        ((0.4, 0.3, 0.2, 0.1), {"top_k": 2, "top_p": 0.5}, (1, 0, 0, 0)),
        ((0.4, 0.3, 0.2, 0.1), {"temperature": 0.5, "min_p": 0.3}, (16 / 25, 9 / 25, 0, 0)),
        # What ties with the last that stays, stays.
        ((0.3, 0.3, 0.3, 0.1), {"top_k": 1}, (1 / 3, 1 / 3, 1 / 3, 0)),
        ((0.4, 0.2, 0.2, 0.2), {"top_k": 2}, (0.4, 0.2, 0.2, 0.2)),
        ((0.4, 0.2, 0.2, 0.2), {"top_p": 0.5}, (0.4, 0.2, 0.2, 0.2)),
        ((0.3, 0.3, 0.3, 0.1), {"top_p": 1e-9}, (1 / 3, 1 / 3, 1 / 3, 0)),
        ((0.3, 0.3, 0.3, 0.1), {"min_p": 1.0}, (1 / 3, 1 / 3, 1 / 3, 0)),
        ((0.25, 0.25, 0.25, 0.25), {"temperature": 1e-30, "top_k": 1, "top_p": 1e-9, "min_p": 1.0}, (0.25,) * 4),
        ((0.4, 0.3, 0.2, 0.1), {"temperature": 1e-30}, (1, 0, 0, 0)),
        ((0.4, 0.3, 0.2, 0.1), {"temperature": 0.0}, (1, 0, 0, 0)),  # not asked for, but no nan
        ((0.4, 0.3, 0.2, 0.1), {"temperature": 1e30}, (0.25,) * 4),
        ((0.6, 0.4, 0.0, 0.0), {"top_k": 3, "top_p": 0.999, "min_p": 0.01}, (0.6, 0.4, 0, 0)),
        ((1.0, 0.0, 0.0, 0.0), {"temperature": 1e-30, "top_k": 3, "top_p": 0.5}, (1, 0, 0, 0)),
    ],
)
def test_examples(reference: Any, probabilities: Any, cuts: dict[str, Any], expected: Any) -> None:
    drawn = sampling(**{"top_k": 4} | cuts)
    by_reference = reference(logs(probabilities), **cuts | {"temperature": max(cuts.get("temperature", 1.0), 1e-30)})
    np.testing.assert_allclose(by_reference, expected, atol=1e-4)
    for order in itertools.permutations(range(4)):
        got = log_probabilities(drawn, logs(probabilities)[None, list(order)] + 1000, True)[0]
        np.testing.assert_allclose(np.exp(got), np.array(expected)[list(order)], atol=1e-4)
        np.testing.assert_array_equal(np.exp(got) == 0, np.array(expected)[list(order)] == 0)


SHAPES: dict[str, Any] = {  # Of many tokens' logits, of normal numbers.
    "flat": lambda x: 0.3 * x,
    "steep": lambda x: 3 * x,
    "peaked": lambda x: 2 * x + np.linspace(14, -40, x.shape[1]).clip(0),
    "in steps": lambda x: np.round(2 * x),
    "few": lambda x: np.where(np.abs(x) < 2.5, -INF, x),
}
CUTS = (  # temperature, top_k (of 5003), top_p, min_p
    (1.0, 5003, 0.9, 0.0),
    (0.3, 5003, 0.5, 0.0),
    (100.0, 5003, 0.97, 0.0),
    (1.0, 5003, 1e-6, 0.0),
    (0.7, 5003, 0.999, 1e-4),
    (1.0, 50, 0.9, 0.05),
    (0.5, 1, 1.0, 0.0),
    (0.7, 64, 0.9, 0.0),
    (1.0, 65, 1.0, 0.0),
    (1.0, 700, 0.95, 0.0),
    (1.0, 3000, 0.2, 0.0),
    (2.0, 5002, 1.0, 0.0),
    (1.0, 5003, 1.0, 1.0),
)


@pytest.mark.parametrize("shape", SHAPES)
def test_many_tokens_are_cut_as_the_reference_cuts_them(reference: Any, shape: str) -> None:
    """5003 tokens are more columns than are looked at, and no whole number of rows."""
    logits = SHAPES[shape](np.random.default_rng(len(shape)).standard_normal((3, 5003))).astype(np.float32)
    for temperature, top_k, top_p, min_p in CUTS:
        got = np.asarray(log_probabilities(sampling(temperature, top_k, top_p, min_p), logits, True), np.float64)
        kept, scaled = got > -INF, (logits - logits.max(-1, keepdims=True)) / temperature
        low, high = (1.0, 1.0) if top_p == 1 else (max(top_p * (1 - 1e-5) - 1e-6, 1e-12), min(top_p * (1 + 1e-5), 1))
        least = reference(logits, temperature, top_k, low, min(min_p * (1 + 1e-5), 1)) > 0
        most = reference(logits, temperature, top_k, high, min_p * (1 - 1e-5)) > 0
        seen = scaled > -80
        assert (least <= kept)[seen].all() and (kept <= most)[seen].all(), (temperature, top_k, top_p, min_p)
        with np.errstate(divide="ignore"):
            expected = np.log(reference(np.where(kept, logits, -INF), temperature))
        np.testing.assert_allclose(got[seen], expected[seen], rtol=1e-5, atol=2e-5)


def test_where_all_tokens_tie_all_stay() -> None:
    kept = log_probabilities(sampling(1.0, 3, 0.5), np.zeros((1, 5003), np.float32), True)
    np.testing.assert_allclose(np.exp(kept), 1 / 5003, rtol=1e-5)


def test_what_is_cut_does_not_depend_on_the_batch() -> None:
    """XLA's own sums do, by their last bits."""
    rng = np.random.default_rng(4)
    logits = np.stack([2 * rng.standard_normal(5003), 0.1 * rng.standard_normal(5003), *rng.standard_normal((5, 5003))])
    logits, cuts = logits.astype(np.float32), sampling(0.9, 4000, 0.93, 1e-4)
    together = cut(cuts, logits, True)
    for rows in ([0], [1, 0], [6, 5, 1]):
        for one, all_of_them in zip(
            jax.tree.leaves(cut(cuts, logits[rows], True)), jax.tree.leaves(together), strict=True
        ):
            np.testing.assert_array_equal(one, all_of_them[np.array(rows)])


@pytest.mark.parametrize("size", [2, 63, 64, 65, 129, 5003])
def test_draws_among_any_number_of_tokens(p_value: Any, size: int) -> None:
    """As likely as their weights say, whatever the table; a fifth of them weigh nothing, the last ones among them."""
    rng, rows = np.random.default_rng(size), 1024
    weights = rng.exponential(size=size).astype(np.float32) ** 3 * (np.arange(size) % 5 != (size - 1) % 5)
    run, counts = jax.jit(lambda seed: draw(keys(seed, jnp.zeros(rows, jnp.int32), TARGET), itself, table)), 0
    table = jnp.tile(weights, (rows, 1))
    for turn in range(40):
        counts += np.bincount(run(seeds(rows, turn)), minlength=size)
    assert counts.shape == (size,)
    assert p_value(counts, weights.astype(np.float64) / weights.astype(np.float64).sum()) > 1e-4


def test_no_vocabulary_is_sorted() -> None:
    inputs = (sampling(0.8, 100, 0.9, 0.01), np.zeros((2, 5003), np.float32), (seeds(2), np.zeros(2, np.int32), TARGET))
    code = jax.jit(choose, static_argnums=3).lower(*inputs, True).compile().as_text()
    ranked = re.findall(r"TopK|sort\(", code)
    assert len(ranked) == 2 and code.count("5003") > 9
    assert not [line for line in code.splitlines() if re.search("TopK|sort\\(", line) and "5003" in line]


def test_nothing_is_promoted_on_its_own() -> None:
    scores = np.random.default_rng(1).standard_normal((2, 3, 5003)).astype(np.float32)
    inputs = (np.ones((2, 2), np.int32), np.array([2, 1], np.int32), scores, sampling(0.8, 100, 0.9, 0.01), seeds(2))

    def run(drafted: Any, count: Any, scores: Any, cuts: Any, seed: Any) -> Any:
        drawn = (scores[:, :2], dec.cut(cuts, scores[:, :2], True))
        return dec.accept_sampled(drafted, count, drawn, scores, cuts, True, seed, count + 5)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        accepted, follows = jax.jit(run)(*inputs)
    assert accepted.dtype == follows.dtype == np.int32
    np.testing.assert_array_equal(accepted, [0, 0])  # What is drafted is no token that stays.


def test_logits_of_any_size_give_no_nan() -> None:
    logits = np.array([[3e38, -3e38, 0.0, -INF], [1e10, 1e10 + 2048, 1e10, 0], [-1e38, -2e38, -INF, -INF]], np.float32)
    for temperature, top_k, top_p in itertools.product((1e-30, 1e-3, 1.0, 1e3), (1, 3, 4), (1e-6, 0.5, 1.0)):
        probability = np.exp(log_probabilities(sampling(temperature, top_k, top_p), logits, True))
        np.testing.assert_allclose(probability.sum(-1), 1, atol=1e-6)
        assert (probability.argmax(-1) == logits.argmax(-1)).all()


def test_a_key_depends_on_its_own_seed_place_and_purpose_alone() -> None:
    seed, place = seeds(7, word=3), jnp.arange(7) * 5
    together = keys(seed, place, DRAFT + 1)
    for row in range(7):
        alone = keys(seed[row : row + 1], place[row : row + 1], DRAFT + 1)
        np.testing.assert_array_equal(jax.random.key_data(alone[0]), jax.random.key_data(together[row]))
        weights = jnp.array([[0.1, 0.2, 0.3, 0.4]])
        assert draw(alone, itself, weights)[0] == draw(together, itself, jnp.tile(weights, (7, 1)))[row]


def test_no_two_keys_are_the_same() -> None:
    words, places, purposes = range(9), range(64), (TARGET, ACCEPT, *range(DRAFT, DRAFT + 9))
    seed = np.array(list(itertools.product(words, words)), np.uint32)
    made = jax.jit(lambda seed, place, purpose: jax.random.key_data(keys(seed, place, purpose)))
    found = [made(seed, np.full(len(seed), place), purpose) for place in places for purpose in purposes]
    assert len(np.unique(np.concatenate(found), axis=0)) == len(seed) * len(places) * len(purposes)


@pytest.mark.parametrize("change", ["seed", "place", "purpose"])
def test_draws_of_different_keys_are_independent(p_value: Any, change: str) -> None:
    place, probability = jnp.full(DRAWS, 17), np.array([0.5, 0.3, 0.2])
    weights = jnp.tile(3 * probability, (DRAWS, 1))  # need not sum to 1
    first = np.asarray(draw(keys(seeds(DRAWS), place, TARGET), itself, weights))
    other = {"seed": (seeds(DRAWS, 1), place, TARGET), "place": (seeds(DRAWS), place + 1, TARGET)}
    second = np.asarray(draw(keys(*other.get(change, (seeds(DRAWS), place, DRAFT))), itself, weights))
    counts = np.bincount(first * 3 + second, minlength=9)
    assert p_value(counts, np.outer(probability, probability).ravel()) > 1e-4


def test_what_has_no_weight_is_never_drawn(p_value: Any) -> None:
    probability = np.array([0, 0.7, 0, 0.3])
    drawn = draw(keys(seeds(DRAWS), jnp.zeros(DRAWS, jnp.int32), TARGET), itself, jnp.tile(probability, (DRAWS, 1)))
    assert p_value(np.bincount(drawn, minlength=4), probability) > 1e-4


@pytest.mark.parametrize("truncate", [False, True])
def test_each_sequence_has_its_own_settings(reference: Any, truncate: bool) -> None:
    """Temperature 0 leaves the first of the most likely tokens, also among rows that are drawn."""
    cuts = [(1.0, V, 1.0, 0.0), (0.0, 1, 0.5, 0.9), (0.5, 3, 1.0, 0.0), (2.0, V, 0.7, 0.3)]
    logits = np.random.default_rng(5).standard_normal((4, 2, V)).astype(np.float32)
    logits[1, 0, [3, 7]] = logits[1].max() + 1  # A tie.
    rows = (np.array(column, kind) for column, kind in zip(zip(*cuts, strict=True), "fiff", strict=True))
    got = np.exp(log_probabilities(dec.Sampling(*rows), logits, truncate))
    for row, (temperature, top_k, top_p, min_p) in enumerate(cuts):
        if temperature == 0:
            np.testing.assert_array_equal(got[row], np.eye(V)[logits[row].argmax(-1)])
        else:
            kept = (top_k, top_p) if truncate else (0, 1.0)
            np.testing.assert_allclose(got[row], reference(logits[row], temperature, *kept, min_p), atol=1e-6)


@pytest.mark.parametrize("truncate", [False, True])
def test_choose_draws_with_the_probabilities_it_returns(p_value: Any, reference: Any, truncate: bool) -> None:
    logits, cuts = np.array([1.0, 0.0, 2.0, 1.5], np.float32), (0.7, 3 if truncate else 4, 1.0, 0.1)
    key = (seeds(DRAWS), jnp.zeros(DRAWS, jnp.int32), TARGET)
    tokens, (scores, left) = jax.jit(choose, static_argnums=3)(
        sampling(*cuts), jnp.tile(logits, (DRAWS, 1)), key, truncate
    )
    shares = left.weights(scores) / left.total[:, None]
    np.testing.assert_allclose(shares[:1], [reference(logits, *cuts)], atol=1e-6)
    assert p_value(np.bincount(tokens, minlength=4), reference(logits, *cuts)) > 1e-4


def test_choose_without_sampling_takes_the_most_likely() -> None:
    logits, key = jnp.array([[1.0, 0, 2, 1.5], [3, 0, 1, 3]]), (seeds(2), jnp.zeros(2, jnp.int32), TARGET)
    tokens, drawn = choose(None, logits, key, False)
    assert tokens.tolist() == [2, 0] and drawn is None


def outcomes(q: Any, p: Any, drafted: np.ndarray, count: int, word: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return accepted tokens and the one that follows, for distributions ``[G, V]`` and ``[R, V]`` of every row."""
    rows, place = len(drafted), np.full(len(drafted), 5)
    log_q, log_p = (np.broadcast_to(logs(each), (rows, *np.shape(each))) for each in (q, p))
    plain = sampling(top_k=np.shape(q)[-1])
    drawn = (log_q, cut(plain, log_q, False))
    accepted, follows = accept(drafted, np.full(rows, count), drawn, log_p, plain, False, seeds(rows, word), place)
    return np.asarray(accepted), np.asarray(follows)


def test_the_docstrings_example() -> None:
    q, p = [[0.2, 0.6, 0.2]], [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]
    accepted, follows = outcomes(q, p, np.full((DRAWS, 1), 1, np.int32), 1)
    assert abs(accepted.mean() - 0.5) < 5 * (0.25 / DRAWS) ** 0.5
    assert set(follows[accepted == 0]) == {0}
    for sure in (0, 2):  # As likely for the target as for the draft, or more.
        assert outcomes(q, p, np.full((1000, 1), sure, np.int32), 1)[0].all()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_every_outcome_is_as_likely_as_the_rule_says(p_value: Any, count: int) -> None:
    """Drafted tokens, how many are accepted and what follows, all outcomes: the rule by hand, then counted."""
    gamma, vocab = 3, 3
    rng = np.random.default_rng(11)
    q, p = rng.dirichlet(np.ones(vocab), gamma), rng.dirichlet(np.ones(vocab), gamma + 1)
    texts = list(itertools.product(range(vocab), repeat=gamma))
    expected = np.zeros((len(texts), gamma + 1, vocab))
    committed = np.zeros(vocab)  # Whatever is drafted, the first token committed has p's distribution.
    for index, text in enumerate(texts):
        drafted = np.prod([q[step, token] for step, token in enumerate(text)])
        kept = [min(1.0, p[step, token] / q[step, token]) for step, token in enumerate(text)][:count]
        for accepted in range(count + 1):
            left = p[accepted] if accepted == count else np.maximum(p[accepted] - q[accepted], 0)
            ends = 1.0 if accepted == count else 1 - kept[accepted]
            expected[index, accepted] = drafted * np.prod(kept[:accepted]) * ends * left / left.sum()
            committed += expected[index, accepted].sum() * np.eye(vocab)[text[0]] if accepted else expected[index, 0]
    np.testing.assert_allclose(committed, p[0], atol=1e-12)

    codes = rng.choice(len(texts), DRAWS, p=expected.sum((1, 2)))
    lengths, follows = outcomes(q, p, np.array(texts, np.int32)[codes], count, word=count)
    cells: Any = (codes, lengths, follows)
    counts = np.zeros(expected.shape, np.int64)
    np.add.at(counts, cells, 1)
    assert p_value(counts.reshape(-1), expected.reshape(-1)) > 1e-4


def test_supports_may_differ(p_value: Any) -> None:
    q, p = np.array([0.5, 0.5, 0, 0]), np.array([0, 0.5, 0.2, 0.3])
    drafted = np.random.default_rng(3).integers(0, 2, (DRAWS, 1)).astype(np.int32)
    accepted, follows = outcomes([q], [p, p], drafted, 1)
    committed = np.where(accepted, drafted[:, 0], follows)
    assert p_value(np.bincount(committed, minlength=4), p) > 1e-4
    assert not (accepted[drafted[:, 0] == 0]).any() and accepted[drafted[:, 0] == 1].all()


def test_a_rejection_that_leaves_nothing_is_followed_by_the_target(p_value: Any) -> None:
    """Rounding can make p a little smaller than q for one token and larger for none."""
    p, plain = np.array([0.5, 0.3, 0.2, 0]), sampling(top_k=4)
    scores = np.broadcast_to(logs(p), (DRAWS, 2, 4))
    left = cut(plain, scores[:, :1], False)
    drawn = (scores[:, :1], left.replace(total=0.95 * left.total))
    one = np.ones(DRAWS, np.int32)
    accepted, follows = accept(0 * one[:, None], one, drawn, scores, plain, False, seeds(DRAWS), 5 * one)
    rejected = np.asarray(follows)[np.asarray(accepted) == 0]
    assert len(rejected) > DRAWS / 30
    assert p_value(np.bincount(rejected, minlength=4), p) > 1e-4


def test_the_same_distribution_is_always_accepted() -> None:
    q = np.random.default_rng(5).dirichlet(np.ones(7), 3)
    drafted = np.random.default_rng(6).integers(0, 7, (DRAWS, 3)).astype(np.int32)
    assert (outcomes(q, [*q, q[0]], drafted, 3)[0] == 3).all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    rng, rows = np.random.default_rng(8), 9
    log_q, log_p = logs(rng.dirichlet(np.ones(5), (rows, 3))), logs(rng.dirichlet(np.ones(5), (rows, 8)))
    drafted, count = rng.integers(0, 5, (rows, 3)), rng.integers(0, 4, rows)

    def outcome(row: Any) -> np.ndarray:
        drawn, plain = (log_q[row], cut(sampling(), log_q[row], False)), sampling()
        return np.asarray(
            accept(
                drafted[row], count[row], drawn, log_p[row], plain, False, seeds(rows)[row], np.arange(rows)[row] + 2
            )
        )

    together = outcome(slice(None))
    for row in range(rows):
        np.testing.assert_array_equal(outcome([row]), together[:, [row]])


@pytest.mark.parametrize("width", [1, 11, 259, 1000])
def test_the_most_likely_token_is_argmaxs(width: int) -> None:
    logits = np.random.default_rng(width).standard_normal((6, width)).round(1).astype(np.float32)  # With ties.
    logits[1] = -INF
    logits[2] = INF
    logits[3, width // 2] = INF
    logits[4, width // 2 :] = np.nan
    found = np.asarray(jax.jit(dec.most_likely)(logits))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))
