"""Packed layers against the same layers by XLA: heads, options of the families, masks, batches, caches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.decode import tree_of
from kangaroo_jax.kernels import pack_adapter, pack_target
from kangaroo_jax.model import (
    AdapterConfig,
    LlamaConfig,
    RopeScaling,
    abstract_adapter,
    branch,
    forward,
    init_cache,
    line,
    logits,
    run_adapter,
    run_layers,
)

SLOTS = 37
Draw = Callable[..., np.ndarray]


def config_of(heads: int = 6, kv_heads: int = 2, width: int = 10, **changes: Any) -> LlamaConfig:
    fields = {
        "vocab_size": 61,
        "hidden_size": 23,
        "intermediate_size": 29,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
    }
    return LlamaConfig(**(fields | changes))


@partial(jax.jit, static_argnums=0)
def run(
    config: LlamaConfig, params: Any, x: Any, positions: Any, caches: Any, tree: Any = None, count: Any = None
) -> Any:
    """Run all layers, on whatever the params are for."""
    slots = None if caches is None else SLOTS
    root = positions[:, 0]
    context = line(positions, slots, count) if tree is None else branch(root, positions - root[:, None], tree, SLOTS)
    return run_layers(config, params, x, context, caches, 0, config.num_hidden_layers)


def filled(config: LlamaConfig, batch: int, dtype: Any = jnp.float32) -> Any:
    """Return caches full of something, so that it shows what is read and what is written."""
    caches = init_cache(config, batch, SLOTS, dtype, config.num_hidden_layers)
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), dtype), caches)


def close(found: Any, expected: Any, relative: float = 2e-5) -> None:
    """Compare trees of arrays, each relative to the largest magnitude in it."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=0, atol=relative * np.abs(other).max(initial=1e-9))


@pytest.fixture
def compare(params_of: Any, normal: Draw) -> Callable[..., None]:
    """Return a function that runs a block of tokens by both and compares hidden states and caches."""

    def check(config: LlamaConfig, starts: list[int], tokens: int) -> None:
        params = params_of(config)
        x = normal(1, len(starts), tokens, config.hidden_size)
        positions = jnp.array(starts)[:, None] + jnp.arange(tokens)
        expected = run(config, params, x, positions, filled(config, len(starts)))
        close(run(config, pack_target(params), x, positions, filled(config, len(starts))), expected)

    return check


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"),
    [(3, 3, 10), (5, 1, 6), (2, 1, 80), (3, 1, 128), (14, 2, 22)],
    ids=lambda number: str(number),
)
def test_heads(compare: Any, heads: int, kv_heads: int, width: int) -> None:
    compare(config_of(heads, kv_heads, width), [11], 5)


@pytest.mark.parametrize(("hidden", "inner"), [(1, 1), (64, 16), (65, 97)])
def test_widths(compare: Any, hidden: int, inner: int) -> None:
    compare(config_of(hidden_size=hidden, intermediate_size=inner), [11], 3)


@pytest.mark.parametrize("tokens", [1, 13, 37])
def test_tokens_of_a_block(compare: Any, tokens: int) -> None:
    compare(config_of(), [0], tokens)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "mistral"])
def test_families(compare: Any, model_type: str) -> None:
    """Biases on q, k and v; norms on q and k; neither."""
    compare(config_of(model_type=model_type), [7], 5)


@pytest.mark.parametrize("window", [1, 6, 20])
def test_a_sliding_window(compare: Any, window: int) -> None:
    compare(config_of(model_type="mistral", sliding_window=window), [17], 5)


@pytest.mark.parametrize(
    "scaling", [RopeScaling("linear", 3.0), RopeScaling("llama3", 8.0, 1.0, 4.0, 16)], ids=lambda found: found.rope_type
)
def test_rope_scaling(compare: Any, scaling: RopeScaling) -> None:
    compare(config_of(rope_scaling=scaling, rope_theta=500.0), [20], 5)


@pytest.mark.parametrize("eps", [1e-6, 0.2])
def test_eps_of_the_norms(compare: Any, eps: float) -> None:
    compare(config_of(model_type="qwen3", rms_norm_eps=eps), [3], 2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (5, 1)])
