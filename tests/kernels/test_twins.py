"""A token in another slot than the one behind what it sees has the bits that it would have there; paths are moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.kernels import move, pack_target
from kangaroo_jax.model import KVCache, LlamaConfig, fork, init_cache, init_params, keep_path, line, run_layers

SLOTS = 83
Draw = Callable[..., np.ndarray]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [None, 9])
def test_a_twin_has_the_bits_of_the_token_in_its_place(normal: Draw, window: int | None, dtype: str) -> None:
    """Behind a line of any length, whatever is in its place, and with a layer behind that reads what it wrote."""
    model = {"model_type": "mistral", "sliding_window": window} if window else {}
    config = LlamaConfig(61, 46, 59, 2, 6, 2, 22, **model)
    params = jax.tree.map(
        lambda leaf: (leaf * 9 if leaf.ndim == 2 else leaf).astype(dtype), init_params(config, jax.random.key(1))
    )
    weights, x = pack_target(params), jnp.asarray(normal(3, 1, SLOTS, 46), dtype)

    @jax.jit
    def run(x: Any, context: Any, caches: Any) -> Any:
        return run_layers(config, weights, x, context, caches, 0, 2)

    caches = init_cache(config, 1, SLOTS, jnp.dtype(dtype), 2)
    for past in (1, 15, 16, 31, 47, 48, 60):
        _, before = run(x[:, :past], line(jnp.arange(past)[None], SLOTS), caches)
        alone, _ = run(x[:, 80:81], line(jnp.array([[past]]), SLOTS), before)
        for end in (0, 1, 3):  # Of a line behind the root.
            held = before if not end else run(x[:, 61 : 61 + end], line(past + jnp.arange(end)[None], SLOTS), before)[1]
            context = fork(jnp.array([past + end]), jnp.array([past - 1]), 3, SLOTS)
            block = jnp.concatenate([x[:, 70:71], x[:, 79:82]], axis=1)
            forked, _ = run(block, context, held)
            np.testing.assert_array_equal(forked[0, 2].astype(np.float32), alone[0, 0].astype(np.float32))


@pytest.mark.parametrize(("batch", "kv_heads"), [(1, 1), (1, 3), (3, 2)])
def test_a_path_is_moved_as_xla_moves_it(normal: Draw, batch: int, kv_heads: int) -> None:
    config = LlamaConfig(61, 23, 29, 2, 6, kv_heads, 10)
    caches = tuple(
        KVCache(jnp.asarray(normal(2 * layer, *cache.k.shape)), jnp.asarray(normal(2 * layer + 1, *cache.v.shape)))
        for layer, cache in enumerate(init_cache(config, batch, 31, jnp.dtype("float32"), 2))
    )
    start, path = jnp.array([4, 20, 11])[:batch], jnp.array([[0, 3, 5, 5], [0, 1, 2, 3], [0, 2, 3, 6]])[:batch]
    moved = jax.jit(move, donate_argnums=0)([(jnp.copy(cache.k), jnp.copy(cache.v)) for cache in caches], start, path)
    for pair, cache in zip(moved, caches, strict=True):
        expected = keep_path(cache, start, path)
        for mine, theirs, old in zip(pair, (expected.k, expected.v), (cache.k, cache.v), strict=True):
            split = np.asarray(old).reshape(-1, batch, *old.shape[-2:])
            assert (np.asarray(mine).reshape(split.shape) != split).any()
            np.testing.assert_array_equal(mine, theirs)
