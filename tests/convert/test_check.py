"""The check lets right conversions pass, and finds every mistake that a conversion could make."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from convert import check as checker
from convert.check import EXACT, ROUNDED, check, compare, holds, layerwise_logits, source_dtype
from convert.hf_to_flax import convert
from convert.reference import Reference, read_reference
from kangaroo_jax.model import forward
from kangaroo_jax.store import from_flax, read_config, read_hf, to_flax

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"
LAYER = "model.layers.1."


def golden(case):
    return read_reference(FIXTURES / case / "golden.npz", 97)


def report(case, change=lambda tensors: None, dtype="float32", rounded=None, **fields):
    """Check a conversion of a fixture in which the tensors or the config's fields were changed."""
    config, params = read_hf(FIXTURES / case)
    tensors = {name: values.copy() for name, values in from_flax(config, params)}
    change(tensors)
    params = to_flax(config, tensors, dtype)
    config = dataclasses.replace(config, **fields)
    return compare(layerwise_logits(config, params.__getitem__, golden(case).tokens), golden(case), rounded)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Convert a fixture, once for all tests; read only."""
    made = {}

    def make(case, dtype=None):
        if (case, dtype) not in made:
            made[case, dtype] = tmp_path_factory.mktemp("converted") / "out"
            convert(FIXTURES / case, made[case, dtype], dtype)
        return made[case, dtype]

    return make


def swap(first, second):
    def change(tensors):
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return change


def transpose(name):
    def change(tensors):
        tensors[name] = np.ascontiguousarray(tensors[name].T)

    return change


def lose(name):
    def change(tensors):
        tensors[name] = np.ones_like(tensors[name])

    return change


def swap_layers(tensors):
    for name in [name for name in tensors if name.startswith(LAYER)]:
        swap(name, name.replace(".1.", ".2."))(tensors)


MISTAKES = {
    "q and k swapped": swap(f"{LAYER}self_attn.q_proj.weight", f"{LAYER}self_attn.k_proj.weight"),
    "k and v swapped": swap(f"{LAYER}self_attn.k_proj.weight", f"{LAYER}self_attn.v_proj.weight"),
    "gate and up swapped": swap(f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"),
    "layers swapped": swap_layers,
    "q transposed": transpose(f"{LAYER}self_attn.q_proj.weight"),
    "o transposed": transpose(f"{LAYER}self_attn.o_proj.weight"),
    "norm lost": lose(f"{LAYER}input_layernorm.weight"),
    "last norm lost": lose("model.norm.weight"),
    "tables swapped": swap("model.embed_tokens.weight", "lm_head.weight"),
}


@pytest.mark.parametrize("case", ["mha", "llama3", "linear", "tied", "sharded", "mistral", "qwen2", "qwen3"])
def test_a_right_conversion_passes_by_far(case):
    found = report(case)
    assert found.passed and found.relative_error < EXACT / 10 and found.largest_error < found.largest_limit / 10
    assert found.top1_agreement > 0.99 and found.positions == 257


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tensors_in_the_wrong_place_fail(mistake):
    found = report("mha", MISTAKES[mistake])
    assert not found.passed and found.relative_error > 10 * EXACT and found.largest_error > found.largest_limit


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tensors_in_the_wrong_place_fail_whatever_is_allowed_for_rounding(mistake):
    assert not report("mha", MISTAKES[mistake], "bfloat16", rounded="bfloat16").passed


@pytest.mark.parametrize(
    ("case", "fields"),
    [
        ("gqa", {"rms_norm_eps": 1e-5}),
        ("mha", {"rms_norm_eps": 1e-6}),
        ("llama3", {"rope_scaling": None}),
        ("linear", {"rope_scaling": None}),
        ("theta", {"rope_theta": 1e4}),
        ("mistral", {"sliding_window": None}),
    ],
)
def test_a_wrong_config_fails(case, fields):
    found = report(case, **fields)
    assert not found.passed and found.relative_error > 10 * EXACT and found.largest_error > found.largest_limit


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_allowed_for_where_it_happened_and_nowhere_else(dtype):
    assert report("mha", dtype=dtype, rounded=dtype).passed
    found = report("mha", dtype=dtype)
    assert not found.passed and EXACT < found.relative_error < ROUNDED[dtype]


def test_the_measures_are_what_they_say():
    theirs = np.float32([[[0, 2, 4], [3, 2, 1], [5, 5, 8]]])
    ours = theirs + np.float32([[[0, 0, 0], [0, 1.5, 0], [0, 0, -0.5]]])
    found = compare(ours, Reference(np.zeros((1, 3), int), theirs, "it"))
    assert found.relative_error == pytest.approx(np.sqrt(2.5 / (8 + 2 + 6)))
    assert (found.positions, found.largest_error, found.top1_agreement) == (3, 1.5, 2 / 3)
    assert found.largest_limit == pytest.approx(1e-3 * np.sqrt(148 / 9)) and not found.passed
    # One position of many may not be far off, however small the mean error is; nor all of them a little.
    many = np.tile(theirs, (1, 5000, 1))
    alone, all_of_them = many.copy(), many * 1.0005
    alone[0, 700, 0] += 0.01
    tokens = np.zeros((1, 15000), int)
    for ours, one_limit in ((alone, True), (all_of_them, False)):
        found = compare(ours, Reference(tokens, many, "it"))
        assert not found.passed and (found.relative_error < EXACT) == one_limit


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rounded", [None, "bfloat16"])
def test_logits_that_are_no_numbers_fail(value, rounded):
    ours = golden("mha").logits.copy()
    ours[0, 3, 5] = value
    found = compare(ours, golden("mha"), rounded)
    assert not found.passed and not np.isfinite(found.largest_error)


@pytest.mark.parametrize("case", ["gqa", "tied", "qwen2"])
def test_layer_by_layer_equals_the_whole(case):
    config, params = read_hf(FIXTURES / case, "float32")
    tokens = np.random.default_rng(1).integers(97, size=(3, 11))
    np.testing.assert_allclose(
        layerwise_logits(config, params.__getitem__, tokens),
        jax.jit(forward, static_argnums=0)(config, params, jnp.asarray(tokens)),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("case", ["gqa", "tied"])
def test_one_piece_is_held_at_a_time_and_all_layers_are_one_program(case):
    config, params = read_hf(FIXTURES / case)
    config = dataclasses.replace(config, max_position_embeddings=499)  # A program of its own.
    asked, alive = [], []

    def part(name):
        live = {other for other, leaf in alive if leaf() is not None}
        assert live <= {"norm"}, f"{live} while {name} is read"
        piece = jax.tree.map(jnp.array, params[name])
        alive.extend((name, weakref.ref(leaf)) for leaf in jax.tree.leaves(piece))
        asked.append(name)
        return piece

    seen = []
    before = checker._layer._cache_size()
    layerwise_logits(config, part, np.zeros((1, 7), int), lambda layers: seen.append(len(layers)) or layers)
    head = "embed_tokens" if case == "tied" else "lm_head"
    assert asked == ["embed_tokens", "layers_0", "layers_1", "layers_2", "norm", head]
    assert seen == [3] and checker._layer._cache_size() == before + 1


@pytest.mark.parametrize("other", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_holds_itself_and_float32_holds_all(dtype, other):
    kinds = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
    assert holds(kinds[dtype], kinds[other]) == (dtype in ("float32", other))


def test_the_dtype_of_a_source_is_that_of_what_is_converted():
    assert [source_dtype(FIXTURES / case).name for case in ("mha", "gqa", "sharded")] == [
        "float32",
        "bfloat16",
        "float16",
    ]


@pytest.mark.parametrize(
    ("case", "dtype", "rounded"),
    [
        ("sharded", None, None),
        ("sharded", "float32", None),
        ("sharded", "bfloat16", "bfloat16"),
        ("gqa", "float16", "float16"),
    ],
)
def test_a_converted_directory_and_a_stored_reference(case, dtype, rounded, converted):
    found = check(converted(case, dtype), FIXTURES / case, FIXTURES / case / "golden.npz")
    assert found.passed and found.rounded == rounded and found.limit == ROUNDED[rounded or "float32"]
    assert np.isinf(found.largest_limit) == (rounded is not None)


def test_an_unusable_reference_is_noticed_before_a_conversion(tmp_path, monkeypatch):
    checker.check_reference(FIXTURES / "mha", FIXTURES / "mha" / "golden.npz")
    with pytest.raises(ValueError, match="no file"):
        checker.check_reference(FIXTURES / "mha", tmp_path / "absent.npz")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="torch is not installed"):
        checker.check_reference(FIXTURES / "mha", None)


def test_a_coarse_reference_is_allowed_for(converted, tmp_path):
    found = golden("sharded")
    np.savez(tmp_path / "half.npz", tokens=found.tokens, logits=found.logits.astype(np.float16))
    assert check(converted("sharded"), FIXTURES / "sharded", tmp_path / "half.npz").rounded == "float16"


@pytest.mark.parametrize(("dtype", "rounding"), [(None, "float16"), ("float32", "float16"), ("bfloat16", "bfloat16")])
def test_transformers_gets_the_weights_as_they_were_rounded(dtype, rounding, converted, monkeypatch):
    asked = []

    def computed(source, tokens, dtype):
        asked.append((source, dtype))
        config, params = read_hf(source, dtype)
        return layerwise_logits(config, params.__getitem__, tokens)

    monkeypatch.setattr("convert.reference.transformers_logits", computed)
    found = check(converted("sharded", dtype), FIXTURES / "sharded")
    assert asked == [(FIXTURES / "sharded", rounding)]
    assert found.passed and (found.limit, found.rounded, found.positions) == (EXACT, None, 640)


def test_a_converted_config_that_lost_something_fails(converted, tmp_path):
    shutil.copytree(converted("llama3"), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_scaling": None}))
    assert read_config(tmp_path / "out").rope_scaling is None
    found = check(tmp_path / "out", FIXTURES / "llama3", FIXTURES / "llama3" / "golden.npz")
    assert not found.passed


def test_the_text_has_numbers_limits_and_verdict():
    assert str(report("mha")).startswith("check passed: 257 positions against ")
    failed = str(report("gqa", rms_norm_eps=1e-5))
    assert failed.startswith("check FAILED: 257 positions against ") and "(limit 1.0e-04)" in failed
    assert "\n" not in failed and "golden.npz: relative error 4." in failed
    assert "(limit 5.0e-02, which allows for values rounded to bfloat16)" in str(report("mha", rounded="bfloat16"))
