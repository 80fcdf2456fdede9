"""Every kind of adapter drafts: ids are those of plain greedy decoding, drafts those of the kind without a cache."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax import decode as dec
from kangaroo_jax.model import (
    AdapterConfig,
    draft_head,
    embed,
    final_norm,
    head_kernel,
    init_adapter,
    line,
    run_adapter,
    run_layers,
    with_draft_head,
)

GAMMA = 3


def lab_of(base: Any, adapter: AdapterConfig, **changes: Any) -> Any:
    """Return a lab whose draft model has another adapter."""
    lab = type(base)(dataclasses.replace(base.config, num_hidden_layers=3, **changes), 1, adapter)
    # The head of the adapter's own is not the target's, so that it matters which is used.
    lab.weights["adapter"] = jax.tree.map(
        lambda leaf: leaf * 3 if leaf.ndim == 2 else leaf, init_adapter(lab.config, jax.random.key(3), adapter)
    )
    return lab


def first_confidences(
    lab: Any, adapter: AdapterConfig, text: list[int], known: int, guess: int | None = None
) -> np.ndarray:
    """Return the draft model's top-1 probability after every token of a text, from one pass without caches.

    Final states are read of the token before each from ``known`` on, the prompt's length; behind the token ``guess``
    what the adapter makes of it is read instead.
    """
    config, place = lab.config, np.arange(len(text))

    @jax.jit
    def one_pass(weights: Any, text: Any) -> Any:
        target, context = weights["target"], line(jnp.arange(text.shape[1])[None], None)
        hidden, _ = run_layers(config, target, embed(target, text), context, None, 0, lab.exit_layer)
        last, _ = run_layers(config, target, hidden, context, None, lab.exit_layer, config.num_hidden_layers)

        def adapted(before: Any) -> Any:
            return run_adapter(config, weights["adapter"], hidden, context, None, adapter, before)[0]

        before = None
        if adapter.final_states:
            final = jnp.roll(final_norm(config, target, last), 1, axis=1)
            before = jnp.where((place >= known)[:, None], final, 0)
            if guess is not None:
                guessed = jnp.roll(adapted(before), 1, axis=1)
                before = jnp.where((place == guess + 1)[:, None], guessed, before)
        return jax.nn.softmax(adapted(before) @ draft_head(target, weights["adapter"])).max(-1)[0]

    return np.asarray(one_pass(lab.weights, np.array([text], np.int32)))


def check_run(lab: Any, adapter: AdapterConfig, prompts: Any, gamma: int = GAMMA) -> list[np.ndarray]:
    """Ids are plain decoding's, and first confidences of rounds the adapter's; return these after every token."""
    found = []
    for prompt, outcome in zip(prompts, lab.run(gamma, prompts), strict=True):
        assert outcome.ids == lab.reference(prompt)
        expected = first_confidences(lab, adapter, [*prompt, *outcome.ids], len(prompt))
        # A round starts from the newest committed token.
        starts = [len(prompt) + done for done in (0, *itertools.accumulate(outcome.accept_lengths[:-1]))]
        np.testing.assert_allclose([sure[0] for sure in outcome.confidence], expected[starts], rtol=1e-3)
        found.append(expected)
    return found


@pytest.mark.parametrize(
    ("adapter", "tied"),
    [
        (AdapterConfig("kangaroo", rope_theta=7.0), False),
        pytest.param(AdapterConfig("with-mlp"), False, marks=pytest.mark.full),
        (AdapterConfig("mlp-only"), False),
        pytest.param(AdapterConfig("linear"), True, marks=pytest.mark.full),
        pytest.param(AdapterConfig("no-input-norm"), False, marks=pytest.mark.full),
        (AdapterConfig("own-head"), True),
    ],
    ids=lambda value: value.kind if isinstance(value, AdapterConfig) else "",
)
def test_each_kind_is_lossless_and_drafts_what_it_is(lab: Any, adapter: AdapterConfig, tied: bool) -> None:
    own = lab_of(lab, adapter, tie_word_embeddings=tied)
    for expected in check_run(own, adapter, own.prompts[:2]):
        assert len({round(float(value), 3) for value in expected}) > 10


def final_lab(base: Any) -> tuple[Any, AdapterConfig]:
    """Return a lab whose adapter reads final states, with a matrix for them."""
    adapter = AdapterConfig("with-mlp", num_key_value_heads=3, final_states=True)
    lab = lab_of(base, adapter)
    shape = lab.weights["adapter"]["final_proj"]["kernel"].shape
    lab.weights["adapter"]["final_proj"]["kernel"] = jax.random.normal(jax.random.key(8), shape)
    return lab, adapter


def test_final_states_are_those_of_the_token_before(lab: Any) -> None:
    """With one token drafted at a time nothing is guessed, and drafts are those of one pass."""
    own, adapter = final_lab(lab)
    check_run(own, adapter, own.prompts, gamma=1)
    prompt = own.prompts[0]
    state, spec, controls = own.prefill(2, [prompt], 9, (-1,)), own.spec(2), own.controls(0.0)
    drafted = jax.jit(lambda *arrays: spec.drafter.draft(spec, *arrays))(own.weights, state, controls)
    text = [*prompt, int(state.tokens[0, len(prompt)]), int(drafted.tokens[0, 0])]
    guessed = first_confidences(own, adapter, text, len(prompt), guess=len(prompt))
    np.testing.assert_allclose(drafted.confidence[0, :2], guessed[-2:], rtol=1e-3)
    assert abs(first_confidences(own, adapter, text, len(prompt))[-1] / guessed[-1] - 1) > 0.01


@pytest.mark.parametrize("lookup", [0, 1])
@pytest.mark.parametrize("siblings", [0, 2])
def test_final_states_leave_ids_as_they_are(lab: Any, siblings: int, lookup: int) -> None:
    own, _ = final_lab(lab)
    drafter = partial(dec.Kangaroo, siblings=siblings, lookup=lookup)
    twice = [[*prompt, *prompt] for prompt in own.prompts]
    for prompts in (twice[1:2], twice):
        found = own.run(GAMMA, prompts, drafter=drafter)
        assert [each.ids for each in found] == [own.reference(prompt) for prompt in prompts]


def outside(target: Any, ids: np.ndarray) -> Any:
    """Return a target's head in which the columns of all other tokens are zero: their logits are 0, seldom highest."""
    kernel = np.asarray(head_kernel(target))
    return jnp.asarray(np.where(np.isin(np.arange(kernel.shape[1]), ids), kernel, 0.0))


