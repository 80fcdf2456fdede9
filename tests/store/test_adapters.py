"""Adapters: written whole, read back bit-equal in either form, refused in one line when damaged or another's."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from kangaroo_jax.model import AdapterConfig, KangarooConfig, LlamaConfig, RopeScaling, init_adapter
from kangaroo_jax.store import (
    ExtraTensors,
    config_from_hf,
    config_to_hf,
    find_adapter,
    fingerprint,
    from_flax,
    load_adapter,
    save_adapter,
)
from kangaroo_jax.store.adapter_record import adapter_record
from kangaroo_jax.store.hf import write_safetensors
from kangaroo_jax.store.tables import ADAPTER
from kangaroo_jax.store.torch_file import write_torch

CONFIG = LlamaConfig(31, 22, 29, 3, 6, 3, 4)
DRAFT = KangarooConfig(exit_layer=2, gamma=5, eta=0.4)


@pytest.fixture
def adapter(tmp_path):
    """An adapter directory and the params in it."""
    params = jax.device_get(init_adapter(CONFIG, jax.random.key(1)))
    save_adapter(tmp_path / "adapter", CONFIG, DRAFT, params, {"steps": 7})
    return tmp_path / "adapter", params


def write_config(directory, **fields):
    """Write the config.json of the authors' form."""
    one = dataclasses.replace(CONFIG, num_hidden_layers=1)
    (directory / "config.json").write_text(json.dumps(config_to_hf(one) | fields))


@pytest.fixture
def theirs(tmp_path):
    """A directory in the authors' form, the params in it, and the named tensors."""
    params = jax.device_get(init_adapter(CONFIG, jax.random.key(1)))
    tensors = dict(from_flax(CONFIG, params, ADAPTER))
    (tmp_path / "theirs").mkdir()
    write_config(tmp_path / "theirs")
    inv_freq = {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    write_torch(tmp_path / "theirs" / "pytorch_model.bin", tensors | inv_freq)
    return tmp_path / "theirs", params, tensors


def refused(call, match):
    """The call fails with a one-line ValueError."""
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_adapter_comes_back(adapter):
    directory, params = adapter
    draft, loaded = load_adapter(directory, CONFIG, "float32")
    assert draft == DRAFT
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), params)
    fields = json.loads((directory / "adapter_config.json").read_text())
    assert fields == {
        "exit_layer": 2,
        "gamma": 5,
        "eta": 0.4,
        "adapter": "kangaroo",
        "hidden_size": 22,
        "target": fingerprint(CONFIG),
        "training": {"steps": 7},
    }
    tensors = load_file(directory / "adapter.safetensors")
    assert tensors["layers.0.self_attn.k_proj.weight"].shape == (12, 22)
    assert set(tensors) == {
        "norm.weight",
        "layers.0.input_layernorm.weight",
        *(f"layers.0.self_attn.{part}_proj.weight" for part in "qkvo"),
    }


def test_saving_an_adapter_replaces_the_old_one_only(adapter, tmp_path):
    directory, params = adapter
    save_adapter(directory, CONFIG, KangarooConfig(1), params, {})
    assert load_adapter(directory, CONFIG)[0].exit_layer == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    refused(lambda: save_adapter(tmp_path / "thesis", CONFIG, DRAFT, params, {}), "thesis exists and is not an adapter")
    assert (tmp_path / "thesis" / "chapter1.txt").is_file()


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(adapter, tmp_path):
    directory, params = adapter
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_adapter(directory, CONFIG, KangarooConfig(1), params, {"when": object()})
    assert load_adapter(directory, CONFIG)[0] == DRAFT
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_of_another_target_is_refused(adapter):
    directory, _ = adapter
    wider = dataclasses.replace(CONFIG, hidden_size=26)
    refused(lambda: load_adapter(directory, wider), "hidden_size 22, the model has 26; use the adapter trained for")
    shallow = dataclasses.replace(CONFIG, num_hidden_layers=2)
    refused(lambda: load_adapter(directory, shallow), "exit_layer is 2; a model of 2 layers needs 1 to 1")
    other = dataclasses.replace(CONFIG, rope_theta=5e5)
    refused(lambda: load_adapter(directory, other), "for target llama-.*, the model is llama-.*; use the adapter")


