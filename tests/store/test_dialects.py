"""``config.json`` of every family is read as transformers reads it, written back, and refused where it must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import config_from_hf, config_to_hf, fingerprint, read_config

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"
SHAPE = {
    "vocab_size": 31,
    "hidden_size": 64,
    "intermediate_size": 29,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 7}


def read(**fields):
    return config_from_hf(SHAPE | fields)


@pytest.mark.parametrize("case", sorted(path.name for path in FIXTURES.iterdir()))
def test_written_and_read_again_is_the_same(case):
    config = read_config(FIXTURES / case)
    written = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(written) == config
    stored = json.loads((FIXTURES / case / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == (stored["model_type"], stored["architectures"])


@pytest.mark.parametrize(
    ("model_type", "kv_heads", "head_dim", "window", "positions", "bos", "eos"),
    [
        (None, 32, 2, None, 2048, 1, (2,)),
        ("llama", 32, 2, None, 2048, 1, (2,)),
        ("mistral", 8, 2, 4096, 131072, 1, (2,)),
        ("qwen2", 32, 2, None, 32768, None, ()),
        ("qwen3", 32, 128, None, 32768, None, ()),
    ],
)
def test_fields_left_out_are_what_transformers_takes(model_type, kv_heads, head_dim, window, positions, bos, eos):
    config = read(model_type=model_type)
    assert (config.num_key_value_heads, config.head_dim, config.sliding_window) == (kv_heads, head_dim, window)
    assert (config.max_position_embeddings, config.bos_token_id, config.eos_token_id) == (positions, bos, eos)
    assert (config.rms_norm_eps, config.rope_theta, config.tie_word_embeddings) == (1e-6, 1e4, False)


def test_the_context_of_vicunas_16k_models():
    scaling = {"factor": 4.0, "type": "linear"}
    config = read(max_position_embeddings=4096, max_sequence_length=16384, rope_scaling=scaling)
    assert config.max_position_embeddings == 16384
    assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"model_type": "llama", "sliding_window": 7}, None),
        ({"model_type": "mistral", "sliding_window": 7}, 7),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": False, "max_window_layers": 0}, None),
        ({"model_type": "qwen2", "max_window_layers": 0, **WINDOW}, 7),
        ({"model_type": "qwen2", "max_window_layers": 3, **WINDOW}, None),
        ({"model_type": "qwen3", "max_window_layers": 28, **WINDOW}, None),
        ({"model_type": "qwen3", "max_window_layers": 0, "layer_types": ["sliding_attention"] * 3, **WINDOW}, 7),
    ],
)
def test_a_sliding_window_is_read_where_transformers_uses_it(fields, window):
    assert read(**fields).sliding_window == window
    assert config_from_hf(config_to_hf(read(**fields))) == read(**fields)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model_type": "gemma2"}, "model_type = 'gemma2'; only 'llama', 'mistral', 'qwen2', 'qwen3' are supported"),
        ({"model_type": "mixtral"}, "model_type = 'mixtral'"),
        ({"model_type": "qwen3_moe"}, "model_type = 'qwen3_moe'"),
        ({"num_local_experts": 8}, r"num_local_experts = 8; mixtures of experts are not"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantization_config \(gptq\); quantised"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'; only 'silu' is supported"),
        ({"attention_bias": True}, "attention_bias = True; only False is supported"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"rope_interleaved": True}, "rope_interleaved = True"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "rope_type 'longrope'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters for full_attention"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"model_type": "qwen2", "max_window_layers": 1, **WINDOW}, "window from layer 1 on .* all of the 3 layers"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 3}, "only full_attention throughout fits"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 3}, "only sliding_attention throughout fits"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0; it must be at least 1"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(fields, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        read(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_act": "swish", "pretraining_tp": 2, "is_llama_config": True, "rope_interleaved": False},
        {"quantization_config": None, "num_experts": 0, "partial_rotary_factor": 1.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
    ],
)
def test_settings_that_change_nothing_are_let_through(fields):
    assert read(**fields) == read()


def test_a_config_that_fits_no_family_is_not_made():
    shape = (31, 64, 29, 3, 4, 2, 16)
    with pytest.raises(ValueError, match="model_type is 'gpt2'; it must be one of llama, mistral, qwen2, qwen3"):
        LlamaConfig(*shape, model_type="gpt2")
    with pytest.raises(ValueError, match="sliding_window is 7, but models of model_type 'llama' have none"):
        LlamaConfig(*shape, sliding_window=7)


def test_fingerprints_tell_families_apart_and_llamas_is_what_adapters_carry():
    configs = [
        read(),
        read(model_type="mistral", num_key_value_heads=32),
        read(model_type="mistral", num_key_value_heads=32, sliding_window=7),
        read(model_type="qwen2"),
        read(model_type="qwen2", max_window_layers=0, **WINDOW),
        read(model_type="qwen3", head_dim=2),
    ]
    assert len({fingerprint(config) for config in configs}) == len(configs)
    # As of version 0.1.0: a field that to_hf() adds or drops would part every adapter from its target.
    assert fingerprint(configs[0]) == "llama-439b5c34fcc2a401"
