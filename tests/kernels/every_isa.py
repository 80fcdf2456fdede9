"""Compute products and layers with one instruction set, for ``test_bits``: it is chosen once in a process.

KANGAROO_KERNELS_ISA=AVX2 python tests/kernels/every_isa.py out.npz
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from kangaroo_jax.kernels import highest, instruction_set, layers, pack, pack_target, product, search, surest
from kangaroo_jax.model import LlamaConfig, abstract_params, init_cache
from kangaroo_jax.model.rope import rope_frequencies

ROWS = (*range(1, 17), 40)
BLOCKS = (1, 5, 16)  # As shapes; all numbers of rows as counts of a block of 40.
LENGTH = 40
EPS = 0.1
CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=46,
    intermediate_size=59,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=22,
    model_type="qwen3",
)


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return numbers that bf16 holds, in fp32."""
    return (0.3 * rng.standard_normal(shape)).astype(ml_dtypes.bfloat16).astype(np.float32)


def products(dtype: Any, storage: str) -> dict[str, Any]:
    """Return a product, and one of normalised rows, for so many rows of the same."""
    rng = np.random.default_rng(0)
    x, kernel = draw(rng, 1, max(ROWS), 129).astype(dtype), pack(jnp.asarray(draw(rng, 129, 67)), storage=storage)
    found = {}
    for name, options in (("product", {}), ("normed", {"scale": draw(rng, 129), "eps": EPS})):
        run = jax.jit(partial(product, **options, out_dtype=jnp.float32))
        for rows in ROWS:
            found[f"{name} {rows}"] = np.asarray(run(x, kernel, count=np.array([rows])))[0, :rows]
        for rows in BLOCKS:
            found[f"{name} of {rows}"] = run(x[0, :rows], kernel)
    return found


@jax.jit
def step(params: Any, x: Any, rope: Any, mask: Any, starts: Any, caches: Any, count: Any) -> Any:
    """Run both layers on a block."""
    parts = [params["layers_0"], params["layers_1"]]
    heads, kv_heads = CONFIG.num_attention_heads, CONFIG.num_key_value_heads
    return layers(parts, x, rope, mask, starts, caches, heads, kv_heads, EPS, params["norm"]["scale"], count)


def run_block(params: Any, x: Any, starts: list[int], caches: Any, counts: list[int], window: int = LENGTH) -> Any:
    """Run a block at ``starts``, with a sliding window; what is not the kernels' is computed by NumPy."""
    positions = np.array(starts, np.int32)[:, None] + np.arange(x.shape[1], dtype=np.int32)
    angles = positions[:, :, None, None] * rope_frequencies(CONFIG)
    slots, last = np.arange(caches[0][0].shape[-2]), positions[:, :, None]
    mask = (slots <= last) & (slots > last - window)
    rope = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return step(params, x, rope, mask, positions[:, 0], caches, np.array(counts, np.int32))


def empty(batch: int, slots: int, dtype: Any) -> Any:
    """Return caches of both layers."""
    return [(cache.k, cache.v) for cache in init_cache(CONFIG, batch, slots, jnp.dtype(dtype), 2)]


def in_blocks(params: Any, x: Any, slots: int, block: int, count: int, window: int = LENGTH) -> Any:
    """Return the states of a text that is computed so many tokens at a time, the first ones of a block."""
    caches, pieces = empty(1, slots, x.dtype), []
    for at in range(0, LENGTH, count):
        some = x[:1, at : at + count]
        piece = np.pad(some, ((0, 0), (0, block - some.shape[1]), (0, 0)))
        states, caches = run_block(params, piece, [at], caches, [count], window)
        pieces.append(np.asarray(states)[0, :count])
    return np.concatenate(pieces)[:LENGTH].astype(np.float32)


def texts(dtype: Any, storage: str) -> dict[str, Any]:
    """Return the states of a text that is computed in blocks of any size, in caches of two, and among a batch."""
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: draw(rng, *leaf.shape) + (len(leaf.shape) == 1), abstract_params(CONFIG))
    packed = pack_target(jax.tree.map(lambda leaf: jnp.asarray(leaf.astype(dtype)), params), storage)
    x = draw(rng, 3, LENGTH, 46).astype(dtype)
    found = {f"layers {count}": in_blocks(packed, x, 83, 40, count) for count in ROWS}
    found |= {f"windows {count}": in_blocks(packed, x, 83, 40, count, 13) for count in ROWS}
    found |= {f"layers of {block}": in_blocks(packed, x, 64, block, block) for block in BLOCKS}
    among, _ = run_block(packed, x, [0, 0, 0], empty(3, LENGTH, x.dtype), [LENGTH, 7, 0])
    return found | {"layers among": np.asarray(among)[0].astype(np.float32)}


def cuts() -> Any:
    """Return how far down top_k and top_p leave tokens in, for a number of tokens that is no multiple of anything."""
    logits, one = draw(np.random.default_rng(2), 4, 5003) * 5, np.ones(4, np.float32)
    top_k, top_p = np.array([700, 5003, 4000, 5003], np.float32), np.array([1, 0.9, 0.8, 0.99], np.float32)
    known, last = np.array([False, True, False, True]), np.full(4, -1, np.float32)
    return search(logits, logits.max(-1), one, top_k, top_p, -np.inf * one, last, known, one > 0)


def results() -> dict[str, Any]:
    """Return everything, for fp32, for weights kept in bf16 or int8, and for a model in bf16."""
    logits = draw(np.random.default_rng(3), 2, 3, 5003)
    most = highest(logits)
    found: dict[str, Any] = {"instructions": np.array(instruction_set()), "cuts": cuts(), "highest": most}
    found["share"] = surest(logits)[1]
    wide, bf16 = np.float32, ml_dtypes.bfloat16
    kinds = ("fp32", wide, "float32"), ("kept", wide, "bfloat16"), ("bf16", bf16, "bfloat16"), ("int8", wide, "int8")
    for kind, dtype, storage in kinds:
        for name, values in {**products(dtype, storage), **texts(dtype, storage)}.items():
            found[f"{kind} {name}"] = values
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **results())