def test_a_damaged_adapter_is_refused(adapter, tmp_path):
    directory, _ = adapter
    config, weights = directory / "adapter_config.json", directory / "adapter.safetensors"
    text, data = config.read_text(), weights.read_bytes()
    weights.write_bytes(data[:-3])
    refused(lambda: load_adapter(directory, CONFIG), "adapter.safetensors is not a complete safetensors file")
    weights.unlink()
    refused(lambda: load_adapter(directory, CONFIG), "adapter.safetensors is not a complete safetensors file")
    weights.write_bytes(data)
    for name, value in (("exit_layer", None), ("gamma", 2.5), ("eta", "0.6"), ("hidden_size", True), ("training", [])):
        config.write_text(json.dumps(json.loads(text) | {name: value}))
        refused(lambda name=name: load_adapter(directory, CONFIG), f"has no usable {name}; train or download")
    for name, value in (("exit_layer", 0), ("gamma", 0), ("gamma", 2049), ("eta", -0.1), ("eta", np.inf)):
        config.write_text(json.dumps(json.loads(text) | {name: value}))
        refused(lambda name=name: load_adapter(directory, CONFIG), f"{name} is {value}")
    for name in ("exit_layer", "gamma", "eta", "hidden_size"):
        config.write_text(json.dumps(json.loads(text) | {name: 10**400}))
        refused(lambda name=name: load_adapter(directory, CONFIG), rf"{name} (is )?10+\.\.\.0+[;,]")
    config.write_text("[" * 200_000)
    refused(lambda: load_adapter(directory, CONFIG), "adapter_config.json is not JSON .maximum recursion")
    config.write_text("{")
    refused(lambda: load_adapter(directory, CONFIG), "adapter_config.json is not JSON")
    refused(lambda: load_adapter(tmp_path, CONFIG), r"has neither adapter_config.json nor config.json; give an adapter")


def test_the_authors_form_is_read_with_the_exit_layer_it_does_not_say(theirs):
    directory, params, tensors = theirs
    for _ in range(2):
        draft, loaded = load_adapter(directory, CONFIG, "float32", exit_layer=2)
        assert draft == KangarooConfig(2, gamma=6, eta=0.6)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), params)
        (directory / "pytorch_model.bin").unlink(missing_ok=True)
        write_safetensors(directory / "model.safetensors", tensors)
    refused(
        lambda: load_adapter(directory, CONFIG), "does not say after which layer .* pass exit_layer=, or --exit-layer"
    )
    refused(lambda: load_adapter(directory, CONFIG, exit_layer=3), "exit_layer is 3; a model of 3 layers needs 1 to 2")


def test_an_exit_layer_that_is_said_need_not_be_given_and_cannot_be_another(adapter, theirs):
    ours, exported = adapter[0], theirs[0]
    write_config(exported, kangaroo=adapter_record(CONFIG, DRAFT, {}))
    for directory in (ours, exported):
        assert load_adapter(directory, CONFIG)[0] == load_adapter(directory, CONFIG, exit_layer=2)[0] == DRAFT
        refused(
            lambda d=directory: load_adapter(d, CONFIG, exit_layer=1), "for exit_layer 2, and exit_layer 1 is asked"
        )


@pytest.mark.parametrize("value", ["2", 2.0, True])
def test_an_exit_layer_is_an_integer(theirs, value):
    refused(
        lambda: load_adapter(theirs[0], CONFIG, exit_layer=value), f"exit_layer is {value!r}; it must be an integer"
    )


