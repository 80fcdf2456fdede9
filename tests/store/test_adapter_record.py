"""What an adapter's record says: its kind and rotary base, written and read back, refused when damaged."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kangaroo_jax.model import ADAPTER_KINDS, AdapterConfig, KangarooConfig, LlamaConfig, RopeScaling, init_adapter
from kangaroo_jax.store import ExtraTensors, MissingTensors, config_to_hf, from_flax, load_adapter, save_adapter
from kangaroo_jax.store.adapter_record import adapter_record
from kangaroo_jax.store.hf import write_safetensors
from kangaroo_jax.store.tables import ADAPTER, adapter_table

CONFIG = LlamaConfig(31, 22, 29, 3, 6, 3, 4)
TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
LLAMA3 = dataclasses.replace(CONFIG, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0))
ATTENTION = {f"layers.0.self_attn.{part}_proj.weight" for part in "qkvo"}
MLP = {f"layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
NORMS = {"norm.weight", "layers.0.input_layernorm.weight"}
NAMES = {
    "kangaroo": ATTENTION | NORMS,
    "with-mlp": ATTENTION | MLP | NORMS | {"layers.0.post_attention_layernorm.weight"},
    "mlp-only": MLP | NORMS,
    "linear": NORMS | {"layers.0.linear.weight"},
    "no-input-norm": ATTENTION | {"norm.weight"},
    "own-head": ATTENTION | NORMS | {"lm_head.weight"},
}


def saved(directory, adapter, config=CONFIG):
    """Save an adapter; return what was."""
    params = jax.device_get(init_adapter(config, jax.random.key(1), adapter))
    draft = KangarooConfig(2, 5, 0.4, adapter)
    save_adapter(directory, config, draft, params, {"steps": 7})
    return draft, params


def theirs(directory, config, **fields):
    """Write an adapter in the authors' form."""
    directory.mkdir()
    params = jax.device_get(init_adapter(config, jax.random.key(1)))
    write_safetensors(directory / "model.safetensors", dict(from_flax(config, params, ADAPTER)))
    one = config_to_hf(dataclasses.replace(config, num_hidden_layers=1))
    (directory / "config.json").write_text(json.dumps(one | fields))
    return directory


def refused(call, match):
    """The call fails with a one-line ValueError."""
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["head", "tied"])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_comes_back_bit_equal(tmp_path, kind, config):
    draft, params = saved(tmp_path / "a", AdapterConfig(kind), config)
    found, loaded = load_adapter(tmp_path / "a", config, "float32")
    assert found == draft
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), params)
    assert set(load_file(tmp_path / "a" / "adapter.safetensors")) == NAMES[kind]


@pytest.mark.parametrize("theta", [None, 10000.0, 77.5])
def test_a_base_of_its_own_comes_back(tmp_path, theta):
    draft, _ = saved(tmp_path / "a", AdapterConfig(rope_theta=theta))
    assert load_adapter(tmp_path / "a", CONFIG)[0] == draft
    fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert fields.get("rope_theta") == theta and ("rope_theta" in fields) == (theta is not None)


def test_a_record_from_before_there_were_kinds_is_of_kangaroo(tmp_path):
    draft, params = saved(tmp_path / "a", AdapterConfig())
    file = tmp_path / "a" / "adapter_config.json"
    fields = json.loads(file.read_text())
    del fields["adapter"]
    file.write_text(json.dumps(fields))
    found, loaded = load_adapter(tmp_path / "a", CONFIG, "float32")
    assert found == draft == KangarooConfig(2, 5, 0.4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), params)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"adapter": None}, "has no usable adapter; train or download"),
        ({"adapter": 3}, "has no usable adapter; train or download"),
        ({"adapter": "medusa"}, "json: adapter is 'medusa'; it must be one of kangaroo, .*; train or download"),
        ({"adapter": "x" * 999 + "\n"}, r"json: adapter is 'x+\.\.\.x+\\n'; it must be one of"),
        ({"rope_theta": "1e4"}, "has no usable rope_theta; train or download"),
        ({"rope_theta": True}, "has no usable rope_theta; train or download"),
        ({"rope_theta": 0}, "json: rope_theta is 0; it must be above 0 and finite; train or download"),
        ({"rope_theta": 10**400}, r"json: rope_theta is 10+\.\.\.0+; it must be above 0 and finite"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, damage, said):
    saved(tmp_path / "a", AdapterConfig())
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    refused(lambda: load_adapter(tmp_path / "a", CONFIG), said)


