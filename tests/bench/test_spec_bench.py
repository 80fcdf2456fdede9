"""The command on a tiny model: its files, going on after a kill, what it refuses, what it says of differences."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

import kangaroo_jax
from bench import spec_bench
from bench.answer_file import claimed
from bench.folder import read_folder
from bench.interleave import Protocol, order
from bench.methods import METHODS, Method, Ready, make
from bench.methods.kangaroo import plain
from bench.questions import read_questions
from bench.settings import parse_settings

ROWS = [
    {"question_id": 81, "category": "writing", "turns": ["import os", "import re"]},
    {"question_id": 90, "category": "qa", "turns": ["def f(x):"]},
    {"question_id": 91, "category": "qa", "turns": ["for i in"]},
    {"question_id": 95, "category": "docstring", "turns": ['"""Return']},
]
METHOD_NAMES = ["plain", "kangaroo", "kangaroo-fixed"]  # One program for the last two.
FILES = [
    f"spec_bench/model_answer_temp0_run_{run}/tiny-{method}.jsonl" for run in (1, 2) for method in sorted(METHOD_NAMES)
]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


def arguments(model: Path, questions: Path, out: Path, *more: str) -> list[str]:
    where = ["--model", str(model), "--questions", str(questions), "--out", str(out)]
    what = ["--methods", "kangaroo-fixed,kangaroo", "--max-new-tokens", "8", "--repeats", "2", "--no-split"]
    return [*where, *what, "--dtype", "float32", *more]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; read only."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert spec_bench.main(arguments(tiny_model, questions, out)) == 0
    return out


def ids_of(out: Path) -> dict[tuple[str, int, int], list[tuple[int, ...]]]:
    return {
        (name, answer.run, answer.question_id): [turn.token_ids for turn in answer.turns]
        for name, answers in read_folder(out)[1].items()
        for answer in answers
    }


def ids_and_names(out: Path) -> dict[tuple[str, int, int], str]:
    answers = read_folder(out)[1]
    return {(name, a.run, a.question_id): a.answer_id for name, found in answers.items() for a in found}


def test_files_of_a_run(finished: Path, tiny: kangaroo_jax.Params, questions: Path) -> None:
    written = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    assert written == sorted([*FILES, ".lock", "record.json", "results.json", "results.md"])
    for name in FILES:
        rows = [json.loads(line) for line in (finished / name).read_text("utf-8").splitlines()]
        assert [row["question_id"] for row in rows] == [81, 90, 91, 95]
        assert [len(row["choices"][0]["wall_time"]) for row in rows] == [2, 1, 1, 1]
        assert {row["model_id"] for row in rows} == {Path(name).stem}
    record = json.loads((finished / "record.json").read_text())
    identity, methods = record["identity"], record["methods"]
    assert list(methods) == METHOD_NAMES and methods["kangaroo"]["gamma"] == 5
    assert (identity["model"], identity["dtype"], identity["repeats"]) == ("tiny", "float32", 2)
    assert record["costs"] is None
    plain_ids = {key[2]: ids for key, ids in ids_of(finished).items() if key[0] == "plain"}
    assert all(ids == plain_ids[question] for (_, _, question), ids in ids_of(finished).items())
    results = json.loads((finished / "results.json").read_text())
    assert list(results["tasks"]) == ["mt_bench", "qa", "docstring"] and results["differences"] == []
    assert results["overall"]["kangaroo"]["questions"] == 4 and results["compared"] == 24
    assert len(results["overall"]["kangaroo"]["ctar"]) == 5 and results["overall"]["plain"]["speedup"] == 1
    tables = (finished / "results.md").read_text()
    assert tables.count("| kangaroo ") == 5 and "differ" in tables and "4 questions of `question.jsonl`" in tables


