"""Whole models: a text has the same logits, bit by bit, however it is cut into blocks."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kangaroo_jax
from kangaroo_jax.model import LlamaConfig, embed, forward, init_cache, line, logits, run_layers
from kangaroo_jax.proof.compare import read_prompts
from kangaroo_jax.proof.rescore import rescore

LENGTH, BLOCK = 48, 16
PROMPTS = [row["prompt"] for row in read_prompts()]


@cache
def joey(dtype: str, kernels: str = "native") -> kangaroo_jax.Params:
    return kangaroo_jax.load("joey", dtype=dtype, kernels=kernels)


@cache
def text() -> np.ndarray:
    """The first tokens of a prompt, and plain decoding's after it."""
    params, prompt = joey("float32"), PROMPTS[0]
    new = kangaroo_jax.generate(params, prompt, method="plain", max_new_tokens=LENGTH).token_ids
    return np.array([*params.tokenizer.encode(prompt), *new], np.int32)[:LENGTH]


@partial(jax.jit, static_argnums=(0, 1))
def step(config: LlamaConfig, split: int, target: Any, tokens: Any, at: Any, caches: Any, count: Any) -> Any:
    """Run a block through the layers before ``split``, then through the others, and return its logits."""
    context = line(at + jnp.arange(tokens.shape[1])[None], caches[0].slots, count)
    x, shallow = run_layers(config, target, embed(target, tokens), context, caches[:split], 0, split)
    last = config.num_hidden_layers
    x, deep = run_layers(config, target, x, context, caches[split:], split, last)
    return logits(config, target, x, count), (*shallow, *deep)


def by_blocks(params: kangaroo_jax.Params, split: int, slots: int, block: int, size: int) -> np.ndarray:
    """Return the logits of the text, computed ``size`` tokens at a time as the first of blocks of ``block``."""
    config, dtype = params.config, params.dtype
    caches, found = init_cache(config, 1, slots, dtype, config.num_hidden_layers), []
    for at in range(0, LENGTH, size):
        some = text()[at : at + size]
        tokens = np.pad(some, (0, block - len(some)))[None]
        scores, caches = step(
            config, split, params.target, tokens, np.int32(at), caches, np.array([len(some)], np.int32)
        )
        found.append(np.asarray(scores)[0, : len(some)])
    return np.concatenate(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_do_not_depend_on_blocks(dtype: str) -> None:
    params = joey(dtype)
    assert params.draft is not None
    tokens = text()[None]
    whole = np.asarray(jax.jit(forward, static_argnums=0)(params.config, params.target, tokens))[0]
    split, slots = params.draft.exit_layer, LENGTH + BLOCK
    cases = [(split, slots, BLOCK, size) for size in range(1, BLOCK + 1)]
    cases += [(split, 3 * slots, 8, 8), (1, slots, 1, 1), (0, slots + 1, 5, 5)]
    wrong = [case for case in cases if (by_blocks(params, *case).view(np.uint32) != whole.view(np.uint32)).any()]
    assert wrong == []


def test_logits_are_near_xlas() -> None:
    scores = [by_blocks(joey("float32", kernels), 2, LENGTH, BLOCK, BLOCK) for kernels in ("native", "xla")]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-4 * np.abs(scores[1]).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_ways_of_scoring_give_the_same_bits(tiny_model: Path, dtype: str) -> None:
    params = kangaroo_jax.load(tiny_model, dtype=dtype, kernels="native")
    rng = np.random.default_rng(5)
    for count, new in ((13, 1), (29, 19)):
        plain, *verified = rescore(
            params, rng.integers(3, 259, count).tolist(), rng.integers(3, 259, new).tolist(), 20, 5, 2
        )
        for found in verified:
            np.testing.assert_array_equal(plain.view(np.uint32), found.view(np.uint32))
