"""The adapter: the only trained part of the draft model (paper, section 3.1).

``A(h) = RMSNorm_out(h + SelfAttention(RMSNorm_in(h)))`` on the hidden state after the exit layer. No MLP, no embedding,
no head: draft logits are the target's LM head applied to ``A(h)``, without the target's final norm.

The attention is plain Llama's whatever the family of the target: no biases, no q/k norms, no sliding window. So every
adapter has the authors' six tensors, and their format holds it.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from kangaroo_jax.model.cache import KVCache
from kangaroo_jax.model.config import LlamaConfig
from kangaroo_jax.model.layers import Attention, Context, RMSNorm


class Adapter(nn.Module):
    """One attention layer between two norms; head layout and rotary base are the target's."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: KVCache | None
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Return ``A(x)`` and the adapter's cache with the block written into it."""
        eps = self.config.rms_norm_eps
        attended, cache = Attention(self.config.plain, name="self_attn")(
            RMSNorm(eps, name="input_layernorm")(x), context, cache
        )
        return RMSNorm(eps, name="norm")(x + attended), cache


def run_adapter(
    config: LlamaConfig,
    params: dict[str, Any],
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    cache: KVCache | None,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Apply the adapter to hidden states of the exit layer at ``positions`` (consecutive within a row)."""
    context = Context(config.plain, positions, None if cache is None else cache.slots)
    return Adapter(config).apply({"params": params}, x, context, cache)


def init_adapter(config: LlamaConfig, rng: Array) -> dict[str, Any]:
    """Return a fresh fp32 adapter: projections U(-1/sqrt(in), 1/sqrt(in)), ones in norms (as the authors do)."""
    x = jnp.zeros((1, 1, config.hidden_size))
    params = Adapter(config).init(rng, x, Context(config.plain, jnp.zeros((1, 1), jnp.int32), None), None)["params"]
    names = ("qkv_proj", "o_proj")
    for name, key in zip(names, jax.random.split(rng, len(names)), strict=True):
        shape = params["self_attn"][name]["kernel"].shape
        bound = 1 / math.sqrt(shape[0])
        params["self_attn"][name]["kernel"] = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    return params


def abstract_adapter(config: LlamaConfig) -> dict[str, Any]:
    """Return the adapter's tree with ``jax.ShapeDtypeStruct`` leaves; nothing is allocated."""
    return jax.eval_shape(lambda rng: init_adapter(config, rng), jax.random.key(0))