def test_sequences_of_different_lengths(compare: Any, heads: int, kv_heads: int) -> None:
    compare(config_of(heads, kv_heads), [4, 0, 30], 5)


@pytest.mark.parametrize("starts", [[32], [33], [36, 0, 90]])
def test_a_block_that_would_reach_beyond_the_cache(compare: Any, starts: list[int]) -> None:
    """It is written to the last slots, as ``lax.dynamic_update_slice`` does it; 37 slots, and blocks of 5."""
    compare(config_of(), starts, 5)


@pytest.mark.parametrize(("batch", "kv_heads", "window"), [(1, 1, None), (3, 2, None), (1, 2, 3)])
def test_without_caches_a_block_attends_to_itself(
    params_of: Any, normal: Draw, batch: int, kv_heads: int, window: int | None
) -> None:
    config = config_of(6, kv_heads, model_type="mistral", sliding_window=window)
    params, x = params_of(config), normal(1, batch, 19, 23)
    # Rotary positions count on from anywhere.
    positions = jnp.arange(batch)[:, None] * 50 + jnp.arange(19)
    expected, _ = run(config, params, x, positions, None)
    found, caches = run(config, pack_target(params), x, positions, None)
    assert caches is None
    close(found, expected)


@pytest.mark.parametrize("counts", [[5, 0, 2], [-3, 9, 1], [0, 0, 0]])
def test_tokens_beyond_count_are_left_out(params_of: Any, normal: Draw, counts: list[int]) -> None:
    """Their states become zeros, and what was in their slots stays there."""
    config = config_of()
    params, x, before = params_of(config), normal(1, 3, 5, 23), filled(config, 3)
    starts = np.array([20, 0, 7])
    positions = starts[:, None] + np.arange(5)
    every, written = run(config, params, x, positions, before)
    kept = np.arange(5) < np.array(counts)[:, None]
    found, caches = run(config, pack_target(params), x, positions, before, None, jnp.array(counts))
    close(found, np.where(kept[..., None], every, 0).astype(np.float32))
    assert not np.asarray(found)[~kept].any()
    for one, new, old in zip(jax.tree.leaves(caches), jax.tree.leaves(written), jax.tree.leaves(before), strict=True):
        one, new, old = (np.asarray(leaf).reshape(2, 3, SLOTS, 10) for leaf in (one, new, old))
        for row, count in enumerate(np.clip(counts, 0, 5)):
            end = starts[row] + count
            close(one[:, row, :end], new[:, row, :end])
            np.testing.assert_array_equal(one[:, row, end:], old[:, row, end:])


def tree_masks(rows: int, batch: int) -> tuple[Any, Any]:
    """Return what the rows of trees see, and their depths; the last rows are padding, which sees itself and the root.

    The first tree, and each of the others turned by one more place::

        root -> 1 -> 2 -> 5
             -> 3 -> 4
    """
    parents, depths = [0, 0, 1, 0, 3, 2], [0, 1, 2, 1, 2, 3]
    parent = np.zeros((batch, rows), np.int32)
    depth = np.zeros((batch, rows), np.int32)
    for row in range(batch):
        drafted = len(parents) - row
        parent[row, :drafted], depth[row, :drafted] = parents[:drafted], depths[:drafted]
    return tree_of(jnp.array(parent), jnp.array(depth), jnp.array(depth > 0), 3).visible, jnp.array(depth)


@pytest.mark.parametrize(("starts", "window"), [([11], None), ([11, 0, 29], None), ([11, 0, 29], 6)])
def test_trees(params_of: Any, normal: Draw, starts: list[int], window: int | None) -> None:
    config = config_of(model_type="mistral", sliding_window=window)
    visible, depth = tree_masks(8, len(starts))
    params, x = params_of(config), normal(1, len(starts), 8, 23)
    positions = jnp.array(starts)[:, None] + depth
    expected = run(config, params, x, positions, filled(config, len(starts)), visible)
    close(run(config, pack_target(params), x, positions, filled(config, len(starts)), visible), expected)


