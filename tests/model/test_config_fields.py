"""Every constant of the config reaches the computation: changing it changes the logits of a fixture visibly."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model import forward
from kangaroo_jax.store import read_hf

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"
VISIBLE = 1e-2  # a hundred times the tolerance of the parity tests


@functools.cache
def unchanged(case):
    """Logits of a fixture as it is."""
    return logits_of(case)


def logits_of(case, **changes):
    """Logits of a fixture's weights under its config with ``changes``."""
    config, params = read_hf(FIXTURES / case, "float32")
    with np.load(FIXTURES / case / "golden.npz") as golden:
        tokens = jnp.asarray(golden["tokens"])[None]
    if "rope_scaling" in changes and isinstance(changes["rope_scaling"], dict):
        changes["rope_scaling"] = dataclasses.replace(config.rope_scaling, **changes["rope_scaling"])
    return np.asarray(jax.jit(forward, static_argnums=0)(dataclasses.replace(config, **changes), params, tokens))


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("gqa", {"rms_norm_eps": 1e-5}),
        ("theta", {"rope_theta": 1e4}),
        ("gqa", {"head_dim": 6, "num_attention_heads": 8, "num_key_value_heads": 4}),
        ("mha", {"num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 4}),
        ("gqa", {"num_hidden_layers": 2}),
        ("linear", {"rope_scaling": None}),
        ("linear", {"rope_scaling": {"factor": 2.0}}),
        ("llama3", {"rope_scaling": None}),
        ("llama3", {"rope_scaling": {"rope_type": "linear"}}),
        ("llama3", {"rope_scaling": {"factor": 4.0}}),
        ("llama3", {"rope_scaling": {"low_freq_factor": 0.5}}),
        ("llama3", {"rope_scaling": {"high_freq_factor": 3.0}}),
        ("llama3", {"rope_scaling": {"original_max_position_embeddings": 128}}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 32}),
        ("qwen2", {"model_type": "llama"}),
        ("qwen3", {"model_type": "llama"}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_changed_field_changes_the_logits(case, changes):
    assert np.abs(logits_of(case, **changes) - unchanged(case)).max() > VISIBLE


def test_tied_embeddings_are_the_head():
    config, params = read_hf(FIXTURES / "tied", "float32")
    assert config.tie_word_embeddings and "lm_head" not in params
    tokens = jnp.arange(97)[None]
    other = params | {"lm_head": {"kernel": jnp.roll(params["embed_tokens"]["embedding"].T, 1, axis=1)}}
    tied = np.asarray(forward(config, params, tokens))
    np.testing.assert_array_equal(np.asarray(forward(config, other, tokens)), np.roll(tied, 1, axis=-1))