@pytest.mark.parametrize("tied", [False, True])
def test_a_draft_vocabulary_drafts_the_likeliest_of_its_tokens_losslessly(lab: Any, tied: bool) -> None:
    adapter = AdapterConfig("with-mlp", num_key_value_heads=3, intermediate_size=17, draft_vocabulary=29)
    own = lab_of(lab, adapter, tie_word_embeddings=tied)
    ids = np.sort(np.random.default_rng(5).choice(own.config.vocab_size, 29, replace=False)).astype(np.int32)
    named = own.weights["adapter"] | {"draft_vocabulary": {"ids": jnp.asarray(ids)}}
    own.weights["adapter"] = with_draft_head(own.weights["target"], named)
    assert "lm_head" not in named
    prompts = own.prompts[:2]
    check_run(own, adapter, prompts)
    state = own.prefill(GAMMA, prompts, 9, (-1,))
    spec, controls = own.spec(GAMMA), own.controls(0.0)
    drafted = jax.jit(lambda *arrays: spec.drafter.draft(spec, *arrays))(own.weights, state, controls).tokens
    assert np.isin(drafted, ids).all()
    whole = own.weights | {"adapter": {**named, "lm_head": {"kernel": outside(own.weights["target"], ids)}}}
    del whole["adapter"]["draft_vocabulary"]
    same = jax.jit(lambda *arrays: spec.drafter.draft(spec, *arrays))(whole, state, controls).tokens
    np.testing.assert_array_equal(drafted, same)


@pytest.mark.parametrize("kind", ["mlp-only", "linear"])
def test_an_adapter_that_does_not_attend_has_no_cache(lab: Any, kind: str) -> None:
    drafter = dec.Kangaroo(AdapterConfig(kind), exit_layer=lab.exit_layer)
    spec = dec.DecodeSpec(lab.config, drafter, GAMMA)
    layers, adapter = jax.eval_shape(lambda: dec.allocate(spec.for_prefill, 2, 96, jnp.dtype(jnp.float32)))
    assert adapter is None and len(layers) == lab.config.num_hidden_layers
    for gamma, cached in ((GAMMA, True), (0, False)):
        own = lab.spec(gamma)
        memory = jax.eval_shape(lambda own=own: own.drafter.allocate(own, 2, 96, jnp.dtype(jnp.float32)))
        assert (memory is not None) is cached
