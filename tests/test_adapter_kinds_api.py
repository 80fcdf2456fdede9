"""Adapters of other kinds through the doors a user takes: load, generate, Chat."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import kangaroo_jax
from kangaroo_jax.kernels import packs
from kangaroo_jax.model import AdapterConfig, KangarooConfig, init_adapter
from kangaroo_jax.params import with_adapter
from kangaroo_jax.store import read_config, save_adapter, target_sharding


def load(model: Path, directory: Path, adapter: AdapterConfig) -> kangaroo_jax.Params:
    """Save an adapter of this kind for the model, and load both; as arrays, the adapter is what was saved."""
    config = read_config(model)
    params = jax.device_get(init_adapter(config, jax.random.key(6), adapter))
    if adapter.final_states:
        params["final_proj"]["kernel"] = np.random.default_rng(4).normal(size=(config.hidden_size,) * 2).astype("f4")
    save_adapter(directory, config, KangarooConfig(1, 5, 0.3, adapter), params, {})
    arrays = kangaroo_jax.load(model, adapter=directory, kernels="xla").adapter
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(arrays), params)
    return kangaroo_jax.load(model, adapter=directory)


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterConfig("linear"),
        AdapterConfig("own-head", rope_theta=7.0),
        AdapterConfig("with-mlp", final_states=True),
        AdapterConfig("linear", final_states=True),
    ],
)
def test_generate_writes_what_plain_decoding_does(tiny_model: Path, tmp_path: Path, adapter: AdapterConfig) -> None:
    params = load(tiny_model, tmp_path / "adapter", adapter)
    ours, plain = (
        kangaroo_jax.generate(params, ["Hello", "A wallaby"], max_new_tokens=23, eta=0.0, method=method)
        for method in ("kangaroo", "plain")
    )
    assert [out.token_ids for out in ours] == [out.token_ids for out in plain]
    assert all(sum(out.stats.draft_lengths) > 0 for out in ours)


@pytest.mark.parametrize("adapter", [AdapterConfig("linear"), AdapterConfig("with-mlp", final_states=True)])
def test_a_chat_keeps_its_caches_with_other_adapters(tiny_model: Path, tmp_path: Path, adapter: AdapterConfig) -> None:
    params = load(tiny_model, tmp_path / "adapter", adapter)
    config = dataclasses.replace(params.config, max_position_embeddings=401)
    chats = [
        kangaroo_jax.Chat(params.replace(config=config), max_new_tokens=7, method=method)
        for method in ("kangaroo", "plain")
    ]
    for text in ("Hello", "And a wallaby?"):
        ours, plain = (chat.send(text) for chat in chats)
        assert ours.token_ids == plain.token_ids
    assert ours.stats.prefilled_tokens < ours.stats.prompt_tokens


def test_a_draft_vocabulary_is_gathered_when_a_model_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    config = read_config(tiny_model)
    adapter = AdapterConfig("with-mlp", num_key_value_heads=config.num_attention_heads, draft_vocabulary=50)
    params = jax.device_get(init_adapter(config, jax.random.key(6), adapter))
    ids = np.arange(0, config.vocab_size, config.vocab_size // 50, dtype=np.int32)[:50]
    params["draft_vocabulary"] = {"ids": ids}
    save_adapter(tmp_path / "adapter", config, KangarooConfig(1, 5, 0.0, adapter), params, {})
    outs = {}
    for kernels in ("auto", "xla"):
        model = kangaroo_jax.load(tiny_model, adapter=tmp_path / "adapter", kernels=kernels)
        again = with_adapter(model, tmp_path / "adapter")
        jax.tree.map(np.testing.assert_array_equal, again.adapter, model.adapter)
        assert model.adapter["lm_head"]["kernel"].shape == (config.hidden_size, 50)
        assert packs(model.adapter["lm_head"]) == packs(model.target)
        for sampled in ({}, {"do_sample": True, "temperature": 0.5, "seed": 3}):
            out = kangaroo_jax.generate(model, "Hello", max_new_tokens=23, **sampled)
            assert sum(out.stats.draft_lengths) > 0
            if not sampled:
                plain = kangaroo_jax.generate(model, "Hello", max_new_tokens=23, method="plain")
                assert out.token_ids == plain.token_ids
                outs[kernels] = out.token_ids
    assert outs["auto"] == outs["xla"]


def test_another_adapter_goes_to_the_devices_of_the_target(tiny_model: Path, tmp_path: Path) -> None:
    config = read_config(tiny_model)
    adapter = AdapterConfig("linear", draft_vocabulary=9)
    params = init_adapter(config, jax.random.key(6), adapter) | {"draft_vocabulary": {"ids": np.arange(9)}}
    save_adapter(tmp_path / "adapter", config, KangarooConfig(1, adapter=adapter), params, {})
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = kangaroo_jax.load(tiny_model, sharding=target_sharding(mesh, config))
    found = with_adapter(spread, tmp_path / "adapter").adapter
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(found)} == {mesh}
