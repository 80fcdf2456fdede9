"""What methods need is made by the commands they name, once, and only where it is not there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bench import prepare
from bench.methods import METHODS
from kangaroo_jax.store import companion


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path))
    return tmp_path


def test_each_missing_thing_is_named_once() -> None:
    commands = prepare.missing(list(METHODS), "joey")
    made = [
        "python -m train.draft_model --model joey",
        "python -m train.medusa --model joey",
        "python -m bench.datastore --model joey",
    ]
    assert sorted(commands) == sorted(made)
    assert prepare.missing(["plain", "kangaroo", "prompt-lookup", "lookahead"], "joey") == []
    companion("joey", "medusa").mkdir(parents=True)
    assert prepare.missing(["medusa", "medusa-tree", "rest"], "joey") == made[2:]


def test_a_models_path_is_one_word(tmp_path: Path) -> None:
    model = tmp_path / "a model"
    model.mkdir()
    (command,) = prepare.missing(["sps"], str(model))
    assert shlex.split(command)[-1] == str(model)


def test_a_command_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    made = "python -c 'print(1)'"
    monkeypatch.setattr(prepare, "missing", lambda names, model: [made])
    prepare.prepare(["rest"], "joey")
    assert made in capfd.readouterr().err
    for code, raised in (("raise SystemExit(3)", ValueError), ("raise SystemExit(130)", KeyboardInterrupt)):
        failing = f"python -c {shlex.quote(code)}"
        monkeypatch.setattr(prepare, "missing", lambda names, model, failing=failing: [failing])
        with pytest.raises(raised):
            prepare.prepare(["rest"], "joey")
