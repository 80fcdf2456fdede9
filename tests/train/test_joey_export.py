"""What ``python -m train.joey --export`` leaves behind is the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import load_target
from kangaroo_jax.text import load_tokenizer
from train import joey
from train.corpus import encode_bytes
from train.export import export_joey
from workshop.held_out import SourceFile


@pytest.mark.full
def test_the_newest_params_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [SourceFile("a.py", b"x = 1\n" * 50)]
    monkeypatch.setattr(joey, "split_sources", lambda folders: (files, files))
    states, fit = [], joey.fit
    monkeypatch.setattr(joey, "fit", lambda *args, **options: states.append(fit(*args, **options)) or states[-1])
    shape = "--hidden 12 --layers 2 --heads 1 --intermediate 14 --window 16 --batch-tokens 32"
    folders = ["--out", str(tmp_path / "run"), "--export", str(tmp_path / "hf")]
    command = [*folders, *shape.split(), "--steps", "3", "--long-steps", "0", "--warmup", "1"]
    joey.main(command)
    config, params, directory = load_target(tmp_path / "hf", "float32")
    assert directory == tmp_path / "hf"
    assert config == joey.joey_config(12, 2, 1, 14)
    assert load_tokenizer(directory).encode("ü") == [1, *encode_bytes("ü".encode())]
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 2
    # All steps are done: the same command only exports, and the same.
    before = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").unlink()
    joey.main(command)
    assert (directory / "model.safetensors").read_bytes() == before
    for leaf, trained in zip(jax.tree.leaves(params), jax.tree.leaves(states[-1].params), strict=True):
        assert (np.asarray(leaf) == np.asarray(trained.astype(jnp.bfloat16).astype(jnp.float32))).all()


def test_without_a_checkpoint_there_is_nothing_to_export(tmp_path: Path) -> None:
    config = LlamaConfig(7, 4, 5, 2, 1, 1, 4)
    with pytest.raises(ValueError, match="no checkpoint in"):
        export_joey(config, tmp_path / "checkpoints", tmp_path / "out")
    assert not (tmp_path / "out").exists()
