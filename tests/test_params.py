"""load: which adapter a model gets, and what is refused before its target is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import kangaroo_jax
from convert.adapter import export_adapter
from kangaroo_jax import Params, load
from kangaroo_jax.model import KangarooConfig
from kangaroo_jax.store import read_config


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's adapter in the authors' form; read only."""
    out = tmp_path_factory.mktemp("exported") / "given"
    export_adapter(tiny_model / "adapter", read_config(tiny_model), out, "torch")
    return out


@pytest.fixture
def theirs(exported: Path, tmp_path: Path) -> Path:
    """The same as the authors publish it: nothing says the exit layer."""
    directory = Path(shutil.copytree(exported, tmp_path / "theirs"))
    fields = json.loads((directory / "config.json").read_text())
    del fields["kangaroo"]
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


@pytest.fixture
def unreadable(tiny_model: Path, tmp_path: Path) -> Path:
    """The model with weights that cannot be read: whatever is said of its adapter was said before."""
    directory = Path(shutil.copytree(tiny_model, tmp_path / "unreadable"))
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def refused(model: Path, said: str, **options: object) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load(model, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_exported_adapter_loads_with_nothing_more_said(tiny_model: Path, tiny: Params, exported: Path) -> None:
    params = load(tiny_model, adapter=exported)
    assert params.draft == tiny.draft == KangarooConfig(1, 5, 0.3)
    jax.tree.map(np.testing.assert_array_equal, params.adapter, tiny.adapter)


def test_the_authors_adapter_drafts_after_the_layer_that_is_given(tiny_model: Path, tiny: Params, theirs: Path) -> None:
    params = load(tiny_model, adapter=theirs, exit_layer=1)
    assert params.draft == KangarooConfig(1)
    options: dict[str, Any] = {"max_new_tokens": 23, "gamma": 3, "eta": 0.1}
    found, expected = (kangaroo_jax.generate(p, "def f(", **options) for p in (params, tiny))
    assert found.token_ids == expected.token_ids
    assert found.stats.accept_lengths == expected.stats.accept_lengths


def test_adapters_are_refused_before_the_target_is_read(unreadable: Path, theirs: Path, exported: Path) -> None:
    refused(unreadable, "does not say after which layer", adapter=theirs)
    refused(unreadable, "trained for exit_layer 1, and exit_layer 2 is asked for", adapter=exported, exit_layer=2)
    refused(unreadable, "trained for exit_layer 1, and exit_layer 2 is asked for", exit_layer=2)
    shutil.rmtree(unreadable / "adapter")
    refused(unreadable, r"exit_layer is 1, but .*unreadable has no adapter; give one", exit_layer=1)
    refused(unreadable, "is not a complete safetensors file")


def test_without_tokenizer_files_ids_go_in_and_out(tiny_model: Path, tiny: Params, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(tiny_model, tmp_path / "bare"))
    for file in bare.glob("tokenizer*"):
        file.unlink()
    params, ids = load(bare), tiny.tokenizer.encode("def f(")
    out = kangaroo_jax.generate(params, ids, max_new_tokens=9)
    assert out.token_ids == kangaroo_jax.generate(tiny, ids, max_new_tokens=9).token_ids
    assert out.text == "" and list(kangaroo_jax.stream(params, ids, max_new_tokens=3)) == []
    expected = "bare has neither tokenizer.json nor tokenizer.model; .*, or pass token ids"
    for prompt, options in (("def f(", {}), (ids, {"stop_strings": "x"})):
        with pytest.raises(ValueError, match=expected):
            kangaroo_jax.generate(params, prompt, **options)
