"""The parts of a layer against formulas written out another way, in NumPy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model import (
    KVCache,
    LlamaConfig,
    RopeScaling,
    abstract_adapter,
    init_adapter,
    init_cache,
    line,
    run_adapter,
)
from kangaroo_jax.model.cache import fold_heads, write_cache
from kangaroo_jax.model.layers import RMSNorm, attend, linear
from kangaroo_jax.model.rope import apply_rope, rope_frequencies, rope_table


def tiny(**changes: object) -> LlamaConfig:
    fields = {
        "vocab_size": 31,
        "hidden_size": 24,
        "intermediate_size": 29,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 14,
    }
    return LlamaConfig(**(fields | changes))  # type: ignore[arg-type]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
def test_rms_norm(eps: float) -> None:
    x, scale = normal(0, 2, 3, 23) * 0.01, normal(1, 23)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps) * scale
    got = RMSNorm(eps).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_rms_norm_takes_statistics_in_fp32() -> None:
    x = jnp.full((1, 4096), 3.0, jnp.bfloat16).at[0, 0].set(300.0)
    got = RMSNorm(1e-6).apply({"params": {"scale": jnp.ones(4096, jnp.bfloat16)}}, x)
    assert got.dtype == jnp.bfloat16
    exact = 3.0 / math.sqrt((4095 * 9 + 300**2) / 4096)
    np.testing.assert_allclose(np.float32(got[0, 1]), exact, rtol=2**-8)


@pytest.mark.parametrize("scaling", [None, RopeScaling("linear", 3.0)])
def test_rope_is_a_complex_rotation(scaling: RopeScaling | None) -> None:
    config = tiny(rope_theta=5e5, rope_scaling=scaling)
    x, positions = normal(0, 2, 5, 3, 14), np.array([[0, 1, 2, 3, 4], [300, 301, 302, 303, 304]])
    inverse = 5e5 ** (-np.arange(7) / 7) / (scaling.factor if scaling else 1.0)
    turn = np.exp(1j * positions[:, :, None, None] * inverse)
    rotated = (x[..., :7] + 1j * x[..., 7:]) * turn
    got = apply_rope(jnp.asarray(x), rope_table(config, jnp.asarray(positions)))
    np.testing.assert_allclose(got, np.concatenate([rotated.real, rotated.imag], -1), atol=1e-4)


def test_llama3_scaling_keeps_fast_and_stretches_slow_frequencies() -> None:
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    plain = rope_frequencies(tiny(head_dim=128, rope_theta=5e5))
    scaled = rope_frequencies(tiny(head_dim=128, rope_theta=5e5, rope_scaling=scaling))
    wavelength = 2 * math.pi / plain
    fast, slow = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_allclose(scaled[fast], plain[fast], rtol=1e-6)
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
    between = ~fast & ~slow
    assert fast.any() and slow.any() and between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_grouped_queries_equal_repeated_heads() -> None:
    batch, length, slots, heads, kv_heads, width = 2, 3, 7, 6, 2, 14
    q, k, v = (
        normal(0, batch, length, heads, width),
        normal(1, batch, slots, 2, width),
        normal(2, batch, slots, 2, width),
    )
    mask = np.random.default_rng(3).random((batch, length, slots)) < 0.6
    mask[:, :, 0] = True
    # Head h of the queries reads head h // 3 of keys and values.
    k_all, v_all = np.repeat(k, heads // kv_heads, axis=2), np.repeat(v, heads // kv_heads, axis=2)
    scores = np.einsum("bqhd,bshd->bhqs", q.astype(np.float64), k_all) / math.sqrt(width)
    weights = np.where(mask[:, None], np.exp(scores), 0.0)
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqs,bshd->bqhd", weights, v_all).reshape(batch, length, heads * width)
    got = attend(jnp.asarray(q), fold_heads(jnp.asarray(k)), fold_heads(jnp.asarray(v)), jnp.asarray(mask))
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("starts", [[4], [4, 0, 6]], ids=["one sequence", "three sequences"])
def test_write_cache_puts_each_row_at_its_own_start(starts: list[int]) -> None:
    batch, length, slots = len(starts), 3, 11
    config = tiny()
    (cache,) = init_cache(config, batch, slots, jnp.float32, 1)
    cache = KVCache(k=cache.k - 1.0, v=cache.v - 2.0)
    k, v = normal(0, batch, length, 2, 14), normal(1, batch, length, 2, 14)
    written = jax.jit(write_cache)(cache, k, v, jnp.array(starts))
    expected_k, expected_v = np.full((2, batch, slots, 14), -1.0), np.full((2, batch, slots, 14), -2.0)
    for row, start in enumerate(starts):
        for step in range(length):
            for head in range(2):
                expected_k[head, row, start + step] = k[row, step, head]
                expected_v[head, row, start + step] = v[row, step, head]
    np.testing.assert_array_equal(written.k, expected_k.reshape(2 * batch, slots, 14).astype(np.float32))
    np.testing.assert_array_equal(written.v, expected_v.reshape(2 * batch, slots, 14).astype(np.float32))


def test_write_cache_keeps_the_dtype_of_the_cache() -> None:
    (cache,) = init_cache(tiny(), 1, 5, jnp.bfloat16, 1)
    block = jnp.ones((1, 2, 2, 14), jnp.float32)
    assert write_cache(cache, block, block, jnp.array([0])).k.dtype == jnp.bfloat16


def test_linear_over_any_number_of_axes() -> None:
    x, kernel = normal(0, 2, 3, 5, 7), normal(1, 7, 11)
    np.testing.assert_allclose(linear(jnp.asarray(x), jnp.asarray(kernel)), x @ kernel, atol=1e-5)
    wide = linear(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16), jnp.float32)
    assert wide.dtype == jnp.float32


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_the_adapter_is_plain_whatever_the_target(model_type: str) -> None:
    config = tiny(model_type=model_type, sliding_window=2)
    assert abstract_adapter(config) == abstract_adapter(tiny())
    x, context = jnp.asarray(normal(0, 1, 7, 24)), line(jnp.arange(7)[None], None)
    params = init_adapter(tiny(), jax.random.key(0))
    plain, other = (run_adapter(shape, params, x, context, None)[0] for shape in (tiny(), config))
    np.testing.assert_array_equal(other, plain)


@pytest.mark.parametrize(("width", "heads", "parameters"), [(4096, 32, 67_117_056), (5120, 40, 104_867_840)])
def test_adapter_has_the_papers_size(width: int, heads: int, parameters: int) -> None:
    config = tiny(hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads, head_dim=128)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_adapter(config))) == parameters
    assert 4 * width**2 + 2 * width == parameters
