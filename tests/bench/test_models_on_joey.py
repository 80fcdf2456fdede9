"""Methods with a model of their own on joey and its built-in prompts: lossless, trained or not."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import pytest

import kangaroo_jax
from bench import methods
from kangaroo_jax.baselines import init_medusa, save_medusa
from kangaroo_jax.model import init_params
from kangaroo_jax.store import write_hf
from train.draft_model import FOR_JOEY, draft_config

SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sps", {}),
    ("sps", {"draft_model": "joey", "gamma": 7}),
    ("medusa", {}),
    ("medusa-tree", {}),
    ("medusa-tree", {"nodes": 15}),
)


def built_in_prompts() -> list[str]:
    text = resources.files("kangaroo_jax").joinpath("assets/prompts.jsonl").read_text("utf-8")
    return [json.loads(line)["prompt"] for line in text.splitlines()]


@pytest.fixture(scope="module")
def joey() -> kangaroo_jax.Params:
    return kangaroo_jax.load("joey", dtype="float32")


@pytest.fixture
def made(joey: kangaroo_jax.Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder with untrained models where the commands put trained ones."""
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path))
    folder = tmp_path / "bench" / "joey"
    arrays = kangaroo_jax.load("joey", dtype="float32", kernels="xla").target  # The heads begin as copies of its own.
    save_medusa(folder / "medusa", joey.config, init_medusa(joey.config, 4, arrays), {})
    config = draft_config(joey.config, **FOR_JOEY)
    write_hf(folder / "draft_model", config, jax.device_get(init_params(config, jax.random.key(0))))


@pytest.mark.full
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_ids_are_those_of_plain_decoding(
    joey: kangaroo_jax.Params, made: None, name: str, settings: dict[str, Any]
) -> None:
    plain, ready = methods.make("plain", joey), methods.make(name, joey, settings)
    for prompt in built_in_prompts():
        ids = joey.tokenizer.encode(prompt)
        assert ready.generate(ids, 128).token_ids == plain.generate(ids, 128).token_ids


@pytest.mark.full
@pytest.mark.parametrize(("name", "settings"), SETTINGS[1:3])
def test_ids_of_one_prompt(joey: kangaroo_jax.Params, made: None, name: str, settings: dict[str, Any]) -> None:
    ids = joey.tokenizer.encode(built_in_prompts()[1])
    plain = methods.make("plain", joey).generate(ids, 40)
    out = methods.make(name, joey, settings).generate(ids, 40)
    assert out.token_ids == plain.token_ids
    if name == "sps":  # joey drafts for itself.
        assert out.stats.accept_lengths == (8, 8, 8, 8, 7)
