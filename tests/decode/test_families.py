"""Decoding is lossless with every option that a family adds to Llama's layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

OPTIONS = {
    "mistral": {"model_type": "mistral", "sliding_window": 7},  # Shorter than a prompt and than a block.
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
}


@pytest.fixture(
    scope="module",
    params=["qwen3", *(pytest.param(name, marks=pytest.mark.full) for name in ("mistral", "qwen2"))],
)
def family_lab(request: pytest.FixtureRequest, lab: Any) -> Any:
    """A lab whose target has one option, with biases and norms that matter."""
    made = type(lab)(dataclasses.replace(lab.config, **OPTIONS[request.param]), exit_layer=2)
    rng = np.random.default_rng(11)
    for index in range(made.config.num_hidden_layers):
        attention = made.weights["target"][f"layers_{index}"]["self_attn"]
        for part in ("q_norm", "k_norm"):
            if part in attention:
                attention[part]["scale"] = jnp.asarray(rng.uniform(0.5, 2.5, made.config.head_dim), jnp.float32)
        if "bias" in (fused := attention["qkv_proj"]):
            fused["bias"] = jnp.asarray(rng.normal(scale=0.3, size=fused["bias"].shape), jnp.float32)
    return made


def test_the_option_changes_the_text(family_lab: Any, lab: Any) -> None:
    plain = type(lab)(family_lab.config.plain, exit_layer=2)
    text = family_lab.reference(lab.prompts[1])
    assert text[:9] != plain.reference(lab.prompts[1], 9, family_lab.weights)
    assert len(set(text)) >= 15


def test_kangaroo_equals_plain(family_lab: Any, known: Any) -> None:
    """With the untrained adapter for one prompt, and with drafts that are partly right for several."""
    prompts, gamma = family_lab.prompts, 4
    expected = [family_lab.reference(prompt) for prompt in prompts]
    assert [outcome.ids for outcome in family_lab.run(0, prompts)] == expected
    assert [outcome.ids for outcome in family_lab.run(gamma, prompts[1:2], eta=0.3)] == expected[1:2]
    drafts = {"weights": family_lab.tables(prompts, "mixed"), "drafter": known}
    outcomes = family_lab.run(gamma, prompts, eta=0.3, **drafts)
    assert [outcome.ids for outcome in outcomes] == expected
    assert all(outcome.accepted > 0 for outcome in outcomes)
    # A prompt that is run in pieces, as long ones are.
    state = family_lab.prefill(gamma, prompts, family_lab.new_tokens, (-1,), chunk=4)
    assert family_lab.texts(family_lab.advance(gamma, state, eta=0.3, **drafts)) == expected
