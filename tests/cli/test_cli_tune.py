"""The tune command: what it refuses before anything is loaded, what it prints, and what it stores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import kangaroo_jax
from kangaroo_jax import timers
from kangaroo_jax.cli import main


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model in a directory that may be written."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def prompts(folder: Path) -> str:
    file = folder / "prompts.jsonl"
    file.write_text('{"prompt": "def f(x):"}\n{"prompt": "import os"}\n')
    return str(file)


def test_tune_and_save(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "SECONDS", 0.01)
    small = ["--prompts", prompts(tmp_path), "--max-new-tokens", "20", "--max-gamma", "5", "--candidates", "1"]
    command = ["tune", "--model", str(model), *small, "--repeats", "1"]
    before = (model / "adapter" / "adapter_config.json").read_bytes()
    assert main(command) == 0
    out = capsys.readouterr()
    assert "<- chosen" in out.out and "plain decoding: no setting pays" in out.out
    assert out.err == "nothing is stored; --save stores the choice with the adapter\n"
    assert (model / "adapter" / "adapter_config.json").read_bytes() == before

    assert main([*command, "--save", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["saved"] == str(model / "adapter") and printed["method"] == "plain"
    draft = kangaroo_jax.load(model).draft
    assert (draft.gamma, draft.eta, draft.method) == (printed["chosen"]["gamma"], printed["chosen"]["eta"], "plain")
    # Every command decodes plainly now, unless it is told otherwise.
    for extra, method in (([], "plain"), (["--method", "kangaroo"], "kangaroo")):
        assert main(["import os", "--model", str(model), "--max-new-tokens", "3", "--json", *extra]) == 0
        assert json.loads(capsys.readouterr().out)["method"] == method


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
