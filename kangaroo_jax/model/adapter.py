"""The adapter: the only trained part of the draft model (paper, section 3.1).

``A(h) = RMSNorm_out(h + SelfAttention(RMSNorm_in(h)))`` on the hidden state after the exit layer. No MLP, no embedding,
no head: draft logits are the target's LM head applied to ``A(h)``, without the target's final norm. The other kinds of
``ADAPTER_KINDS`` are there to be compared with it::

    kangaroo       norm(h + attention(norm_in(h)))
    with-mlp       norm(y + mlp(norm_mid(y))), y = h + attention(norm_in(h))
    mlp-only       norm(h + mlp(norm_in(h)))
    linear         norm(h + norm_in(h) W)
    no-input-norm  norm(h + attention(h))
    own-head       as kangaroo, with an LM head of its own

Every part is plain Llama's whatever the family of the target: no biases, no q/k norms, no sliding window. So every
kangaroo adapter has the authors' six tensors, and their format holds it. Beyond that an adapter may have more or fewer
key/value heads than the target, an MLP of another width, some tokens of the vocabulary alone that it drafts, and final
states to read, ``h + W f`` in the place of h (see ``AdapterConfig``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from kangaroo_jax.kernels import packs, take_columns
from kangaroo_jax.model.cache import KVCache
from kangaroo_jax.model.config import LlamaConfig
from kangaroo_jax.model.context import Context
from kangaroo_jax.model.layers import MLP, Attention, Linear, RMSNorm, Shared, linear, share
from kangaroo_jax.model.llama import head_kernel
from kangaroo_jax.model.native import run_packed
from kangaroo_jax.model.variants import AdapterConfig, AdapterKind

KANGAROO = AdapterConfig()


class Adapter(nn.Module):
    """The parts of a kind, added to the hidden state one after the other, and a norm; the head is not in it."""

    config: LlamaConfig
    kind: AdapterKind

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], shared: Shared, cache: KVCache | None
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Return ``A(x)`` and the adapter's cache with the block written into it, if there is one."""
        eps = self.config.rms_norm_eps
        for index, part in enumerate(self.kind.parts):
            name = "post_attention_layernorm" if index else "input_layernorm"
            normed = RMSNorm(eps, name=name)(x) if index or self.kind.input_norm else x
            if part == "attention":
                added, cache = Attention(self.config, name="self_attn")(normed, shared, cache)
            elif part == "mlp":
                added = MLP(self.config, name="mlp")(normed)
            else:
                added = Linear(x.shape[-1], name="linear")(normed)
            x = x + added
        return RMSNorm(eps, name="norm")(x), cache


def run_adapter(
    config: LlamaConfig,
    params: dict[str, Any],
    x: Float[Array, "B T D"],
    context: Context,
    cache: KVCache | None,
    adapter: AdapterConfig = KANGAROO,
    before: Float[Array, "B T D"] | None = None,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Apply the adapter to hidden states of the exit layer, of a line of tokens or of a tree.

    Args:
        config: the target's shape.
        params: the adapter's params; a head among them is not applied (see ``draft_head``).
        x: the hidden states.
        context: where they stand and what they see.
        cache: the adapter's, or None to attend within the block only. Kinds without attention need none.
        adapter: what the adapter computes.
        before: the final state of the token before each, of an adapter that reads them; None for zeros.

    Returns:
        ``A(x)``, and the cache with this block written to its slots.
    """
    layers = adapter_layers(config, adapter)
    shared = share(layers, context)
    if before is not None:
        x = x + linear(before, params["final_proj"]["kernel"], x.dtype, context.count)
    if packs({name: part for name, part in params.items() if name != "lm_head"}):
        caches = None if cache is None else (cache,)
        x, updated = run_packed(layers, [params], x, shared, caches, params["norm"]["scale"], context.count)
        return x, updated[0] if updated else None
    return Adapter(layers, adapter.made_of).apply({"params": params}, x, shared, cache)


def draft_head(target: dict[str, Any], adapter: dict[str, Any]) -> Any:
    """Return the matrix that makes draft logits of ``A(h)``: its own LM head, or the target's.

    Returns:
        ``[D, V]`` or packed; of an adapter with a draft vocabulary ``[D, N]``, see ``with_draft_head``.
    """
    return head_kernel(adapter if "lm_head" in adapter else target)


def with_draft_head(target: dict[str, Any], adapter: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter's params with the columns of the target's head for its draft vocabulary, if it has one.

    Gathered once, so that a draft step reads them alone. Neither argument is changed.
    """
    if "draft_vocabulary" not in adapter:
        return adapter
    return {**adapter, "lm_head": {"kernel": _columns(target, adapter["draft_vocabulary"]["ids"])}}


@jax.jit
def _columns(target: dict[str, Any], ids: Int[Array, " N"]) -> Float[Array, "D N"]:
    """Return columns of the target's head; compiled, since step by step a tied one would be transposed as a whole."""
    return take_columns(head_kernel(target), ids)


def adapter_layers(config: LlamaConfig, adapter: AdapterConfig) -> LlamaConfig:
    """Return the config that the adapter's parts are built from."""
    own: dict[str, Any] = {
        name: value
        for name in ("num_key_value_heads", "intermediate_size")
        if (value := getattr(adapter, name)) is not None
    }
    if adapter.rope_theta is not None:
        own |= {"rope_theta": adapter.rope_theta, "rope_scaling": None}
    return dataclasses.replace(config.plain, **own)
