"""Logits equal those of transformers' own models on 257 positions, for every kind of config (golden fixtures)."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model import embed, forward, init_cache, line, logits, run_layers
from kangaroo_jax.store import read_hf

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"
ROPES = ("theta", "llama3", "llama3-old", "linear")
FAMILIES = ("tinyllama", "smollm2", "mistral", "qwen2", "qwen3")
CASES = ("mha", "gqa", *ROPES, "tied", "sharded", "wide-heads", *FAMILIES)
TOLERANCE = 1e-4
PREFILL, BLOCK = 200, 19


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def cached_block(config, params, tokens, start, caches):
    """Logits of a block of tokens that begins at position ``start``."""
    context = line(start + jnp.arange(tokens.shape[1])[None], caches[0].slots)
    x, caches = run_layers(config, params, embed(params, tokens), context, caches, 0, config.num_hidden_layers)
    return logits(config, params, x), caches


def cached_logits(config, params, tokens):
    """Logits computed in a prefill of 200 tokens and blocks of 19 after it."""
    caches = init_cache(config, 1, tokens.shape[1] + 5, jnp.float32, config.num_hidden_layers)
    cuts = [0, *range(PREFILL, tokens.shape[1] + 1, BLOCK)]
    pieces = []
    for start, stop in itertools.pairwise(cuts):
        logits, caches = cached_block(config, params, tokens[:, start:stop], start, caches)
        pieces.append(logits)
    return jnp.concatenate(pieces, axis=1)


def test_the_fixtures_are_these():
    assert sorted(CASES) == sorted(path.name for path in FIXTURES.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case):
    config, params = read_hf(FIXTURES / case, "float32")
    with np.load(FIXTURES / case / "golden.npz") as golden:
        tokens, expected = jnp.asarray(golden["tokens"])[None], golden["logits"]
    assert expected.shape == (257, config.vocab_size) and expected.std() > 0.1
    whole = jax.jit(forward, static_argnums=0)(config, params, tokens)[0]
    np.testing.assert_allclose(whole, expected, rtol=0, atol=TOLERANCE)
    in_blocks = cached_logits(config, params, tokens)[0]
    np.testing.assert_allclose(in_blocks, expected, rtol=0, atol=TOLERANCE)
