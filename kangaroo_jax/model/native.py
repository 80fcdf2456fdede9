"""Decoder layers with packed weights: the same values as ``Block``'s, computed by the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kangaroo_jax import kernels
from kangaroo_jax.model.cache import KVCache, init_cache
from kangaroo_jax.model.config import LlamaConfig
from kangaroo_jax.model.layers import Shared


def run_packed(
    config: LlamaConfig,
    parts: Sequence[dict[str, Any]],
    x: Float[Array, "B T D"],
    shared: Shared,
    caches: Sequence[KVCache] | None,
    norm: Float[Array, " D"] | None = None,
    count: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T D"], tuple[KVCache, ...] | None]:
    """Run layers in one call of the native kernels.

    Args:
        config: shape of the layers.
        parts: packed params of each.
        x: hidden states.
        shared: as for ``Block``.
        caches: one of each layer, or None to attend within the block only.
        norm: scale of a norm after the last layer.
        count: as in ``Context``.

    Returns:
        The hidden states, and the caches with this block written into them, if there are any.
    """
    batch, tokens = x.shape[:2]
    start, held = shared.start, caches
    if held is None:
        held = init_cache(config, batch, tokens, x.dtype, len(parts))
        start = jnp.zeros_like(start)
    mask, twins = shared.mask, shared.twins
    if twins is not None:
        slot = jnp.arange(mask.shape[2])[None, None]
        own = start[:, None, None] + jnp.arange(tokens)[None, :, None]
        mask = (mask & (slot != own)) | (slot == twins[:, :, None])
    x, updated = kernels.layers(
        parts,
        x,
        shared.rope,
        mask,
        start,
        [(cache.k, cache.v) for cache in held],
        config.num_attention_heads,
        config.num_key_value_heads,
        config.rms_norm_eps,
        norm,
        count,
        twins,
    )
    return x, None if caches is None else tuple(KVCache(k, v) for k, v in updated)
