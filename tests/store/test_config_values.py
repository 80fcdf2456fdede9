"""Fields of ``config.json`` have the kind and the range they must have; what is refused is said on one short line."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo_jax.model import RopeScaling
from kangaroo_jax.store import config_from_hf, config_to_hf

SHAPE = {
    "vocab_size": 31,
    "hidden_size": 64,
    "intermediate_size": 29,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4} | {
    "original_max_position_embeddings": 64
}
INTEGERS = (*SHAPE, "num_key_value_heads", "head_dim", "max_position_embeddings", "bos_token_id", "eos_token_id")
HUGE = 10**400


def refused(said, **fields):
    """Reading fails with one short line."""
    with pytest.raises(ValueError, match=said) as caught:
        config_from_hf(SHAPE | fields)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("name", [*INTEGERS, "sliding_window"])
@pytest.mark.parametrize("value", [64.0, "64", True, math.inf, HUGE, -5, {"a": [1]}], ids=str)
def test_integers(name, value):
    shown = r"10+\.\.\.0+; it must be at most" if value == HUGE else re.escape(repr(value)) + "; it must be an? ?"
    refused(f"^{name} is {shown}", **{name: value, "model_type": "mistral"})


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [math.nan, math.inf, HUGE, -1, 0, "1e-5", True, [1]], ids=str)
def test_numbers(name, value):
    refused(f"^{name} is .*; it must be (above 0 and finite|a number)$", **{name: value})


@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "high_freq_factor"])
@pytest.mark.parametrize("value", [math.nan, HUGE, -1, 0, "8", None], ids=str)
def test_numbers_of_the_rope(name, value):
    refused(f"^{name} is .*; it must be (above 0 and finite|a number)$", rope_scaling=LLAMA3 | {name: value})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "^factor is 0; it must be above 0 and finite"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, r"^low_freq_factor is 4.0; it must be below .* \(4.0\)"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 6.5}}, "^original_max.* is 6.5; it must be an"),
        ({"rope_scaling": [1]}, r"^rope_scaling is \[1\]; it must be an object or null"),
        ({"rope_parameters": "x"}, "^rope_parameters is 'x'; it must be an object or null"),
        ({"rope_parameters": {"rope_theta": 0}}, "^rope_theta is 0; it must be above 0"),
        ({"num_hidden_layers": 10**9}, "^num_hidden_layers is 1000000000; it must be at most 1000"),
        ({"eos_token_id": [2, "a"]}, "^eos_token_id is 'a'; it must be an integer"),
        ({"tie_word_embeddings": "no"}, "^tie_word_embeddings is 'no'; it must be true or false"),
        ({"head_dim": 3}, "^head_dim is 3; rotary embedding needs an even number"),
        ({"num_attention_heads": 64, "hidden_size": 32}, "^head_dim is 0; it must be at least 2"),
        ({"quantization_config": "a\nb"}, r"quantization_config \(a\\nb\); quantised"),
        ({"quantization_config": "x" * 9999}, r"quantization_config \(x+\.\.\.x+\); quantised"),
        ({"model_type": "x" * 9999}, r"model_type = 'x+\.\.\.x+'; only"),
        ({"hidden_act": ["x"] * 9999}, r"hidden_act = \['x', .*\.\.\.\]; only"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "x"},
            "^max_window_layers is 'x'; it",
        ),
    ],
)
def test_what_else_is_refused(fields, said):
    refused(said, **fields)


def test_integers_of_json_are_floats_where_floats_are_meant():
    config = config_from_hf(SHAPE | {"rope_theta": 500000, "rms_norm_eps": 1, "rope_scaling": LLAMA3})
    assert config.rope_scaling is not None
    values = (config.rope_theta, config.rms_norm_eps, *dataclasses.astuple(config.rope_scaling)[1:4])
    assert values == (500000, 1, 8, 1, 4) and {type(value) for value in values} == {float}
    assert config_from_hf(SHAPE | {"rope_theta": None}).rope_theta == 10000.0


def test_a_rope_of_no_known_type_is_not_made():
    with pytest.raises(ValueError, match="rope_type is 'yarn'; it must be 'linear' or 'llama3'"):
        RopeScaling("yarn", 2.0)


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([HUGE, -HUGE]) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
READ = (*INTEGERS, "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "model_type")
REFUSED = ("hidden_act", "quantization_config", "num_experts", "layer_types", "sliding_window", "max_sequence_length")


@given(st.dictionaries(st.sampled_from([*READ, *REFUSED]), NESTED, max_size=3))
def test_whatever_json_holds_is_a_config_or_one_line(fields):
    try:
        config = config_from_hf(SHAPE | fields)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return
    assert config_from_hf(config_to_hf(config)) == config and hash(config) == hash(config)
