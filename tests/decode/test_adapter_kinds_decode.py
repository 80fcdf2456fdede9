"""Every kind of adapter drafts: ids are those of plain greedy decoding, drafts those of the kind without a cache."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax import decode as dec
from kangaroo_jax.model import AdapterConfig, draft_head, embed, init_adapter, line, run_adapter, run_layers

GAMMA = 3


def lab_of(base: Any, adapter: AdapterConfig, **changes: Any) -> Any:
    """Return a lab whose draft model has another adapter."""
    lab = type(base)(dataclasses.replace(base.config, num_hidden_layers=3, **changes), 1, adapter)
    # The head of the adapter's own is not the target's, so that it matters which is used.
    lab.weights["adapter"] = jax.tree.map(
        lambda leaf: leaf * 3 if leaf.ndim == 2 else leaf, init_adapter(lab.config, jax.random.key(3), adapter)
    )
    return lab


def first_confidences(lab: Any, adapter: AdapterConfig, text: list[int]) -> np.ndarray:
    """Return the draft model's top-1 probability after every token of a text, from one pass without caches."""

    @jax.jit
    def one_pass(weights: Any, text: Any) -> Any:
        context = line(jnp.arange(text.shape[1])[None], None)
        x, _ = run_layers(
            lab.config, weights["target"], embed(weights["target"], text), context, None, 0, lab.exit_layer
        )
        x, _ = run_adapter(lab.config, weights["adapter"], x, context, None, adapter)
        return jax.nn.softmax(x @ draft_head(weights["target"], weights["adapter"])).max(-1)[0]

    return np.asarray(one_pass(lab.weights, np.array([text], np.int32)))


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
    prompts = own.prompts[:2]
    for prompt, outcome in zip(prompts, own.run(GAMMA, prompts), strict=True):
        assert outcome.ids == own.reference(prompt)
        expected = first_confidences(own, adapter, [*prompt, *outcome.ids])
        # A round starts from the newest committed token.
        starts = [len(prompt) + done for done in (0, *itertools.accumulate(outcome.accept_lengths[:-1]))]
        np.testing.assert_allclose([sure[0] for sure in outcome.confidence], expected[starts], rtol=1e-3)
        assert len({round(float(value), 3) for value in expected}) > 10


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
