"""Shapes of models, for measurements: what memory and time depend on, without the weights."""

from __future__ import annotations

from kangaroo_jax.model import LlamaConfig

SHAPES = {
    "vicuna-7b": LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128),
    "vicuna-13b": LlamaConfig(32000, 5120, 13824, 40, 40, 40, 128),
    "vicuna-33b": LlamaConfig(32000, 6656, 17920, 60, 52, 52, 128),
    "llama3-8b": LlamaConfig(
        128256, 4096, 14336, 32, 32, 8, 128, rope_theta=500000.0, max_position_embeddings=8192, rms_norm_eps=1e-5
    ),
    "tinyllama": LlamaConfig(32000, 2048, 5632, 22, 32, 4, 64, rms_norm_eps=1e-5),
    "joey": LlamaConfig(259, 320, 1024, 10, 4, 1, 80, rms_norm_eps=1e-5, max_position_embeddings=1024),
    # Nobody's: 105M parameters, so that no cache of a CPU holds them, and a draft step that reads a seventh of them.
    "small-100m": LlamaConfig(8192, 576, 1536, 24, 9, 9, 64),
}