def test_another_targets_adapter_in_the_authors_form_is_refused(theirs):
    directory, _, _ = theirs
    write_config(directory, hidden_size=26)
    refused(
        lambda: load_adapter(directory, CONFIG, exit_layer=1), "hidden_size 26 instead of 22; use the adapter trained"
    )
    write_config(directory, rope_theta=5e5)
    refused(lambda: load_adapter(directory, CONFIG, exit_layer=1), "rope_theta 500000.0 instead of 10000.0; use the")
    # Of the same width and rope, but trained on a model with another MLP.
    other = adapter_record(dataclasses.replace(CONFIG, intermediate_size=31), DRAFT, {})
    for record in (other, other | {"target": "llama-\n"}):
        write_config(directory, kangaroo=record)
        refused(
            lambda: load_adapter(directory, CONFIG), "is for target llama-.*, the model is llama-.*; use the adapter"
        )


def test_a_damaged_adapter_in_the_authors_form_is_refused(theirs):
    directory, _, tensors = theirs
    weights = directory / "pytorch_model.bin"
    data = weights.read_bytes()
    for record, said in (
        ([], "config.json has no usable kangaroo; train or download"),
        ({}, "config.json, kangaroo, has no usable exit_layer, gamma, eta, hidden_size, target; train or download"),
        (adapter_record(CONFIG, KangarooConfig(3), {}), "kangaroo,: exit_layer is 3; a model of 3 layers needs"),
    ):
        write_config(directory, kangaroo=record)
        refused(lambda: load_adapter(directory, CONFIG), said)
    write_config(directory)
    weights.write_bytes(data[: len(data) // 2])
    refused(lambda: load_adapter(directory, CONFIG, exit_layer=1), "pytorch_model.bin")
    weights.unlink()
    refused(lambda: load_adapter(directory, CONFIG, exit_layer=1), "has none of model.safetensors")
    write_torch(weights, tensors | {"lm_head.weight": np.ones((31, 22), np.float32)})
    with pytest.raises(ExtraTensors, match=r"lm_head\.weight"):
        load_adapter(directory, CONFIG, exit_layer=1)
    (directory / "config.json").write_text("{")
    refused(lambda: load_adapter(directory, CONFIG, exit_layer=1), "config.json is not JSON")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "qwen2"}, "has model_type qwen2; an adapter is plain Llama attention"),
        ({"model_type": "qwen3"}, "has model_type qwen3; an adapter"),
        ({"model_type": "mistral", "sliding_window": 7}, "has model_type mistral and a sliding window; an adapter"),
    ],
)
def test_attention_that_is_not_plain_llamas_is_no_adapters(theirs, fields, said):
    write_config(theirs[0], **fields)
    refused(lambda: load_adapter(theirs[0], CONFIG, exit_layer=1), said)


def test_a_model_is_not_an_adapter(theirs):
    directory, _, _ = theirs
    write_config(directory, num_hidden_layers=3)
    refused(lambda: load_adapter(directory, CONFIG), "is of a model of 3 layers; give an adapter directory")


def test_fingerprints_tell_targets_apart():
    same = [
        dataclasses.replace(CONFIG, rope_theta=10000),
        dataclasses.replace(CONFIG, eos_token_id=(5, 6), bos_token_id=None, max_position_embeddings=4096),
        config_from_hf(config_to_hf(CONFIG)),
    ]
    assert {fingerprint(config) for config in same} == {fingerprint(CONFIG)}
    scaling = RopeScaling("llama3", 8.0)
    others = [
        dataclasses.replace(CONFIG, vocab_size=37),
        dataclasses.replace(CONFIG, hidden_size=26),
        dataclasses.replace(CONFIG, head_dim=8),
        dataclasses.replace(CONFIG, num_hidden_layers=4),
        dataclasses.replace(CONFIG, num_key_value_heads=6),
        dataclasses.replace(CONFIG, rms_norm_eps=1e-5),
        dataclasses.replace(CONFIG, tie_word_embeddings=True),
        dataclasses.replace(CONFIG, rope_scaling=scaling),
        dataclasses.replace(CONFIG, rope_scaling=dataclasses.replace(scaling, factor=4.0)),
    ]
    assert len({fingerprint(config) for config in [CONFIG, *others]}) == len(others) + 1


def test_the_adapter_of_a_model_is_found(adapter, tmp_path):
    directory, _ = adapter
    assert find_adapter(tmp_path) == directory
    assert find_adapter(directory) is None
    assert find_adapter(directory, str(directory)) == directory
    refused(lambda: find_adapter(tmp_path, tmp_path / "none"), "no adapter directory .*none'; train one")
    refused(lambda: find_adapter(tmp_path, "x" * 5000), "no adapter directory 'xxx")


