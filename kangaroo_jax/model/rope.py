"""Rotary position embedding, half-split as in Hugging Face's Llama, angles in fp32."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kangaroo_jax.model.config import LlamaConfig


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Return the ``head_dim / 2`` rotary frequencies in radians per position, scaled as the config says.

    ``theta ** (-2i / head_dim)``; "linear" divides all by ``factor``; "llama3" divides the frequencies whose
    wavelength exceeds the pre-training context and blends in between (Llama 3.1 model card).
    """
    half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = 1.0 / config.rope_theta**half
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies.astype(np.float32)
    if scaling.rope_type == "linear":
        return (frequencies / scaling.factor).astype(np.float32)
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (frequencies * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def rope_table(
    config: LlamaConfig, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Return fp32 cosines and sines of the rotary angles at ``positions``, broadcastable over heads."""
    angles = positions[:, :, None, None].astype(jnp.float32) * rope_frequencies(config)[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B T H hd"], table: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]
) -> Float[Array, "B T H hd"]:
    """Rotate each pair ``(x[i], x[i + hd/2])`` of every head by its angle, in fp32; returns ``x.dtype``."""
    cos, sin = table
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