def test_a_finished_run_is_not_run_again(
    finished: Path, tiny_model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    before = ids_and_names(out)
    assert spec_bench.main(arguments(tiny_model, questions, out)) == 0
    assert ids_and_names(out) == before
    assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert "| kangaroo " in capsys.readouterr().out


@pytest.mark.parametrize(("whole", "part"), [(0, 0.5), (0, 0.0), (3, 0.1), (5, 0.9), (6, 0.0)])
def test_a_killed_run_goes_on(
    whole: int, part: float, finished: Path, tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    """The kill came while the last question's answers were written: ``whole`` files have it, one has a part of it."""
    out = shutil.copytree(finished, tmp_path / "copy")
    for place, name in enumerate(FILES):
        lines = (out / name).read_bytes().splitlines(keepends=True)
        if place >= whole:
            cut = int(part * len(lines[-1])) if place == whole else 0
            (out / name).write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
    (out / "results.json").unlink()
    before, ids = ids_and_names(finished), ids_of(finished)
    assert spec_bench.main(arguments(tiny_model, questions, out)) == 0
    after = ids_and_names(out)
    assert ids_of(out) == ids
    kept = {key: name for key, name in after.items() if key[2] != 95}
    assert kept == {key: name for key, name in before.items() if key[2] != 95}
    last = [after[key] == before[key] for key in before if key[2] == 95]
    assert all(last) if whole == len(FILES) else not any(last)  # Half a question is asked anew by all methods.
    assert json.loads((out / "results.json").read_text())["overall"]["plain"]["questions"] == 4


def test_more_questions_go_on_from_fewer(finished: Path, tiny_model: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for more in (["--question-end", "1"], ["--tasks", "qa,docstring"]):
        assert spec_bench.main(arguments(tiny_model, questions, out, *more)) == 0
    assert ids_of(out) == ids_of(finished)


def test_ctrl_c_loses_no_question_that_was_answered(
    finished: Path,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, calls, generate = tmp_path / "out", [], Ready.generate

    def interrupted(self: Ready, *args, **kwargs) -> kangaroo_jax.Generation:
        calls.append(self.name)
        if len(calls) == 9 + 12 + 6 + 2:  # Warm-ups, two turns, one turn, the middle of the third question.
            os.kill(os.getpid(), signal.SIGINT)
        return generate(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Ready, "generate", interrupted)
        assert spec_bench.main(arguments(tiny_model, questions, out)) == 130
    assert capsys.readouterr().err.strip() == "interrupted; the same command goes on from here"
    assert {key[2] for key in ids_of(out)} == {81, 90}
    assert spec_bench.main(arguments(tiny_model, questions, out)) == 0
    assert ids_of(out) == ids_of(finished)


def test_a_full_disk_is_one_line(
    finished: Path, tiny_model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    for name in FILES:
        lines = (out / name).read_bytes().splitlines(keepends=True)
        (out / name).write_bytes(b"".join(lines[:-1]))
    size = max((out / name).stat().st_size for name in [*FILES, "record.json"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        assert spec_bench.main(arguments(tiny_model, questions, out)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: File too large") and "\n" not in error
    assert spec_bench.main(arguments(tiny_model, questions, out)) == 0
    assert ids_of(out) == ids_of(finished)


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
        (["--methods", "early-exit", "--set", "early-exit.gamma=big"], "expected a value like 6 (int)"),
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
) -> None:
    assert spec_bench.main(arguments(tiny_model, questions, tmp_path / "out", *more)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and part in captured.err and not captured.out
    assert not (tmp_path / "out" / "record.json").exists()


def test_questions_are_needed_for_other_models_than_joey(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spec_bench.main(["--model", str(tiny_model)]) == 2
    assert "pass --questions FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--max-new-tokens", "9"], "holds answers with max_new_tokens 8, not 9; pass another --out, or begin anew"),
        (["--repeats", "3"], "with repeats 2, not 3"),
        (["--set", "kangaroo-fixed.gamma=4"], "with methods: kangaroo-fixed "),
        (["--methods", "kangaroo"], "with methods: kangaroo-fixed "),
        (["--dtype", "bfloat16"], "with dtype float32, not bfloat16"),
    ],
)
def test_other_settings_are_not_mixed(
    more: list[str],
    part: str,
    finished: Path,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    assert spec_bench.main(arguments(tiny_model, questions, out, *more)) == 2
    assert part in capsys.readouterr().err and ids_and_names(out) == ids_and_names(finished)


def test_force_begins_anew_and_leaves_other_files_alone(
    finished: Path, tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    (out / "notes.txt").write_text("mine")
    more = ["--max-new-tokens", "4", "--question-end", "1", "--force"]
    assert spec_bench.main(arguments(tiny_model, questions, out, *more)) == 0
    assert {key[2] for key in ids_of(out)} == {81} and (out / "notes.txt").read_text() == "mine"


def test_one_process_writes_in_a_folder(
    finished: Path, tiny_model: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(finished):
        assert spec_bench.main(arguments(tiny_model, questions, finished)) == 2
    assert "another process writes answers" in capsys.readouterr().err


def test_all_methods_that_cannot_be_made_are_named(
    tiny_model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


def test_what_does_not_fit_the_context(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert {key[2]: len(ids) for key, ids in ids_of(out).items()} == {2: 1}


def test_settings_are_of_the_defaults_type() -> None:
    words = ["kangaroo.eta=0", "kangaroo.gamma=4", "early-exit.eta=1", "early-exit.exit_layer=2"]
    found = parse_settings(words, ["kangaroo", "early-exit"])
    assert found == {"kangaroo": {"eta": 0, "gamma": 4}, "early-exit": {"eta": 1.0, "exit_layer": 2}}
    assert type(found["early-exit"]["eta"]) is float


def test_help_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert spec_bench.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in METHODS) and "gamma=6" in listed
    with pytest.raises(SystemExit) as end:
        spec_bench.main(["--help"])
    assert end.value.code == 0 and "--methods all" in capsys.readouterr().out
