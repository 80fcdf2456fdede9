"""Which weights of a target are split over a mesh, and along which axis."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from kangaroo_jax.model import AdapterConfig, LlamaConfig, abstract_adapter, abstract_params
from kangaroo_jax.store.placement import target_sharding

MESH = AbstractMesh((2, 4), ("data", "model"))
CONFIG = LlamaConfig(32, 16, 28, 1, 8, 4, 4, model_type="qwen2")
COLUMNS, ROWS, WHOLE = PartitionSpec(None, "model"), PartitionSpec("model"), PartitionSpec()


def specs(
    config: LlamaConfig, mesh: AbstractMesh = MESH, adapter: AdapterConfig | None = None
) -> dict[str, PartitionSpec]:
    rule = target_sharding(mesh, config)
    tree = {"adapter": abstract_adapter(config, adapter)} if adapter else abstract_params(config)
    found = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}
    return {path: rule(path, leaf).spec for path, leaf in named.items()}


def test_matrices_are_split_by_columns_then_rows_and_norms_are_not() -> None:
    assert specs(CONFIG) == {
        "embed_tokens/embedding": ROWS,
        "layers_0/input_layernorm/scale": WHOLE,
        "layers_0/mlp/down_proj/kernel": ROWS,
        "layers_0/mlp/gate_up_proj/kernel": COLUMNS,
        "layers_0/post_attention_layernorm/scale": WHOLE,
        "layers_0/self_attn/o_proj/kernel": ROWS,
        "layers_0/self_attn/qkv_proj/bias": ROWS,
        "layers_0/self_attn/qkv_proj/kernel": COLUMNS,
        "lm_head/kernel": COLUMNS,
        "norm/scale": WHOLE,
    }


def test_what_does_not_divide_is_copied_to_every_device() -> None:
    found = specs(dataclasses.replace(CONFIG, vocab_size=33, intermediate_size=30))
    assert found["lm_head/kernel"] == found["embed_tokens/embedding"] == WHOLE
    # 30 gates do not divide, though the 60 columns that they and their ups are would.
    assert found["layers_0/mlp/down_proj/kernel"] == found["layers_0/mlp/gate_up_proj/kernel"] == WHOLE


def test_heads_are_split_between_groups_only() -> None:
    """Two key/value heads for four devices: 32 columns would divide, but cut heads."""
    few = specs(dataclasses.replace(CONFIG, num_key_value_heads=2))
    assert few["layers_0/self_attn/qkv_proj/kernel"] == few["layers_0/self_attn/qkv_proj/bias"] == WHOLE
    two = specs(dataclasses.replace(CONFIG, num_key_value_heads=2), AbstractMesh((2, 2), ("data", "model")))
    assert two["layers_0/self_attn/qkv_proj/kernel"] == COLUMNS


def test_an_adapter_of_another_width_is_copied() -> None:
    """Its groups are not the target's: 8 heads with one key/value head, 6 gates with their ups."""
    own = AdapterConfig("with-mlp", num_key_value_heads=1, intermediate_size=6)
    assert specs(CONFIG, adapter=own) == {
        "adapter/input_layernorm/scale": WHOLE,
        "adapter/mlp/down_proj/kernel": WHOLE,
        "adapter/mlp/gate_up_proj/kernel": WHOLE,
        "adapter/norm/scale": WHOLE,
        "adapter/post_attention_layernorm/scale": WHOLE,
        "adapter/self_attn/o_proj/kernel": ROWS,
        "adapter/self_attn/qkv_proj/kernel": WHOLE,
    }
    like = specs(CONFIG, adapter=AdapterConfig("with-mlp"))
    assert like["adapter/self_attn/qkv_proj/kernel"] == like["adapter/mlp/gate_up_proj/kernel"] == COLUMNS


def test_another_axis_can_be_named_if_the_mesh_has_it() -> None:
    leaf = jax.ShapeDtypeStruct((4, 6), jnp.float32)
    assert target_sharding(MESH, CONFIG, "data")("lm_head/kernel", leaf).spec == PartitionSpec(None, "data")
    with pytest.raises(ValueError, match="axis is 'tensor'; the mesh has 'data', 'model'"):
        target_sharding(MESH, CONFIG, "tensor")
