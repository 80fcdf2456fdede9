"""Packed weights: what was packed comes out again, in bf16 only where that holds every bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.kernels import Packed, pack, pack_adapter, pack_leaf, pack_target, packs, take_columns, unpack
from kangaroo_jax.model import AdapterConfig, LlamaConfig, abstract_adapter

pytestmark = pytest.mark.optimised  # Quickly made code of jax 0.12 takes subnormals for zeros.

CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=23,
    intermediate_size=29,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    model_type="qwen2",
)
Draw = Callable[..., np.ndarray]
_unpack = jax.jit(unpack)


def bits(values: jax.Array) -> np.ndarray:
    """Return the bits of values as fp32; NumPy widens bf16 exactly, subnormals too."""
    return np.asarray(values).astype(np.float32).view(np.uint32)


def rounded(values: np.ndarray) -> np.ndarray:
    """Return fp32 values cut to the bits that bf16 has."""
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("shape", [(1, 2), (7, 30), (32, 64), (5, 66), (129, 2)])
def test_what_is_packed_comes_out_again(normal: Draw, shape: tuple[int, int], pairs: bool, storage: str) -> None:
    kernel = rounded(normal(0, *shape))
    packed = pack(jnp.asarray(kernel), pairs, storage)
    assert (packed.shape, packed.size, packed.dtype) == (shape, kernel.size, jnp.dtype(storage))
    np.testing.assert_array_equal(bits(_unpack(packed)), kernel.view(np.uint32))


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (8, 1)])
def test_an_odd_number_of_columns_comes_out_again(normal: Draw, shape: tuple[int, int], storage: str) -> None:
    kernel = rounded(normal(0, *shape))
    np.testing.assert_array_equal(bits(_unpack(pack(jnp.asarray(kernel), storage=storage))), kernel.view(np.uint32))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("shape", [(1, 2), (7, 30), (32, 64), (5, 66), (130, 2)])
def test_int8_keeps_the_nearest_multiple_of_a_columns_scale(normal: Draw, shape: tuple[int, int], pairs: bool) -> None:
    kernel = normal(0, *shape)
    kernel[:, 1] = 0
    packed = pack(jnp.asarray(kernel), pairs, jnp.int8)
    assert (packed.shape, packed.size, packed.dtype) == (shape, kernel.size, jnp.int8)
    found, scale = np.asarray(_unpack(packed)), np.abs(kernel).max(0) / 127
    assert (np.abs(found - kernel) <= scale * 0.50001).all()
    np.testing.assert_allclose(np.abs(found).max(0), np.abs(kernel).max(0), rtol=1e-6)


def test_four_rows_of_int8_lie_in_turn_behind_scales_and_sums() -> None:
    kernel = np.arange(-7, 8, dtype=np.float32)[:, None] * np.array([1, -2, 4] * 11, np.float32)
    kernel[0] *= 127 / 7  # So that the scales are whole.
    kernel[0] = np.round(kernel[0])
    blocks = np.asarray(pack(jnp.asarray(kernel), storage=jnp.int8).blocks)
    assert blocks.shape == (2, 2 + 4, 32, 4) and blocks.dtype == np.int8
    np.testing.assert_array_equal(blocks[0, 0].copy().view(np.float32)[:, 0], [1, 2, 4] * 10 + [1, 2])
    whole = np.arange(-7, 8) * np.array([1, -1, 1] * 11)[:, None]
    whole[:, 0] = -127 * np.array([1, -1, 1] * 11)
    np.testing.assert_array_equal(blocks[0, 1].copy().view(np.int32)[:, 0], -128 * whole[:32].sum(1))
    for row in range(15):
        np.testing.assert_array_equal(blocks[0, 2 + row // 4, :, row % 4], whole[:32, row])
    assert not blocks[0, -1, :, 3].any() and not blocks[1, :, 1:].any()


def test_blocks_are_32_columns_and_zeros(normal: Draw) -> None:
    kernel = normal(0, 5, 70)
    blocks = np.asarray(pack(jnp.asarray(kernel)).blocks)
    assert blocks.shape == (3, 5, 32)
    filled = np.pad(kernel, ((0, 0), (0, 26)))
    for block in range(3):
        np.testing.assert_array_equal(blocks[block], filled[:, 32 * block : 32 * (block + 1)])


def test_two_rows_of_bf16_lie_interleaved(normal: Draw) -> None:
    kernel = rounded(normal(0, 5, 33))
    blocks = np.asarray(pack(jnp.asarray(kernel)).blocks)
    assert blocks.shape == (2, 3, 32, 2) and blocks.dtype == jnp.bfloat16
    for row in range(5):
        np.testing.assert_array_equal(blocks[0, row // 2, :, row % 2].astype(np.float32), kernel[row, :32])
    assert not blocks[1, :, 1:].any() and not blocks[:, 2, :, 1].any()


def test_a_block_of_pairs_has_16_gates_and_their_ups(normal: Draw) -> None:
    kernel = normal(0, 3, 2 * 21)
    blocks = np.asarray(pack(jnp.asarray(kernel), pairs=True).blocks)
    assert blocks.shape == (2, 3, 32)
    gates, ups = kernel[:, ::2], kernel[:, 1::2]
    np.testing.assert_array_equal(blocks[0], np.concatenate([gates[:, :16], ups[:, :16]], axis=1))
    np.testing.assert_array_equal(blocks[1, :, :5], gates[:, 16:])
    np.testing.assert_array_equal(blocks[1, :, 16:21], ups[:, 16:])
    assert not blocks[1, :, 5:16].any() and not blocks[1, :, 21:].any()


@pytest.mark.parametrize("word", [0x7F800000, 0xFF800000, 0x7FC00000, 0x80000000, 0x00010000, 0x807F0000, 0x3F810000])
def test_what_bf16_holds_is_stored_in_it(normal: Draw, word: int) -> None:
    """Infinities, NaN, minus zero and subnormals among them."""
    kernel = rounded(normal(0, 7, 33))
    kernel.view(np.uint32)[5, 32] = word
    packed = pack(jnp.asarray(kernel))
    assert packed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(bits(_unpack(packed)), kernel.view(np.uint32))


@pytest.mark.parametrize("word", [0x3F800001, 0x3F808000, 0x00000001, 0x80008000, 0x7FC00001, 0x7F800001])
def test_one_weight_with_a_low_bit_keeps_a_matrix_in_fp32(normal: Draw, word: int) -> None:
    kernel = rounded(normal(0, 7, 33))
    assert pack(jnp.asarray(kernel)).dtype == jnp.bfloat16
    kernel.view(np.uint32)[5, 32] = word
    packed = pack(jnp.asarray(kernel))
    assert packed.dtype == jnp.float32
    np.testing.assert_array_equal(bits(_unpack(packed)), kernel.view(np.uint32))


def test_a_bf16_matrix_stays_as_it_is(normal: Draw) -> None:
    kernel = jnp.asarray(normal(0, 7, 33), jnp.bfloat16)
    packed = pack(kernel)
    assert packed.dtype == jnp.bfloat16 and unpack(packed).dtype == jnp.bfloat16
    np.testing.assert_array_equal(bits(_unpack(packed)), bits(kernel))


@pytest.mark.parametrize("tied", [False, True])
def test_all_matrices_of_a_target_are_packed(params_of: Any, tied: bool) -> None:
    params = params_of(dataclasses.replace(CONFIG, tie_word_embeddings=tied))
    before = {**params, **{name: dict(part) for name, part in params.items()}}
    assert not packs(params)
    packed = pack_target(params)
    assert params == {} and packs(packed)
    head = before["embed_tokens"]["embedding"].T if tied else before["lm_head"]["kernel"]
    np.testing.assert_array_equal(unpack(packed["lm_head"]["kernel"]), head)
    assert packed["embed_tokens"]["embedding"] is before["embed_tokens"]["embedding"]
    for name in ("layers_0", "layers_1"):
        for part, modules in (("self_attn", {"qkv_proj", "o_proj"}), ("mlp", {"gate_up_proj", "down_proj"})):
            for module in modules:
                kernel = packed[name][part][module]["kernel"]
                assert isinstance(kernel, Packed) and kernel.pairs == (module == "gate_up_proj")
                np.testing.assert_array_equal(unpack(kernel), before[name][part][module]["kernel"])
        bias = packed[name]["self_attn"]["qkv_proj"]["bias"]
        np.testing.assert_array_equal(bias, before[name]["self_attn"]["qkv_proj"]["bias"])
        assert not packs(packed[name]["input_layernorm"])


def test_packing_again_changes_nothing(params_of: Any) -> None:
    packed = pack_target(params_of(CONFIG))
    again = pack_target(dict(packed))
    assert jax.tree.structure(again) == jax.tree.structure(packed)
    assert all(new is old for new, old in zip(jax.tree.leaves(again), jax.tree.leaves(packed), strict=True))


@pytest.mark.parametrize(("kind", "packed"), [("kangaroo", 2), ("with-mlp", 4), ("own-head", 3), ("linear", 0)])
def test_an_adapters_matrices_are_packed_if_it_attends(kind: str, packed: int) -> None:
    shapes = abstract_adapter(CONFIG.plain, AdapterConfig(kind))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    leaves = jax.tree.leaves(pack_adapter(params), is_leaf=lambda leaf: isinstance(leaf, Packed))
    assert sum(isinstance(leaf, Packed) for leaf in leaves) == packed


@pytest.mark.parametrize(
    ("path", "pairs"),
    [
        ("layers_3/self_attn/qkv_proj/kernel", False),
        ("layers_11/mlp/gate_up_proj/kernel", True),
        ("lm_head/kernel", False),
    ],
)
def test_a_leaf_is_packed_by_its_path(normal: Draw, path: str, pairs: bool) -> None:
    leaf = jnp.asarray(normal(0, 6, 10))
    found = pack_leaf(path, leaf, jnp.float32)
    assert isinstance(found, Packed) and found.pairs == pairs
    assert pack_leaf(path, found) is found


@pytest.mark.parametrize("path", ["embed_tokens/embedding", "norm/scale", "layers_0/self_attn/qkv_proj/bias"])
def test_other_leaves_stay_as_they_are(normal: Draw, path: str) -> None:
    leaf = jnp.asarray(normal(0, 6, 10))
    assert pack_leaf(path, leaf) is leaf


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(7, 30), (32, 64), (5, 67)])
def test_columns_are_taken_out_of_what_is_packed(normal: Draw, shape: tuple[int, int], storage: str) -> None:
    kernel = rounded(normal(0, *shape))
    columns = np.array([29, 0, 7, 7], np.int32)
    for matrix in (jnp.asarray(kernel), pack(jnp.asarray(kernel), storage=storage)):
        np.testing.assert_array_equal(bits(take_columns(matrix, columns)), bits(jnp.asarray(kernel[:, columns])))
