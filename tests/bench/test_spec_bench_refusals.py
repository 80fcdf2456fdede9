"""The command on a tiny model: what it refuses, what it says of differences, and the order of runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import kangaroo_jax
from bench import spec_bench
from bench.folder import read_folder
from bench.interleave import Protocol, order
from bench.methods import METHODS, Method, Ready, make
from bench.methods.kangaroo_variants import plain
from bench.question_set import read_questions
from bench.settings import parse_settings

Arguments = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--methods", "kangaroo,speed"], "unknown method speed; choose from plain, kangaroo"),
        (["--methods", "plain,plain"], "plain is named twice"),
        (["--questions", "nowhere.jsonl"], "cannot read questions from nowhere.jsonl"),
        (["--model", "nowhere"], "nowhere"),
        (["--tasks", "rag"], "no question is of task 'rag'"),
        (["--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--set", "gamma=3"], "--set gamma=3: write METHOD.NAME=VALUE"),
        (["--set", "early-exit.gamma=3"], "early-exit is not among the methods to run"),
        (["--set", "kangaroo.speed=3"], "kangaroo has no setting speed; it has gamma, eta"),
        (["--methods", "prompt-lookup", "--set", "prompt-lookup.gamma=big"], "expected a value like 10 (int)"),
        (["--set", "kangaroo.gamma=0"], "1 of 3 methods cannot run on"),
    ],
)
def test_what_cannot_be_run_is_refused(
    more: list[str],
    part: str,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Arguments,
) -> None:
    assert spec_bench.main(arguments(tiny_model, questions, tmp_path / "out", *more)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and part in captured.err and not captured.out
    assert not (tmp_path / "out" / "record.json").exists()


def test_questions_are_needed_for_other_models_than_joey(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spec_bench.main(["--model", str(tiny_model)]) == 2
    assert "pass --questions FILE" in capsys.readouterr().err


def test_all_methods_that_cannot_be_made_are_named(
    tiny_model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Arguments
) -> None:
    bare = shutil.copytree(tiny_model, tmp_path / "tiny", ignore=shutil.ignore_patterns("adapter"))
    asked = ["--methods", "kangaroo,kangaroo-fixed,early-exit"]
    assert spec_bench.main(arguments(bare, questions, tmp_path / "out", *asked)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 2 of 4 methods cannot run on") and error.count("python -m train.adapter") == 2
    assert "kangaroo-fixed: " in error and "early-exit: " not in error
    # Without an adapter, the parts of early-exit's rounds cannot be measured; plain's need no measurement.
    runnable = arguments(bare, questions, tmp_path / "out", "--methods", "early-exit", "--question-end", "1")
    assert spec_bench.main([word for word in runnable if word != "--no-split"]) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["costs"] == {"plain": {"deep": 1.0}, "early-exit": None}
    assert "Where the time goes" in capsys.readouterr().out


class Wrong(Ready):
    """Changes the third new token."""

    def generate(self, *args, **kwargs) -> kangaroo_jax.Generation:
        out = super().generate(*args, **kwargs)
        ids = out.token_ids
        return dataclasses.replace(out, token_ids=(*ids[:2], (ids[2] + 1) % 250, *ids[3:]))


@pytest.mark.parametrize(("dtype", "status"), [("float32", 1), ("bfloat16", 0)])
def test_differences_are_reported(
    dtype: str,
    status: int,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: Arguments,
) -> None:
    def wrong(params: kangaroo_jax.Params, settings: object) -> Ready:
        return Wrong("wrong", params, plain(params, {}).spec)

    monkeypatch.setitem(METHODS, "wrong", Method("wrong", "", "", {}, wrong))
    more = ["--methods", "wrong", "--tasks", "qa", "--per-category", "1", "--repeats", "1", "--dtype", dtype]
    assert spec_bench.main(arguments(tiny_model, questions, tmp_path, *more)) == status
    captured = capsys.readouterr()
    found = json.loads((tmp_path / "results.json").read_text())["differences"]
    assert [(each["method"], each["question_id"], each["position"]) for each in found] == [("wrong", 90, 2)]
    if status:
        assert "NOT LOSSLESS: wrong differs from plain: question 90, turn 1, run 1, at new token 2" in captured.err
    else:
        assert "1 of 2 answers differ" in captured.err and "verify_lossless" in captured.err
    wrong_line = next(line for line in captured.out.splitlines() if line.startswith("| wrong"))
    assert wrong_line.endswith("NO |")


def test_methods_take_turns(tiny: kangaroo_jax.Params, questions: Path) -> None:
    names = ["a", "b", "c"]
    assert [order(names, turn) for turn in range(4)] == [names, ["b", "c", "a"], ["c", "a", "b"], names]
    ready = {name: make("plain", tiny) for name in names}
    protocol = Protocol(tiny, ready, {name: {} for name in names}, dict.fromkeys(names, "m"), 2, 2)
    asked = [(name, answer.run) for name, answer in protocol.ask(read_questions(questions)[1], 1)]
    assert asked == [("b", 1), ("c", 1), ("a", 1), ("c", 2), ("a", 2), ("b", 2)]


def test_what_does_not_fit_the_context(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Arguments
) -> None:
    path, out = tmp_path / "q.jsonl", tmp_path / "out"
    rows = [
        {"question_id": 1, "category": "qa", "turns": ["x" * 200]},
        {"question_id": 2, "category": "qa", "turns": ["x", "x" * 200]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = arguments(tiny_model, path, out, "--methods", "plain")
    assert spec_bench.main(given) == 2
    assert "(1 of 2 questions; --skip-long leaves them out)" in capsys.readouterr().err
    assert spec_bench.main([*given, "--skip-long"]) == 0
    assert "question 2: 1 of 2 turns left out" in capsys.readouterr().err
    assert {answer.question_id: len(answer.turns) for answer in read_folder(out)[1]["plain"]} == {2: 1}


def test_settings_are_of_the_defaults_type() -> None:
    words = ["kangaroo.eta=0", "kangaroo.gamma=4", "sps.eta=1", "sps.gamma=2"]
    found = parse_settings(words, ["kangaroo", "sps"])
    assert found == {"kangaroo": {"eta": 0, "gamma": 4}, "sps": {"eta": 1.0, "gamma": 2}}
    assert type(found["sps"]["eta"]) is float


def test_help_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert spec_bench.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in METHODS) and "gamma=10" in listed
    with pytest.raises(SystemExit) as end:
        spec_bench.main(["--help"])
    assert end.value.code == 0 and "--methods all" in capsys.readouterr().out