@pytest.mark.parametrize("value", [3, b"x", "", ["a"]])
def test_what_names_no_adapter_directory(tmp_path, value):
    refused(lambda: find_adapter(tmp_path, value), f"^adapter is {re.escape(repr(value))}; give an adapter directory")


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"loss": float("nan")}, "adapter_config.json cannot be written: training.loss is not a finite number; leave"),
        ({"a": [1, {"b": float("inf")}]}, "training.a.1.b is not a finite number"),
    ],
)
def test_numbers_that_json_has_not_are_named(tmp_path, training, said):
    params = init_adapter(CONFIG, jax.random.key(1))
    refused(lambda: save_adapter(tmp_path / "new", CONFIG, DRAFT, params, training), said)
    assert not any(tmp_path.iterdir())


RICH = AdapterConfig("with-mlp", num_key_value_heads=2, intermediate_size=13, draft_vocabulary=4)


@pytest.fixture
def rich(tmp_path):
    """An adapter directory with heads, a width and a draft vocabulary of its own, and the params in it."""
    ids = np.array([2, 3, 17, 30], np.int32)
    params = jax.device_get(init_adapter(CONFIG, jax.random.key(1), RICH)) | {"draft_vocabulary": {"ids": ids}}
    save_adapter(tmp_path / "rich", CONFIG, dataclasses.replace(DRAFT, adapter=RICH), params, {})
    return tmp_path / "rich", params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_draft_vocabulary_comes_back_as_it_was(rich, dtype):
    directory, params = rich
    draft, loaded = load_adapter(directory, CONFIG, dtype)
    assert draft.adapter == RICH
    ids = loaded.pop("draft_vocabulary")["ids"]
    np.testing.assert_array_equal(ids, params.pop("draft_vocabulary")["ids"])
    assert ids.dtype == np.int32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {dtype}
    if dtype == "float32":
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), params)


@pytest.mark.parametrize(
    "ids",
    [
        None,
        np.array([2, 3, 17], np.int32),
        np.array([3, 2, 17, 30], np.int32),
        np.array([2, 3, 3, 30], np.int32),
        np.array([-1, 3, 17, 30], np.int32),
        np.array([2, 3, 17, 31], np.int32),
        np.array([2, 3, 17, 30], np.float32),
        np.array([[2, 3, 17, 30]], np.int32),
    ],
    ids=str,
)
def test_a_damaged_draft_vocabulary_is_refused(rich, ids):
    directory, params = rich
    file = directory / "adapter.safetensors"
    tensors = load_file(file) | {"draft_vocabulary": ids}
    write_safetensors(file, {name: value for name, value in tensors.items() if value is not None})
    refused(lambda: load_adapter(directory, CONFIG), "draft_vocabulary.*again$")
    if ids is not None:
        bad = params | {"draft_vocabulary": {"ids": ids}}
        draft = dataclasses.replace(DRAFT, adapter=RICH)
        refused(lambda: save_adapter(directory, CONFIG, draft, bad, {}), "draft_vocabulary")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_key_value_heads", 4, "must divide the 6 heads"),
        ("draft_vocabulary", 32, "the model has 31 tokens"),
        ("draft_vocabulary", "4", "no usable draft_vocabulary"),
        ("intermediate_size", -1, "intermediate_size is -1"),
        ("intermediate_size", 14, "another shape"),
    ],
)
def test_a_record_of_what_is_not_there_is_refused(rich, field, value, said):
    directory, _ = rich
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    refused(lambda: load_adapter(directory, CONFIG), said)


def test_whole_tensors_of_integers_are_no_weights(rich):
    directory, _ = rich
    file = directory / "adapter.safetensors"
    tensors = load_file(file)
    write_safetensors(file, tensors | {"norm.weight": np.ones(22, np.int32)})
    refused(lambda: load_adapter(directory, CONFIG), "norm.weight is int32; only float32")