@pytest.mark.parametrize(("kind", "said"), [(a, b) for a in NAMES for b in NAMES if NAMES[a] != NAMES[b]])
def test_a_record_that_says_another_kind_than_the_tensors_is_refused(tmp_path, kind, said):
    saved(tmp_path / "a", AdapterConfig(kind))
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"adapter": said}))
    missing, extra = NAMES[said] - NAMES[kind], NAMES[kind] - NAMES[said]
    with pytest.raises(MissingTensors if missing else ExtraTensors) as caught:
        load_adapter(tmp_path / "a", CONFIG)
    assert set(caught.value.keys) == (missing or extra)


def test_params_of_another_kind_are_not_written(tmp_path):
    params = jax.device_get(init_adapter(CONFIG, jax.random.key(1), AdapterConfig("own-head")))
    with pytest.raises(ExtraTensors, match="lm_head/kernel"):
        save_adapter(tmp_path / "a", CONFIG, KangarooConfig(2), params, {})
    assert not (tmp_path / "a").exists()


def test_a_head_of_another_shape_is_refused(tmp_path):
    saved(tmp_path / "a", AdapterConfig("own-head"))
    file = tmp_path / "a" / "adapter.safetensors"
    save_file(load_file(file) | {"lm_head.weight": np.zeros((22, 31), np.float32)}, file)
    refused(lambda: load_adapter(tmp_path / "a", CONFIG), r"lm_head.weight is \(22, 31\) instead of \(31, 22\)")


def test_tables_of_kinds_differ_by_their_rows_alone():
    for kind, names in NAMES.items():
        params = jax.device_get(init_adapter(CONFIG, jax.random.key(1), AdapterConfig(kind)))
        assert {name for name, _ in from_flax(CONFIG, params, adapter_table(AdapterConfig(kind)))} == names
    assert adapter_table(AdapterConfig()) is ADAPTER


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        (CONFIG, None),
        (LLAMA3, 10000.0),
        (dataclasses.replace(CONFIG, rope_theta=5e5), 10000.0),
        (dataclasses.replace(CONFIG, rope_scaling=RopeScaling("linear", 4.0)), 10000.0),
    ],
    ids=["as theirs", "llama3", "theta", "scaling"],
)
def test_the_authors_attention_has_one_base(tmp_path, config, theta):
    """Their program computes with 10000 and without scaling whatever their config.json says."""
    directory = theirs(tmp_path / "theirs", config)
    assert load_adapter(directory, config, exit_layer=2)[0] == KangarooConfig(
        2, adapter=AdapterConfig("kangaroo", theta)
    )


@pytest.mark.parametrize("theta", [None, 123.0])
def test_a_record_in_the_authors_form_says_the_base(tmp_path, theta):
    draft = KangarooConfig(2, 5, 0.4, AdapterConfig(rope_theta=theta))
    directory = theirs(tmp_path / "theirs", LLAMA3, kangaroo=adapter_record(LLAMA3, draft, {}))
    assert load_adapter(directory, LLAMA3)[0] == draft


def test_the_authors_form_holds_no_other_kind(tmp_path):
    record = adapter_record(CONFIG, KangarooConfig(2, adapter=AdapterConfig("linear")), {})
    directory = theirs(tmp_path / "theirs", CONFIG, kangaroo=record)
    refused(lambda: load_adapter(directory, CONFIG), "config.json is of an adapter of kind 'linear'; the authors' form")
