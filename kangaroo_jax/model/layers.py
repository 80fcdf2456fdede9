"""The parts of a decoder layer as Flax Linen modules, used functionally: cache in, cache out."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.kernels import Packed, product
from kangaroo_jax.model.cache import KVCache, fold_heads, write_cache
from kangaroo_jax.model.config import LlamaConfig
from kangaroo_jax.model.context import Context
from kangaroo_jax.model.rope import apply_rope, rope_table

_KERNEL_INIT = nn.initializers.normal(0.02)


def linear(
    x: Float[Array, "... I"],
    kernel: Float[Array, "I O"] | Packed,
    out_dtype: jnp.dtype | None = None,
    count: Int[Array, " B"] | None = None,
) -> Array:
    """Multiply by a weight matrix; the one seam behind which another kernel or a quantised weight can stand.

    A packed matrix is multiplied by the native kernel, an array by XLA: fp32 products in full precision (GPUs would
    otherwise round the inputs to TF32). ``count`` is as in ``Context``: the native kernel leaves other rows out.
    """
    if isinstance(kernel, Packed):
        return product(x, kernel, out_dtype, count=count)
    rows = x.reshape(-1, x.shape[-1])  # XLA:CPU computes the weight gradient of a 3-D product 5 times slower.
    if x.dtype == kernel.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        out = _dot_bf16_cpu(rows, kernel).astype(out_dtype or x.dtype)
    else:
        precision = jax.lax.Precision.HIGHEST if kernel.dtype == jnp.float32 else None
        out = jnp.dot(rows, kernel, precision=precision, preferred_element_type=out_dtype or x.dtype)
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def _dot_bf16_cpu(rows: Float[Array, "R I"], kernel: Float[Array, "I O"]) -> Float[Array, "R O"]:
    """Multiply in the one form in which XLA:CPU reads a bf16 matrix as it is, without an fp32 copy of it.

    That is YNNPACK's product: of two rows or more, with an fp32 result. Fewer than 8 rows are padded to as many as a
    verification has, so that a row rounds alike in both.
    """
    padded = jnp.pad(rows, ((0, max(8 - len(rows), 0)), (0, 0)))
    return jnp.dot(padded, kernel, preferred_element_type=jnp.float32)[: len(rows)]


class Linear(nn.Module):
    """A linear map, with a bias or without; kernel stored ``[in, out]``."""

    features: int
    bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """Return ``x @ kernel``, plus the bias where there is one."""
        out = linear(x, self.param("kernel", _KERNEL_INIT, (x.shape[-1], self.features)))
        if not self.bias:
            return out
        return out + jnp.broadcast_to(self.param("bias", nn.initializers.zeros, (self.features,)), out.shape)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * scale``; statistics in fp32 (Zhang & Sennrich 2019)."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise the last axis; returns ``x.dtype``."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * jnp.broadcast_to(scale, x.shape)


class Shared(struct.PyTreeNode):
    """What every layer of one forward pass shares: a ``Context`` as these layers take it.

    Attributes:
        rope: cosines and sines of the rotary angles, ``[B, T, 1, hd / 2]``.
        mask: which slots each token sees, ``[B, T, S]``.
        start: slot of the first token, ``[B]``.
        twins: as in ``Context``.
    """

    rope: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]
    mask: Bool[Array, "B T S"]
    start: Int[Array, " B"]
    twins: Int[Array, "B T"] | None = None


def share(config: LlamaConfig, context: Context) -> Shared:
    """Return what layers of this shape share in a block's context."""
    mask = context.mask(config.sliding_window)
    return Shared(rope_table(config, context.positions), mask, context.start, context.twins)


