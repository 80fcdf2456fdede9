"""The target model: a decoder of the Llama family as pure functions of (config, params, arrays).

Params are a plain nested dict::

    {"embed_tokens": {"embedding"}, "layers_0": {...}, ..., "norm": {"scale"}, "lm_head": {"kernel"}}

with ``lm_head`` absent when ``tie_word_embeddings``.
"""

from __future__ import annotations

from typing import Any, overload

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kangaroo_jax.kernels import Packed, packs, product
from kangaroo_jax.model.cache import KVCache
from kangaroo_jax.model.config import LlamaConfig
from kangaroo_jax.model.context import Context, line
from kangaroo_jax.model.layers import Block, RMSNorm, linear, share
from kangaroo_jax.model.native import run_packed

Params = dict[str, Any]
Caches = tuple[KVCache, ...]


def embed(params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Look up token embeddings: ``hidden_states[0]``."""
    return params["embed_tokens"]["embedding"][tokens]


@overload
def run_layers(
    config: LlamaConfig, params: Params, x: Array, context: Context, caches: Caches, start: int, stop: int
) -> tuple[Array, Caches]: ...


@overload
def run_layers(
    config: LlamaConfig, params: Params, x: Array, context: Context, caches: None, start: int, stop: int
) -> tuple[Array, None]: ...


def run_layers(
    config: LlamaConfig,
    params: Params,
    x: Float[Array, "B T D"],
    context: Context,
    caches: Caches | None,
    start: int,
    stop: int,
) -> tuple[Float[Array, "B T D"], Caches | None]:
    """Run decoder layers ``[start, stop)``; the only place that walks layers.

    Args:
        config: shape of the model.
        params: the model's params; only the layers named are read.
        x: hidden state that enters layer ``start``.
        context: where the block stands and what it sees.
        caches: one cache per layer of the range, or None to attend within the block only.
        start: first layer, counted from 0.
        stop: one past the last layer.

    Returns:
        The hidden state after layer ``stop - 1`` (``hidden_states[stop]``; no final norm), and the caches with this
        block written to its slots.
    """
    parts = [params[f"layers_{index}"] for index in range(start, stop)]
    shared = share(config, context)
    if packs(parts):
        return run_packed(config, parts, x, shared, caches, count=context.count)
    block = Block(config)
    updated = []
    for index, part in enumerate(parts):
        x, cache = block.apply({"params": part}, x, shared, caches[index] if caches else None)
        updated.append(cache)
    return x, None if caches is None else tuple(updated)


def head_kernel(params: Params) -> Any:
    """Return the matrix of the LM head, ``[D, V]`` or packed: its own, or the transposed embedding table."""
    return params["lm_head"]["kernel"] if "lm_head" in params else params["embed_tokens"]["embedding"].T


def head(params: Params, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Apply the LM head (no norm): fp32 logits."""
    return linear(x, head_kernel(params), jnp.float32)


def logits(
    config: LlamaConfig, params: Params, x: Float[Array, "... D"], count: Int[Array, " B"] | None = None
) -> Float[Array, "... V"]:
    """Return the target's fp32 logits from the last layer's hidden state: final RMSNorm, then the LM head.

    ``count`` is as in ``Context``: how many positions of each row matter.
    """
    kernel = head_kernel(params)
    if isinstance(kernel, Packed):
        return product(x, kernel, jnp.float32, params["norm"]["scale"], config.rms_norm_eps, count)
    return head(params, final_norm(config, params, x))


def final_norm(config: LlamaConfig, params: Params, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Return the target's final states: its last RMSNorm, of the last layer's hidden states."""
    return RMSNorm(config.rms_norm_eps).apply({"params": params["norm"]}, x)


def forward(config: LlamaConfig, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """Return fp32 logits of every position of a batch of sequences that start at position 0, without a cache."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x, _ = run_layers(config, params, embed(params, tokens), line(positions, None), None, 0, config.num_hidden_layers)
    return logits(config, params, x)