def test_one_block_after_the_other(params_of: Any, normal: Draw) -> None:
    """What one call has written, the next one reads."""
    config = config_of(num_hidden_layers=2)
    params, x = params_of(config), normal(1, 1, 37, 23)
    whole, _ = run(config, params, x, jnp.arange(37)[None], None)
    packed, caches, at = pack_target(params), init_cache(config, 1, SLOTS, jnp.float32, 2), 0
    for size in (7, 1, 1, 16, 12):
        piece, caches = run(config, packed, x[:, at : at + size], at + jnp.arange(size)[None], caches)
        close(piece, whole[:, at : at + size])
        at += size


@pytest.mark.parametrize("layers", [2, 5])
def test_number_of_layers(compare: Any, layers: int) -> None:
    compare(config_of(num_hidden_layers=layers), [5], 3)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_a_model_in_bf16(params_of: Any, normal: Draw, storage: str) -> None:
    """Nearer to fp32 than XLA, which rounds more often."""
    config = config_of(6, 2, 16, hidden_size=130, intermediate_size=307)
    params = jax.tree.map(lambda leaf: (leaf * 0.2).astype(jnp.bfloat16), params_of(config))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    x = jnp.asarray(normal(1, 2, 5, 130), jnp.bfloat16)
    positions = jnp.array([[3], [20]]) + jnp.arange(5)
    caches = filled(config, 2, jnp.bfloat16)
    exact, _ = run(
        config, wide, x.astype(jnp.float32), positions, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), caches)
    )
    expected, written = run(config, params, x, positions, caches)
    found, updated = run(config, pack_target(params, storage), x, positions, caches)
    close((found, updated), (expected, written), 0.03)
    errors = [float(jnp.abs(out.astype(jnp.float32) - exact).mean()) for out in (found, expected)]
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize(("dtype", "cached"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_caches_of_another_dtype(params_of: Any, normal: Draw, dtype: str, cached: str) -> None:
    config = config_of()
    params = params_of(config)
    x, positions = normal(1, 1, 5, 23), 7 + jnp.arange(5)[None]
    expected, _ = run(config, params, x, positions, filled(config, 1))
    found, caches = run(config, pack_target(params), jnp.asarray(x, dtype), positions, filled(config, 1, cached))
    assert found.dtype == dtype and caches[0].k.dtype == cached
    close(found.astype(jnp.float32), expected, 0.05)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_a_whole_model(params_of: Any, tied: bool) -> None:
    config = config_of(tie_word_embeddings=tied)
    tokens = jnp.array(np.random.default_rng(0).integers(0, 61, (2, 19)))
    model = jax.jit(forward, static_argnums=0)
    params = params_of(config)
    expected = model(config, params, tokens)
    close(model(config, pack_target(params), tokens), expected)


def test_logits_of_the_tokens_that_count(params_of: Any, normal: Draw) -> None:
    config = config_of(rms_norm_eps=0.1)
    params, x = params_of(config), normal(1, 3, 5, 23)
    expected = np.asarray(logits(config, params, x))
    found = logits(config, pack_target(params), x, jnp.array([5, 0, 2]))
    kept = np.arange(5) < np.array([[5], [0], [2]])
    close(found, np.where(kept[..., None], expected, 0))


@pytest.mark.parametrize(
    ("kind", "cached"), [("kangaroo", True), ("kangaroo", False), ("with-mlp", True), ("no-input-norm", True)]
)
def test_adapters(normal: Draw, kind: str, cached: bool) -> None:
    """They are layers without a part or two, and a norm at the end."""
    config, adapter = config_of(), AdapterConfig(kind, rope_theta=77.0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape) + (len(leaf.shape) == 1), jnp.float32),
        abstract_adapter(config, adapter),
    )
    x, positions = normal(1, 2, 5, 23), jnp.array([[11], [0]]) + jnp.arange(5)
    cache = filled(config, 2)[0] if cached else None
    both = jax.jit(run_adapter, static_argnums=(0, 5))
    context = line(positions, SLOTS if cached else None)
    expected = both(config, params, x, context, cache, adapter)
    close(both(config, pack_adapter(params), x, context, cache, adapter), expected)
