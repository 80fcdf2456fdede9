"""Speculative decoding with a small model: lossless, its cache without holes, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kangaroo_jax
from bench import methods
from bench.methods.small_model import SmallModel
from kangaroo_jax import decode as dec
from kangaroo_jax.model import LlamaConfig, embed, init_params, line, run_layers
from kangaroo_jax.store import write_hf

PROMPTS = [[1, *range(40, 40 + size)] for size in (1, 7, 19)]
NEW_TOKENS = 30


@pytest.fixture(scope="module")
def other_model(tiny: kangaroo_jax.Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller random model of the same vocabulary, without a tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "smaller"
    config = dataclasses.replace(tiny.config, hidden_size=22, num_hidden_layers=1, head_dim=6, num_key_value_heads=1)
    params = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim == 2 else leaf, init_params(config, jax.random.key(9)))
    write_hf(directory, config, jax.device_get(params))
    return directory


def plain(params: kangaroo_jax.Params, prompt: list[int]) -> tuple[int, ...]:
    return methods.make("plain", params).generate(prompt, NEW_TOKENS, eos_token_id=()).token_ids


@pytest.mark.parametrize("gamma", [1, 4])
def test_the_target_as_its_own_draft_model_accepts_everything(
    tiny: kangaroo_jax.Params, tiny_model: Path, gamma: int
) -> None:
    ready = methods.make("sps", tiny, {"draft_model": tiny_model, "gamma": gamma})
    for prompt in PROMPTS:
        out = ready.generate(prompt, NEW_TOKENS, eos_token_id=())
        assert out.token_ids == plain(tiny, prompt)
        full, rest = divmod(NEW_TOKENS - 1, gamma + 1)  # The first token is the prefill's.
        assert out.stats.accept_lengths == (gamma + 1,) * full + ((rest,) if rest else ())
        assert set(out.stats.draft_lengths) == {gamma}


@pytest.mark.parametrize("eta", [pytest.param(0.0, marks=pytest.mark.full), 0.5])
def test_ids_are_those_of_plain_decoding(tiny: kangaroo_jax.Params, other_model: Path, eta: float) -> None:
    ready = methods.make("sps", tiny, {"draft_model": other_model, "eta": eta})
    lengths: set[int] = set()
    for prompt in PROMPTS:
        out = ready.generate(prompt, NEW_TOKENS, eos_token_id=())
        assert out.token_ids == plain(tiny, prompt)
        lengths |= set(out.stats.draft_lengths)
        for confidence in out.stats.confidence:  # All but the last one drafted were sure.
            assert all(sure >= eta for sure in confidence[:-1])
    assert lengths == {5} if eta == 0 else min(lengths) < 5


@pytest.mark.full
def test_several_sequences_and_the_small_models_cache(tiny: kangaroo_jax.Params) -> None:
    """After many rounds, the small model's keys are those of a run over the whole text, up to the last two tokens."""
    config = tiny.config
    spec = dec.DecodeSpec(config, SmallModel(config), 3)
    weights, slots = {"target": tiny.target, "drafter": tiny.target}, 64
    tokens = np.zeros((2, slots), np.int32)
    for row, prompt in zip(tokens, PROMPTS[:2], strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in PROMPTS[:2]], np.int32)
    one = np.ones(2, np.float32)
    sampling = dec.Sampling(one, np.ones(2, np.int32), one, 0 * one)
    controls = dec.Controls(0 * one, np.full((2, 4), -1, np.int32), sampling)
    state = dec.prefill(
        spec, 8, weights, dec.allocate(spec, 2, slots, jnp.dtype(jnp.float32)), tokens, np.zeros_like(lengths), lengths,
        np.array([30, 26], np.int32), np.zeros((2, 2), np.uint32), controls,
    )  # fmt: skip
    state = dec.decode(spec, weights, state, controls, np.int32(1000))
    for row, prompt in enumerate(PROMPTS[:2]):
        text = np.asarray(state.tokens[row, : state.length[row]]).tolist()
        assert tuple(text[len(prompt) :]) == plain(tiny, prompt)[: len(text) - len(prompt)]
        at = jnp.arange(len(text))[None]
        caches = dec.allocate(spec, 1, slots, jnp.dtype(jnp.float32))[1]
        whole = run_layers(config, tiny.target, embed(tiny.target, jnp.array([text])), line(at, slots), caches, 0, 3)[1]
        for mine, right in zip(state.drafter, whole, strict=True):
            mine = mine.k[row::2]  # The rows of each head are those of both sequences.
            np.testing.assert_allclose(mine[:, : len(text) - 2], right.k[:, : len(text) - 2], atol=1e-4)


def test_added_parameters_and_settings(tiny: kangaroo_jax.Params, other_model: Path) -> None:
    ready = methods.make("sps", tiny, {"draft_model": other_model})
    small = kangaroo_jax.load(other_model, kernels="xla")
    assert ready.added_parameters == sum(leaf.size for leaf in jax.tree.leaves(small.target))
    assert ready.settings == {"draft_model": "smaller", "gamma": 5, "eta": 0.0}


def test_what_is_refused(
    tiny: kangaroo_jax.Params, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"bench/tiny/draft_model; make one: python -m train.draft_model --model "):
        methods.make("sps", tiny)
    with pytest.raises(ValueError, match="gamma is 0"):
        methods.make("sps", tiny, {"draft_model": tiny_model, "gamma": 0})
    config = LlamaConfig(17, 6, 5, 1, 1, 1, 6)
    write_hf(tmp_path / "odd", config, jax.device_get(init_params(config, jax.random.key(0))))
    with pytest.raises(ValueError, match="has 17 tokens, the model 259; give one of the same vocabulary"):
        methods.make("sps", tiny, {"draft_model": tmp_path / "odd"})
