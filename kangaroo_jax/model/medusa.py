"""Medusa's heads: several next tokens drafted at once from one hidden state (Cai et al. 2024, arXiv 2401.10774).

They are here to be compared with Kangaroo's adapter. Head k of K, on the target's last state x after its final norm,
drafts the token k + 1 places on, without knowing the tokens between (section 3.1.1)::

    logits_k = W2_k (x + silu(W1_k x + b_k))

One residual block, and an LM head of its own. Params are stacked where one product serves all heads::

    {"linear": {"kernel" [D, K * D], "bias" [K * D]}, "lm_head_0": {"kernel" [D, V]}, ..., "lm_head_{K - 1}": ...}
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kangaroo_jax.model.config import LlamaConfig
from kangaroo_jax.model.layers import linear
from kangaroo_jax.model.llama import head_kernel

MEDUSA_HEADS = 4
"""Heads of the comparison: what Spec-Bench runs and the published tree needs; 591M parameters on a 7B model."""


def count_heads(params: dict[str, Any]) -> int:
    """Return how many heads there are."""
    return sum(name.startswith("lm_head_") for name in params)


def medusa_states(params: dict[str, Any], x: Float[Array, "... D"]) -> list[Float[Array, "... D"]]:
    """Return what the LM head of each head is applied to.

    Args:
        params: the heads.
        x: the target's last states, after its final norm.
    """
    stacked = linear(x, params["linear"]["kernel"]) + params["linear"]["bias"]
    return [x + nn.silu(part) for part in jnp.split(stacked, count_heads(params), axis=-1)]


def medusa_logits(params: dict[str, Any], x: Float[Array, "... D"]) -> Float[Array, "K ... V"]:
    """Return every head's fp32 logits; arguments as for ``medusa_states``."""
    states = medusa_states(params, x)
    return jnp.stack([one_head(params, index, state) for index, state in enumerate(states)])


def one_head(params: dict[str, Any], index: int, state: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Return the fp32 logits of one head, counted from 0, from its entry of ``medusa_states``."""
    return linear(state, params[f"lm_head_{index}"]["kernel"], jnp.float32)


def init_medusa(config: LlamaConfig, heads: int, target: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return fresh fp32 heads, which draft what the target says of the next token: W1 is zero, W2 its LM head.

    Args:
        config: the target's shape.
        heads: how many.
        target: the target's params; without them the LM heads are zeros.
    """
    width = config.hidden_size
    zeros = jnp.zeros((width, heads * width)), jnp.zeros(heads * width)
    params: dict[str, Any] = {"linear": dict(zip(("kernel", "bias"), zeros, strict=True))}
    for index in range(heads):
        if target is None:
            kernel = jnp.zeros((width, config.vocab_size))
        else:  # A copy each, so that none can be donated with another.
            kernel = jnp.array(head_kernel(target), jnp.float32, copy=True)
        params[f"lm_head_{index}"] = {"kernel": kernel}
    return params


def abstract_medusa(config: LlamaConfig, heads: int) -> dict[str, Any]:
    """Return the heads' tree with ``jax.ShapeDtypeStruct`` leaves; nothing is allocated."""
    return jax.eval_shape(lambda: init_medusa(config, heads))
