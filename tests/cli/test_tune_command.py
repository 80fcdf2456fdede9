"""The tune command: what it refuses before anything is measured. A whole run of it is in tests/test_tuner.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kangaroo_jax.cli import main


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model in a directory that may be written."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def prompts(folder: Path) -> str:
    file = folder / "prompts.jsonl"
    file.write_text('{"prompt": "def f(x):"}\n{"prompt": "import os"}\n')
    return str(file)


def test_what_cannot_be_stored_is_refused_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*words: str) -> str:
        assert main(["tune", *words]) == 2
        return capsys.readouterr().err

    assert "the adapter of joey is part of the installed package" in error("--save")
    assert "as --save DIR" in error("--save")
    assert f"{tmp_path} exists; choose another directory" in error("--model", str(model), "--save", str(tmp_path))
    assert "no adapter directory 'none'" in error("--model", str(model), "--adapter", "none")
    assert "max_gamma is 0" in error("--model", str(model), "--max-gamma", "0")
    assert "cannot read prompts" in error("--prompts", str(tmp_path / "none.jsonl"))
    shutil.rmtree(model / "adapter")
    assert "has no adapter" in error("--model", str(model), "--prompts", prompts(tmp_path))
