"""Kangaroo's token ids are those of plain greedy decoding, whatever the draft is worth; only the rounds differ."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kangaroo_jax.decode import LENGTH, STOP
from kangaroo_jax.model import embed, init_cache, line, run_adapter, run_layers

GAMMAS = (8, *(pytest.param(gamma, marks=pytest.mark.full) for gamma in (1, 2, 4, 6)))
ETAS = (0.0, 0.3, 0.6, 0.9, 1.1)
KINDS = ("untrained", "oracle", "fool", "mixed")


def batches(lab: Any) -> list[list[list[int]]]:
    """Return every prompt alone, and all together."""
    return [*([prompt] for prompt in lab.prompts), lab.prompts]


def cut(text: list[int], budget: int, eos: tuple[int, ...]) -> tuple[list[int], int]:
    """Return where plain decoding stops, and why."""
    for count, token in enumerate(text[:budget], 1):
        if token in eos:
            return text[:count], STOP
    return text[:budget], LENGTH


def rounds_of(start: int, budget: int, gamma: int, eta: float, right: Any, sure: Any) -> tuple[list[int], list[int]]:
    """Return committed and drafted tokens of every round: the method, on paper.

    Args:
        start: position of the token the prefill gave.
        budget: new tokens, that one included.
        gamma: most tokens drafted in a round.
        eta: confidence below which drafting stops.
        right: whether the draft for a position is right, ``[S]``.
        sure: confidence of the draft for a position, ``[S]``.
    """
    accept_lengths, draft_lengths, newest = [], [], start
    while (left := start + budget - 1 - newest) > 0:
        drafted = 1
        while drafted < gamma and sure[newest + drafted] >= eta:
            drafted += 1
        accepted = sum(itertools.takewhile(bool, right[newest + 1 : newest + drafted + 1]))
        accept_lengths.append(min(accepted + 1, left))
        draft_lengths.append(drafted)
        newest += accept_lengths[-1]
    return accept_lengths, draft_lengths


def test_the_models_text_is_worth_comparing(lab: Any, small_lab: Any) -> None:
    for each in (lab, small_lab):
        texts = [each.reference(prompt) for prompt in each.prompts]
        assert all(len(set(text)) >= 15 for text in texts)
        assert len({tuple(text) for text in texts}) == len(texts)


def test_plain_decoding_equals_the_reference(lab: Any) -> None:
    for prompts in batches(lab):
        for prompt, outcome in zip(prompts, lab.run(0, prompts), strict=True):
            assert outcome.ids == lab.reference(prompt)
            assert outcome.finish == LENGTH
            assert outcome.accept_lengths == [1] * (lab.new_tokens - 1)
            assert outcome.drafted == outcome.accepted == sum(outcome.draft_lengths) == 0


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kind", KINDS)
def test_kangaroo_equals_the_reference(lab: Any, known: Any, kind: str, gamma: int) -> None:
    drafts_accepted = set()
    for prompts, eta in itertools.product(batches(lab), ETAS):
        tables = lab.tables(prompts, kind)
        outcomes = lab.run(gamma, prompts, eta=eta, weights=tables, drafter=known)
        for row, (prompt, outcome) in enumerate(zip(prompts, outcomes, strict=True)):
            assert outcome.ids == lab.reference(prompt)
            assert outcome.finish == LENGTH
            assert sum(outcome.accept_lengths) == lab.new_tokens - 1
            assert sum(outcome.draft_lengths) == outcome.drafted
            drafts_accepted.add(outcome.accepted > 0)
            if kind != "untrained":
                right = tables["known"][row] == lab.tables(prompts, "oracle")["known"][row]
                expected = rounds_of(len(prompt), lab.new_tokens, gamma, eta, right, tables["sure"][row])
                assert (outcome.accept_lengths, outcome.draft_lengths) == expected
    assert drafts_accepted == {kind != "fool"}


@pytest.mark.parametrize("gamma", GAMMAS)
def test_an_oracle_commits_gamma_and_one_a_round_and_a_fool_one(lab: Any, known: Any, gamma: int) -> None:
    for prompts in batches(lab):
        for outcome in lab.run(gamma, prompts, weights=lab.tables(prompts, "oracle"), drafter=known):
            full, rest = divmod(lab.new_tokens - 1, gamma + 1)
            assert outcome.accept_lengths == [gamma + 1] * full + [rest] * (rest > 0)
            assert outcome.accepted == outcome.drafted == gamma * len(outcome.accept_lengths)
        for outcome in lab.run(gamma, prompts, weights=lab.tables(prompts, "fool"), drafter=known):
            assert outcome.accept_lengths == [1] * (lab.new_tokens - 1)
            assert (outcome.accepted, outcome.drafted) == (0, gamma * (lab.new_tokens - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_single_key_value_head(small_lab: Any, known: Any, kind: str) -> None:
    for prompts, eta in itertools.product(batches(small_lab), (0.0, 0.6, 1.1)):
        tables = small_lab.tables(prompts, kind)
        for gamma, options in ((0, {}), (3, {"eta": eta, "weights": tables, "drafter": known})):
            for prompt, outcome in zip(prompts, small_lab.run(gamma, prompts, **options), strict=True):
                assert outcome.ids == small_lab.reference(prompt)


def test_an_eta_above_1_drafts_one_token_and_keeps_it(lab: Any, known: Any) -> None:
    (outcome,) = lab.run(4, lab.prompts[:1], eta=1.1, weights=lab.tables(lab.prompts[:1], "oracle"), drafter=known)
    assert set(outcome.draft_lengths) == {1}
    assert outcome.accept_lengths == [2] * ((lab.new_tokens - 1) // 2)


@settings(max_examples=40)
@given(data=st.data())
def test_eos_and_budget_cut_where_plain_decoding_is_cut(lab: Any, known: Any, data: st.DataObject) -> None:
    texts = [lab.reference(prompt) for prompt in lab.prompts]
    eos = (data.draw(st.sampled_from(sorted({-1, *itertools.chain(*texts)}))),)
    budgets = data.draw(st.lists(st.integers(0, lab.new_tokens), min_size=len(texts), max_size=len(texts)))
    gamma, eta = data.draw(st.sampled_from((0, 4, 8))), data.draw(st.floats(0, 1.1))
    options = (
        {} if gamma == 0 else {"drafter": known, "weights": lab.tables(lab.prompts, data.draw(st.sampled_from(KINDS)))}
    )
    outcomes = lab.run(gamma, lab.prompts, eta=eta, budgets=budgets, eos=eos, **options)
    for text, budget, outcome in zip(texts, budgets, outcomes, strict=True):
        assert (outcome.ids, outcome.finish) == cut(text, budget, eos)
        assert sum(outcome.accept_lengths) == max(len(outcome.ids) - 1, 0)
        # A round that commits nothing is not counted.
        assert all(length > 0 for length in outcome.accept_lengths)


def test_eos_as_the_first_token_leaves_no_round(lab: Any, known: Any) -> None:
    prompts = lab.prompts[:1]
    eos = (lab.reference(prompts[0])[0],)
    for gamma, options in ((0, {}), (4, {"weights": lab.tables(prompts, "oracle"), "drafter": known})):
        (outcome,) = lab.run(gamma, prompts, eos=eos, **options)
        assert (outcome.ids, outcome.finish, outcome.accept_lengths) == (list(eos), STOP, [])


@pytest.mark.parametrize("gamma", [0, 4])
def test_stopping_after_some_rounds_and_going_on_changes_nothing(lab: Any, known: Any, gamma: int) -> None:
    options = {"weights": lab.tables(lab.prompts, "mixed"), "drafter": known} if gamma else {}
    state = lab.decode(gamma, lab.prompts, eta=0.3, rounds=0, **options)
    for rounds in (1, 3, 2**31 - 1):
        state = lab.advance(gamma, state, eta=0.3, rounds=rounds, **options)
    whole = lab.decode(gamma, lab.prompts, eta=0.3, **options)
    jax.tree.map(np.testing.assert_array_equal, state.stats, whole.stats)
    for row, prompt in enumerate(lab.prompts):
        text = state.tokens[row, len(prompt) : state.length[row]].tolist()
        assert text == lab.reference(prompt)


def agreeing_weights(lab: Any) -> dict[str, Any]:
    """Return weights whose draft model is the target: deep layers add nothing, the adapter is the final norm."""
    target, adapter = dict(lab.weights["target"]), dict(lab.weights["adapter"])
    exit_layer = lab.exit_layer
    for index in range(exit_layer, lab.config.num_hidden_layers):
        layer = {part: dict(params) for part, params in target[f"layers_{index}"].items()}
        for part, name in (("self_attn", "o_proj"), ("mlp", "down_proj")):
            layer[part][name] = jax.tree.map(jnp.zeros_like, layer[part][name])
        target[f"layers_{index}"] = layer
    adapter["self_attn"] = {
        **adapter["self_attn"],
        "o_proj": jax.tree.map(jnp.zeros_like, adapter["self_attn"]["o_proj"]),
    }
    adapter["norm"] = target["norm"]
    return {"target": target, "adapter": adapter}


def expected_caches(lab: Any, weights: Any, text: np.ndarray) -> list[np.ndarray]:
    """Return keys and values of all layers and of the adapter, from one pass over a text ``[1, T]``."""

    @jax.jit
    def one_pass(weights: Any, text: Any) -> Any:
        config, exit_layer = lab.config, lab.exit_layer
        context = line(jnp.arange(text.shape[1])[None], text.shape[1])
        x = embed(weights["target"], text)
        caches = init_cache(config, 1, text.shape[1], x.dtype, config.num_hidden_layers + 1)
        x, shallow = run_layers(config, weights["target"], x, context, caches[:exit_layer], 0, exit_layer)
        _, adapter = run_adapter(config, weights["adapter"], x, context, caches[-1])
        last = config.num_hidden_layers
        _, deep = run_layers(config, weights["target"], x, context, caches[exit_layer:last], exit_layer, last)
        return (*shallow, *deep), adapter

    return jax.tree.leaves(one_pass(weights, text))


@pytest.mark.parametrize("kind", ["untrained", "agreeing"])
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.full), 3])
def test_no_cache_has_a_hole(lab: Any, kind: str, batch: int) -> None:
    """All caches are valid in ``[0, length - 1)``, the adapter's too after rounds in which all drafts were accepted."""
    weights = lab.weights if kind == "untrained" else agreeing_weights(lab)
    prompts, gamma = lab.prompts[:batch], 3
    state = jax.device_get(lab.decode(gamma, prompts, weights=weights))
    for row, prompt in enumerate(prompts):
        length = int(state.length[row])
        text = state.tokens[row : row + 1, :length]
        assert text[0, len(prompt) :].tolist() == lab.reference(prompt, weights=weights)
        if kind == "agreeing":
            assert state.stats.accept_lengths[row, : state.stats.rounds[row]].tolist() == [gamma + 1] * 10
            assert len(set(text[0].tolist())) > 10
        got = jax.tree.leaves((state.caches, state.drafter))
        for buffer, expected in zip(got, expected_caches(lab, weights, text), strict=True):
            own = buffer[row::batch, : length - 1]  # A head's rows are those of all sequences, one after the other.
            np.testing.assert_allclose(own, expected[:, : length - 1], atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("gamma", "batch"), [(4, 3), *(pytest.param(*case, marks=pytest.mark.full) for case in ((0, 1), (0, 3), (4, 1)))]
)
def test_a_prompt_may_be_run_in_pieces(lab: Any, gamma: int, batch: int) -> None:
    """However the prompt is cut, caches and text are the same; also where the last piece begins before its place."""
    prompts = lab.prompts[-batch:]
    whole = lab.prefill(gamma, prompts, lab.new_tokens, (-1,), chunk=16)
    for chunk in (1, 4, 11, 96):
        state = lab.prefill(gamma, prompts, lab.new_tokens, (-1,), chunk=chunk)
        assert state.length.tolist() == whole.length.tolist()
        for mine, other in zip(jax.tree.leaves(state.caches), jax.tree.leaves(whole.caches), strict=True):
            for row, prompt in enumerate(prompts):
                own = slice(row, None, batch), slice(len(prompt))
                np.testing.assert_allclose(mine[own], other[own], atol=2e-5)
        for prompt, text in zip(prompts, lab.texts(lab.advance(gamma, state)), strict=True):
            assert text == lab.reference(prompt)


@pytest.mark.parametrize("gamma", [0, 4])
def test_a_prefill_goes_on_from_what_the_caches_hold(lab: Any, gamma: int) -> None:
    """A prompt that repeats the beginning of an earlier text needs only the rest of it run."""
    prompt = lab.prompts[1]
    text = [*prompt, *lab.reference(prompt)][:30]
    for shared in (1, 7, 11, 25, 29):
        changed = [*text[:shared], *((token + 1) % 61 for token in text[shared:])]
        earlier = lab.decode(gamma, [prompt])
        state = lab.resume(gamma, earlier, changed, shared)
        assert lab.texts(lab.advance(gamma, state)) == [lab.reference(changed)]
