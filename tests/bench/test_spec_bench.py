"""The command on a tiny model: its files, going on after a kill, and what it does not mix."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import kangaroo_jax
from bench import spec_bench
from bench.folder import WRITING, read_folder
from bench.methods import METHODS, Ready
from workshop.places import claimed

Arguments = Callable[..., list[str]]
METHOD_NAMES = ["plain", "kangaroo", "kangaroo-fixed"]  # One program for the last two.
FILES = [
    f"spec_bench/model_answer_temp0_run_{run}/tiny-{method}.jsonl" for run in (1, 2) for method in sorted(METHOD_NAMES)
]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory, arguments: Arguments) -> Path:
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
    finished: Path,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Arguments,
) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    before = ids_and_names(out)
    assert spec_bench.main(arguments(tiny_model, questions, out)) == 0
    assert ids_and_names(out) == before
    assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert "| kangaroo " in capsys.readouterr().out


@pytest.mark.parametrize(("whole", "part"), [(0, 0.5), (0, 0.0), (3, 0.1), (5, 0.9), (6, 0.0)])
def test_a_killed_run_goes_on(
    whole: int, part: float, finished: Path, tiny_model: Path, questions: Path, tmp_path: Path, arguments: Arguments
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


def test_more_questions_go_on_from_fewer(
    finished: Path, tiny_model: Path, questions: Path, tmp_path: Path, arguments: Arguments
) -> None:
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
    arguments: Arguments,
) -> None:
    out, calls, generate = tmp_path / "out", [], Ready.generate

    def interrupted(self: Ready, *args, **kwargs) -> kangaroo_jax.Generation:
        calls.append(self.name)
        if len(calls) == 9 + 12 + 6 + 2:  # Warm-ups, two turns, one turn, the middle of the third question.
            signal.raise_signal(signal.SIGINT)
        return generate(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Ready, "generate", interrupted)
        assert spec_bench.main(arguments(tiny_model, questions, out)) == 130
    assert capsys.readouterr().err.strip() == "interrupted; the same command goes on from here"
    assert {key[2] for key in ids_of(out)} == {81, 90}
    assert spec_bench.main(arguments(tiny_model, questions, out)) == 0
    assert ids_of(out) == ids_of(finished)


def test_a_full_disk_is_one_line(
    finished: Path,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Arguments,
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
    arguments: Arguments,
) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    assert spec_bench.main(arguments(tiny_model, questions, out, *more)) == 2
    assert part in capsys.readouterr().err and ids_and_names(out) == ids_and_names(finished)


def test_force_begins_anew_and_leaves_other_files_alone(
    finished: Path, tiny_model: Path, questions: Path, tmp_path: Path, arguments: Arguments
) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    (out / "notes.txt").write_text("mine")
    more = ["--max-new-tokens", "4", "--question-end", "1", "--force"]
    assert spec_bench.main(arguments(tiny_model, questions, out, *more)) == 0
    assert {key[2] for key in ids_of(out)} == {81} and (out / "notes.txt").read_text() == "mine"


def test_one_process_writes_in_a_folder(
    finished: Path, tiny_model: Path, questions: Path, capsys: pytest.CaptureFixture[str], arguments: Arguments
) -> None:
    with claimed(finished, WRITING):
        assert spec_bench.main(arguments(tiny_model, questions, finished)) == 2
    assert "another process writes answers" in capsys.readouterr().err


def test_settings_are_fitted_on_questions_to_spare(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Arguments
) -> None:
    lookup = METHODS["prompt-lookup"]
    monkeypatch.setitem(METHODS, "prompt-lookup", dataclasses.replace(lookup, candidates=[{"gamma": 2}]))
    more = ["--methods", "prompt-lookup", "--tasks", "qa", "--per-task", "1", "--repeats", "1"]
    given = arguments(tiny_model, questions, tmp_path, *more, "--fitted")
    assert spec_bench.main(given) == 0
    journal = (tmp_path / "fitted.jsonl").read_text()
    settings, *tried = [json.loads(line) for line in journal.splitlines()]
    assert settings["settings"]["questions"] == [91] and {answer[2] for answer in ids_and_names(tmp_path)} == {90}
    assert [each["settings"] for each in tried] == [{}, {"gamma": 2}]
    methods = json.loads((tmp_path / "record.json").read_text())["methods"]
    assert list(methods) == ["plain", "prompt-lookup, published", "prompt-lookup, fitted"]
    best = max(tried, key=lambda each: each["speedup"])["settings"].get("gamma", 10)
    assert [each["gamma"] for each in methods.values()] == [0, 10, best]
    assert methods["prompt-lookup, fitted"]["model_id"] == "tiny-prompt-lookup-fitted"
    assert spec_bench.main(given) == 0 and (tmp_path / "fitted.jsonl").read_text() == journal
    assert spec_bench.main([*given, "--per-task", "9"]) == 2
