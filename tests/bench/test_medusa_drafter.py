"""Medusa's heads, in a line and in the published tree: lossless, right where the heads are, counted as published."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kangaroo_jax
from bench import methods
from bench.methods.medusa_drafter import Medusa
from bench.methods.medusa_tree import Paths, line, published
from kangaroo_jax import decode as dec
from kangaroo_jax.baselines import abstract_medusa, init_medusa, medusa_logits, save_medusa
from kangaroo_jax.model import LlamaConfig, abstract_adapter, embed, run_layers
from kangaroo_jax.model import line as of_a_line
from kangaroo_jax.model.layers import RMSNorm
from workshop.published_shapes import SHAPES

PROMPTS = [[1, *range(40, 40 + size)] for size in (1, 7, 19)]
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def heads(
    tiny: kangaroo_jax.Params, tiny_arrays: kangaroo_jax.Params, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Four random heads of the tiny model."""
    directory = tmp_path_factory.mktemp("heads") / "medusa"
    params = init_medusa(tiny.config, 4, tiny_arrays.target)
    keys = iter(jax.random.split(jax.random.key(3), 8))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params)
    save_medusa(directory, tiny.config, params, {})
    return directory


@pytest.mark.parametrize(
    ("name", "settings", "rows"),
    [
        ("medusa", {}, 8),
        pytest.param("medusa-tree", {}, 64, marks=pytest.mark.full),
        ("medusa-tree", {"nodes": 13}, 16),
    ],
)
def test_ids_are_those_of_plain_decoding(
    tiny: kangaroo_jax.Params, heads: Path, name: str, settings: dict[str, Any], rows: int
) -> None:
    ready, plain = methods.make(name, tiny, settings | {"directory": heads}), methods.make("plain", tiny)
    assert ready.spec.rows == rows
    drafted = 4 if name == "medusa" else settings.get("nodes", 63)
    for prompt in PROMPTS:
        out = ready.generate(prompt, NEW_TOKENS, eos_token_id=())
        assert out.token_ids == plain.generate(prompt, NEW_TOKENS, eos_token_id=()).token_ids
        assert set(out.stats.draft_lengths) == {drafted}


def test_the_token_after_the_newest_is_the_first_heads(tiny: kangaroo_jax.Params, heads: Path) -> None:
    """What is remembered is the state that the newest token came from, in the prefill and after every round."""
    for name, settings in (("medusa", {}), ("medusa-tree", {"nodes": 13})):
        ready = methods.make(name, tiny, settings | {"directory": heads})
        out = ready.generate(PROMPTS[1], NEW_TOKENS, eos_token_id=())
        text = [*PROMPTS[1], *out.token_ids]
        end = len(PROMPTS[1]) + 1  # Committed tokens.
        for accepted, length in zip(out.stats.accepted_drafts, out.stats.accept_lengths, strict=True):
            shares = jax.nn.softmax(medusa_logits(ready.weights, last_state(tiny, text[: end - 1]))[:, 0], axis=-1)
            right = best_path(np.asarray(shares), text[end:], ready.spec.drafter.tree)
            assert accepted >= right if end + accepted >= len(text) else accepted == right
            end += length


def last_state(params: kangaroo_jax.Params, text: list[int]) -> Any:
    """Return the normed last state of a text, ``[1, D]``, without a cache; always of one shape, compiled once."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(text)] = text
    return _states(params.config, params.target, padded)[:, len(text) - 1]


@partial(jax.jit, static_argnums=0)
def _states(config: LlamaConfig, target: Any, tokens: Any) -> Any:
    at = jnp.arange(tokens.shape[1])[None]
    x, _ = run_layers(config, target, embed(target, tokens), of_a_line(at, None), None, 0, config.num_hidden_layers)
    return RMSNorm(config.rms_norm_eps).apply({"params": target["norm"]}, x)


def best_path(shares: np.ndarray, text: list[int], tree: Paths) -> int:
    """Return how many of the next tokens the heads' choices hold along one path of the tree."""
    order = np.argsort(-shares, axis=-1, kind="stable")
    right = [
        path
        for path in tree.paths
        if len(path) <= len(text) and all(order[head, rank] == text[head] for head, rank in enumerate(path))
    ]
    return max(map(len, right), default=0)


def test_heads_that_know_the_text_are_accepted_whole(tiny_arrays: kangaroo_jax.Params, as_loaded: Any) -> None:
    """A model that says one token for ever: fresh heads, which say what the target says, are always right."""
    kernel = jnp.zeros_like(tiny_arrays.target["lm_head"]["kernel"])
    target = tiny_arrays.target | {"lm_head": {"kernel": kernel}}  # All logits are 0: the first token wins.
    params = as_loaded(tiny_arrays.replace(target=target))
    for tree in (line(4), published(63)):
        spec = dec.DecodeSpec(params.config, Medusa(tree), 4)
        ready = methods.Ready("medusa", params, spec, weights=init_medusa(params.config, 4, target))
        out = ready.generate(PROMPTS[1], 16, eos_token_id=())
        assert out.token_ids == (0,) * 16 and out.stats.accept_lengths == (5, 5, 5)


def test_the_published_tree() -> None:
    tree = published(63)
    assert len(tree.paths) == len(set(tree.paths)) == 63 and tree.deepest == 4 and tree.width == 10
    assert np.bincount(tree.depth()).tolist() == [0, 10, 28, 23, 2]
    assert tree.parent()[:6].tolist() == [0, 1, 0, 1, 0, 2] and tree.rank()[:6].tolist() == [0, 0, 1, 1, 2, 0]
    assert all(len(published(nodes).paths) == nodes for nodes in range(1, 64))
    with pytest.raises(ValueError, match="without its parent"):
        Paths(((0,), (1, 0)))


def test_parameters_of_the_published_sizes() -> None:
    """Kangaroo's paper: 67M against Medusa-1's 591M on a 7B model."""
    config = SHAPES["vicuna-7b"]
    adapter = abstract_adapter(config)
    assert methods.count_parameters(adapter) == 67_117_056
    ids, columns = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((8,), (4096, 8)))
    fewer = {**adapter, "draft_vocabulary": {"ids": ids}, "lm_head": {"kernel": columns}}
    assert methods.count_parameters(fewer) == 67_117_056
    assert methods.count_parameters(abstract_medusa(config, 4)) == 591_413_248 == 4 * (4096**2 + 4096 + 4096 * 32000)


def test_what_is_refused(
    tiny: kangaroo_jax.Params, heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"medusa-tree: no Medusa heads in .*; make them: python -m train.medusa"):
        methods.make("medusa-tree", tiny)
    with pytest.raises(ValueError, match="nodes is 64; it must be at most 63"):
        methods.make("medusa-tree", tiny, {"directory": heads, "nodes": 64})
    joey = kangaroo_jax.load("joey")
    with pytest.raises(ValueError, match="hidden_size 42, the model has 320; use the heads made for this model"):
        methods.make("medusa", joey, {"directory": heads})
    few = tmp_path / "few"
    save_medusa(few, tiny.config, init_medusa(tiny.config, 2), {})
    with pytest.raises(ValueError, match="63 nodes need 4 heads, the model has 2"):
        methods.make("medusa-tree", tiny, {"directory": few})
    assert methods.make("medusa-tree", tiny, {"directory": few, "nodes": 5}).settings == {"heads": 2, "nodes": 5}
