"""Fresh weights: what training starts from, and the trees that checkpoints are read into."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kangaroo_jax.model.adapter import KANGAROO, Adapter, adapter_layers
from kangaroo_jax.model.config import LlamaConfig
from kangaroo_jax.model.context import line
from kangaroo_jax.model.fused import fused_parts
from kangaroo_jax.model.layers import Block, Linear, RMSNorm, share
from kangaroo_jax.model.llama import Params, head_kernel
from kangaroo_jax.model.variants import AdapterConfig

_MATRICES = (
    ("self_attn", "qkv_proj"),
    ("self_attn", "o_proj"),
    ("mlp", "gate_up_proj"),
    ("mlp", "down_proj"),
    ("linear",),
    ("lm_head",),
)


def init_params(config: LlamaConfig, rng: Array) -> Params:
    """Return freshly initialised fp32 params: normal(0.02) matrices, ones in norms.

    Projections back into the residual stream are scaled down by ``sqrt(2 N)`` (GPT-2), which deep stacks need.
    """
    keys = jax.random.split(rng, config.num_hidden_layers + 2)
    x = jnp.zeros((1, 1, config.hidden_size))
    shared = share(config, line(jnp.zeros((1, 1), jnp.int32), None))
    shape = (config.vocab_size, config.hidden_size)
    params: Params = {
        "embed_tokens": {"embedding": 0.02 * jax.random.normal(keys[0], shape)},
        "norm": RMSNorm(config.rms_norm_eps).init(keys[0], x)["params"],
    }
    scale = (2 * config.num_hidden_layers) ** -0.5
    for index in range(config.num_hidden_layers):
        layer = Block(config).init(keys[index + 1], x, shared, None)["params"]
        for part, name in (("self_attn", "o_proj"), ("mlp", "down_proj")):
            layer[part][name]["kernel"] *= scale
        for part, name in (("self_attn", "qkv_proj"), ("mlp", "gate_up_proj")):
            layer[part][name]["kernel"] = fused_parts(config)[name].from_blocks(layer[part][name]["kernel"])
        params[f"layers_{index}"] = layer
    if not config.tie_word_embeddings:
        params["lm_head"] = Linear(config.vocab_size).init(keys[-1], x)["params"]
    return params


def abstract_params(config: LlamaConfig) -> Params:
    """Return the params' tree with ``jax.ShapeDtypeStruct`` leaves; nothing is allocated."""
    return jax.eval_shape(lambda rng: init_params(config, rng), jax.random.key(0))


def init_adapter(
    config: LlamaConfig, rng: Array, adapter: AdapterConfig = KANGAROO, target: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a fresh fp32 adapter: matrices U(-1/sqrt(in), 1/sqrt(in)), ones in norms (as the authors do).

    Of final states nothing is read at first: their matrix is zeros.

    The ids of a draft vocabulary are no weights, and not among them.

    Args:
        config: the target's shape.
        rng: random key; a part has the same numbers in every kind that has it.
        adapter: what the adapter computes.
        target: the target's params; an LM head of the adapter's own starts as a copy of theirs, without them at random.
    """
    layers, kind = adapter_layers(config, adapter), adapter.made_of
    x = jnp.zeros((1, 1, config.hidden_size))
    params = Adapter(layers, kind).init(rng, x, share(layers, line(jnp.zeros((1, 1), jnp.int32), None)), None)["params"]
    if kind.own_head:
        params["lm_head"] = {"kernel": jnp.zeros((config.hidden_size, config.vocab_size))}
    if adapter.final_states:
        params["final_proj"] = {"kernel": jnp.zeros((config.hidden_size, config.hidden_size))}
    fused = fused_parts(layers)
    for path, key in zip(_MATRICES, jax.random.split(rng, len(_MATRICES)), strict=True):
        part = params
        for name in path:
            part = part.get(name, {})
        if "kernel" in part:
            shape = part["kernel"].shape
            bound = 1 / math.sqrt(shape[0])
            kernel = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
            part["kernel"] = fused[path[-1]].from_blocks(kernel) if path[-1] in fused else kernel
    if kind.own_head and target is not None:
        # A copy, so that neither can be donated with the other.
        params["lm_head"]["kernel"] = jnp.array(head_kernel(target), jnp.float32, copy=True)
    return params


def abstract_adapter(config: LlamaConfig, adapter: AdapterConfig = KANGAROO) -> dict[str, Any]:
    """Return the tree of an adapter's weights with ``jax.ShapeDtypeStruct`` leaves; nothing is allocated."""
    return jax.eval_shape(lambda rng: init_adapter(config, rng, adapter), jax.random.key(0))