def attend(
    q: Float[Array, "B T H hd"],
    k: Float[Array, "*KB S hd"],
    v: Float[Array, "*KB S hd"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T O"]:
    """Scaled dot-product attention over folded keys and values (as in a ``KVCache``); scores and softmax in fp32.

    Query heads of one group become rows of one product, so keys and values are never repeated.
    """
    batch, length, heads, width = q.shape
    row = "n" if k.ndim == 3 else ""
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    kv_heads = math.prod(k.shape[:-2]) // batch
    groups = (kv_heads, batch, heads // kv_heads, length)
    queries = q.reshape(batch, length, kv_heads, -1, width).transpose(2, 0, 3, 1, 4).reshape(*k.shape[:-2], -1, width)
    scores = jnp.einsum(
        f"{row}qd,{row}sd->{row}qs", queries, k, precision=precision, preferred_element_type=jnp.float32
    )
    visible = jnp.broadcast_to(mask[:, None], (*groups, mask.shape[-1])).reshape(scores.shape)
    scores = jnp.where(visible, scores * width**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum(f"{row}qs,{row}sd->{row}qd", weights, v, precision=precision)
    return mixed.reshape(*groups, width).transpose(1, 3, 0, 2, 4).reshape(batch, length, heads * width)


QUERY_PIECE = 256


def attend_within(
    q: Float[Array, "B T H hd"],
    k: Float[Array, "KB T hd"],
    v: Float[Array, "KB T hd"],
    mask: Bool[Array, "B T T"],
) -> Float[Array, "B T O"]:
    """Return ``attend`` of a block to itself: pieces of the queries, each with the keys up to its end.

    So of the products that a causal mask hides only those within a piece are computed, and the scores of one piece
    exist at a time, in the backward pass too. Positions are consecutive, as everywhere::

        keys      0 1 2 3 4 5
        piece 0   x . | . . .
                  x x | . . .
        piece 1   x x x . | .
                  x x x x | .
    """
    one = attend if q.shape[1] <= QUERY_PIECE else jax.checkpoint(attend)
    ends = [*range(QUERY_PIECE, q.shape[1], QUERY_PIECE), q.shape[1]]
    starts = [0, *ends[:-1]]
    pieces = [
        one(q[:, at:end], k[:, :end], v[:, :end], mask[:, at:end, :end]) for at, end in zip(starts, ends, strict=True)
    ]
    return jnp.concatenate(pieces, axis=1)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions; q, k and v come from one product (see ``fused``).

    Options of the model's family: a bias on that product (Qwen2), norms on each head of q and k (Qwen3).
    """

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], shared: Shared, cache: KVCache | None
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Attend from the block to the cache and itself; without a cache, to itself alone (training)."""
        config = self.config
        heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        qkv = Linear((heads + 2 * kv_heads) * width, config.family.qkv_bias, name="qkv_proj")(x)
        groups = qkv.reshape(*x.shape[:2], kv_heads, -1, width)  # Of each: its query heads, a key and a value.
        q, k, v = groups[..., :-2, :].reshape(*x.shape[:2], heads, width), groups[..., -2, :], groups[..., -1, :]
        if config.family.qk_norm:
            q, k = RMSNorm(config.rms_norm_eps, name="q_norm")(q), RMSNorm(config.rms_norm_eps, name="k_norm")(k)
        q, k = apply_rope(q, shared.rope), apply_rope(k, shared.rope)
        if cache is None:
            mixed = attend_within(q, fold_heads(k), fold_heads(v), shared.mask)
        else:
            # Write first, then attend to the updated buffer: reading the old one would force a copy of it.
            cache = write_cache(cache, k, v, shared.start)
            mixed = attend(q, cache.k, cache.v, shared.mask)
        return Linear(x.shape[-1], name="o_proj")(mixed), cache


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``; gate and up come from one product (see ``fused``)."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Apply the gated MLP to every position."""
        pairs = Linear(2 * self.config.intermediate_size, name="gate_up_proj")(x).reshape(*x.shape[:-1], -1, 2)
        return Linear(x.shape[-1], name="down_proj")(nn.silu(pairs[..., 0]) * pairs[..., 1])


class Block(nn.Module):
    """One pre-norm decoder layer."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], shared: Shared, cache: KVCache | None
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Return the new residual stream and the layer's cache with the block written into it."""
        eps = self.config.rms_norm_eps
        attended, cache = Attention(self.config, name="self_attn")(
            RMSNorm(eps, name="input_layernorm")(x), shared, cache
        )
        x = x + attended
        return x + MLP(self.config, name="mlp")(RMSNorm(eps, name="post_attention_layernorm")(x)), cache
