"""The native kernels as functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.kernels.library import ready
from kangaroo_jax.kernels.packed import Packed


def product(
    x: Float[Array, "... I"],
    kernel: Packed,
    out_dtype: jnp.dtype | None = None,
    scale: Float[Array, " I"] | None = None,
    eps: float = 0.0,
    count: Int[Array, " B"] | None = None,
) -> Float[Array, "... O"]:
    """Return ``x @ kernel``, or ``norm(x) @ kernel``; each row's bits are the same whatever rows are beside it.

    Args:
        x: float32 or bfloat16.
        kernel: the packed matrix, not of pairs.
        out_dtype: dtype of the result; default: that of x.
        scale: scale of an RMSNorm that x goes through first.
        eps: of that norm.
        count: for x ``[B, T, I]``: rows of each sequence that are multiplied, counted from the first; the others are
            zeros. Default: all.
    """
    assert not kernel.pairs, "a matrix of pairs is read by layers() only"
    ready()
    rows = x if count is not None else x.reshape(1, -1, x.shape[-1])
    batch, tokens, depth = rows.shape
    call = jax.ffi.ffi_call(
        "kangaroo_product",
        (
            jax.ShapeDtypeStruct((batch, tokens, kernel.columns), jnp.float32),
            jax.ShapeDtypeStruct((batch * tokens * _stride(depth),), jnp.float32),
        ),
    )
    scales = () if scale is None else (scale,)
    out, _ = call(rows, _counts(count, rows), kernel.blocks, *scales, eps=np.float32(eps))
    return out.reshape(*x.shape[:-1], kernel.columns).astype(out_dtype or x.dtype)


def layers(
    parts: Sequence[dict[str, Any]],
    x: Float[Array, "B T D"],
    rope: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]],
    mask: Bool[Array, "B T S"],
    start: Int[Array, " B"],
    caches: Sequence[tuple[Array, Array]],
    heads: int,
    kv_heads: int,
    eps: float,
    norm: Float[Array, " D"] | None = None,
    count: Int[Array, " B"] | None = None,
    twins: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], list[tuple[Array, Array]]]:
    """Run decoder layers in one call, each row by the same operations whatever rows are beside it.

    Args:
        parts: packed params of each layer, ``self_attn`` and the norms, with ``mlp`` or without; all of one kind.
        x: hidden states, float32 or bfloat16.
        rope: cosines and sines of their positions.
        mask: which slots each of them sees: one at least, and none at or after ``start + T``.
        start: slot of the first token of each sequence.
        caches: keys and values of each layer, ``[K * B, S, hd]`` or ``[S, hd]``; their memory is used for the results,
            so that in a loop they are updated in place.
        heads: query heads.
        kv_heads: key/value heads.
        eps: of the norms.
        norm: scale of a norm after the last layer.
        count: tokens of each sequence that are computed, counted from the first; the hidden states of the others become
            zeros, and their slots stay as they are. Default: all.
        twins: slots in whose place a token's own key and value count for it, and where ``mask`` has it: sums are then
            made in the order in which they are made where the token is in that slot. Default: its own slot.

    Returns:
        The hidden states after the last layer, and the caches with this block written to ``start`` and after.
    """
    ready()
    batch, tokens, width = x.shape
    first = parts[0]
    attention, mlp = first["self_attn"], first.get("mlp")
    head_width = caches[0][0].shape[-1]
    inner = mlp["down_proj"]["kernel"].shape[0] if mlp else 0
    flags = {
        "input_norm": "input_layernorm" in first,
        "qkv_bias": "bias" in attention["qkv_proj"],
        "qk_norm": "q_norm" in attention,
        "last_norm": norm is not None,
        "has_twins": twins is not None,
    }

    arrays: list[Array] = [
        x,
        *(table.astype(jnp.float32).reshape(batch, tokens, -1) for table in rope),
        mask,
        start.astype(jnp.int32),
        _counts(count, x),
        *([] if twins is None else [twins.astype(jnp.int32)]),
    ]
    places = []
    for layer, pair in zip(parts, caches, strict=True):
        attention, mlp = layer["self_attn"], layer.get("mlp")
        if flags["input_norm"]:
            arrays.append(layer["input_layernorm"]["scale"])
        arrays.append(attention["qkv_proj"]["kernel"].blocks)
        if flags["qkv_bias"]:
            arrays.append(attention["qkv_proj"]["bias"])
        if flags["qk_norm"]:
            arrays += [attention["q_norm"]["scale"], attention["k_norm"]["scale"]]
        arrays.append(attention["o_proj"]["kernel"].blocks)
        if mlp:
            scale = layer["post_attention_layernorm"]["scale"]
            arrays += [scale, mlp["gate_up_proj"]["kernel"].blocks, mlp["down_proj"]["kernel"].blocks]
        places += [len(arrays), len(arrays) + 1]
        arrays += pair
    if norm is not None:
        arrays.append(norm)

    widths = [width, width, (heads + 2 * kv_heads) * head_width, heads * head_width, *([inner] if inner else [])]
    workspace = batch * tokens * sum(map(_stride, widths))
    buffers = [buffer for pair in caches for buffer in pair]
    call = jax.ffi.ffi_call(
        "kangaroo_layers",
        (
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((workspace,), jnp.float32),
            *(jax.ShapeDtypeStruct(buffer.shape, buffer.dtype) for buffer in buffers),
        ),
        input_output_aliases={place: 2 + index for index, place in enumerate(places)},
    )
    out, _, *updated = call(
        *arrays,
        layers=np.int64(len(parts)),
        heads=np.int64(heads),
        kv_heads=np.int64(kv_heads),
        head_width=np.int64(head_width),
        inner=np.int64(inner),
        eps=np.float32(eps),
        **{name: bool(value) for name, value in flags.items()},
    )
    return out, list(zip(updated[::2], updated[1::2], strict=True))


def highest(x: Float[Array, "B T N"], count: Int[Array, " B"] | None = None) -> Int[Array, "B T"]:
    """Return the place of the highest value of each row, the first of equals; the first NaN, if there is one.

    Args:
        x: float32.
        count: as for ``product``; the places of other rows are 0.
    """
    return _highest(x, count, jnp.int32)[0]


def surest(
    x: Float[Array, "B T N"], others: int = 0
) -> tuple[Int[Array, "B T"], Float[Array, "B T"], Int[Array, "B T K"]]:
    """Return ``highest``, the softmax of each row there, and the places of the next lower values.

    Args:
        x: float32.
        others: how many lower values; of equal ones there is one, and 0 where there are not so many.
    """
    return _highest(x, None, jnp.int32, jnp.float32, others)


def _highest(x: Float[Array, "B T N"], count: Int[Array, " B"] | None, *results: Any) -> Any:
    ready()
    shapes = [
        jax.ShapeDtypeStruct((*x.shape[:2], each), jnp.int32)
        if isinstance(each, int)
        else jax.ShapeDtypeStruct(x.shape[:2], each)
        for each in results
    ]
    return jax.ffi.ffi_call("kangaroo_highest", shapes)(x, _counts(count, x))


def move(
    caches: Sequence[tuple[Array, Array]], start: Int[Array, " B"], path: Int[Array, "B T"]
) -> list[tuple[Array, Array]]:
    """Move slots ``start[b] + path[b, t]`` of each sequence to ``start[b] + t``, in place.

    Args:
        caches: keys and values, as for ``layers``.
        start: slot of the root.
        path: rows, rising along T.
    """
    ready()
    buffers = [buffer for pair in caches for buffer in pair]
    call = jax.ffi.ffi_call(
        "kangaroo_move",
        [jax.ShapeDtypeStruct(buffer.shape, buffer.dtype) for buffer in buffers],
        input_output_aliases={2 + index: index for index in range(len(buffers))},
    )
    moved = call(start.astype(jnp.int32), path.astype(jnp.int32), *buffers)
    return list(zip(moved[::2], moved[1::2], strict=True))


def search(
    logits: Float[Array, "B V"],
    highest: Float[Array, " B"],
    factor: Float[Array, " B"],
    top_k: Float[Array, " B"],
    top_p: Float[Array, " B"],
    kth: Float[Array, " B"],
    last: Float[Array, " B"],
    counted: Bool[Array, " B"],
    sought: Bool[Array, " B"],
) -> Float[Array, " B"]:
    """Return the lowest value of ``(logit - highest) * factor`` that top_k and top_p leave in.

    Args:
        logits: all logits.
        highest: the highest of each sequence.
        factor: 1 / temperature.
        top_k: tokens that stay.
        top_p: probability that those of them have together that stay.
        kth: the lowest value that top_k leaves in, where it is known.
        last: a value that is probably not far from what is returned.
        counted: where it is.
        sought: where something is to be found; elsewhere ``kth`` is returned.
    """
    ready()
    batch, size = logits.shape
    shapes = (jax.ShapeDtypeStruct((batch,), jnp.float32), jax.ShapeDtypeStruct((batch, size + 32), jnp.float32))
    call = jax.ffi.ffi_call("kangaroo_search", shapes)
    return call(logits, highest, factor, top_k, top_p, kth, last, counted, sought)[0]


def _counts(count: Int[Array, " B"] | None, x: Float[Array, "B T I"]) -> Int[Array, " B"]:
    return jnp.full(len(x), x.shape[1], jnp.int32) if count is None else count.astype(jnp.int32)


def _stride(width: int) -> int:
    """Return the floats of a row of the workspace; ``row_stride`` of native/ffi.cc."""
    return -(-width // 16) * 16 + 16
