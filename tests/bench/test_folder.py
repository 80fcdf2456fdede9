"""Folders that a kill has left, and what reports make of little: no model runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.ablate import ABLATION
from bench.answers import Answer, Turn
from bench.folder import RECORD, Folder, read_folder
from bench.methods import METHODS

GAMMAS = {"plain": 0, "kangaroo": 3}
RECORD_OF_TWO: dict[str, Any] = {
    "command": "python -m bench.spec_bench",
    "identity": {
        "model": "tiny",
        "dtype": "float32",
        "device": "cpu",
        "versions": {"jax": "0"},
        "questions": "question.jsonl",
        "questions_sha256": "0" * 64,
        "max_new_tokens": 8,
        "repeats": 2,
        "warm_ups": 1,
    },
    "methods": {
        name: {
            "about": METHODS[name].about,
            "source": "",
            "settings": {},
            "gamma": gamma,
            "exit_layer": 1,
            "rows": 8 if gamma else 1,
            "added_parameters": 5,
            "model_id": f"tiny-{name}",
        }
        for name, gamma in GAMMAS.items()
    },
    "costs": None,
    "commits": [],
    "cores": 2,
    "began": "today",
    "compile_seconds": {},
}


def answers(question: int, rounds: int = 2) -> dict[tuple[str, int], Answer]:
    """Return one question's answers, of one token a round and of the prefill; kangaroo drafts one that is rejected."""
    ids, wall = tuple(range(rounds + 1)), 0.5
    found = {}
    for name, gamma in GAMMAS.items():
        drafted = (min(gamma, 1),) * rounds
        confidence = tuple((0.5,) * count for count in drafted)
        turn = Turn("text", rounds, wall, (1,) * rounds, drafted, (0,) * rounds, confidence, 5, wall / 4, "length", ids)
        settings = {"gamma": gamma, "dtype": "float32", "max_new_tokens": 8}
        for run in (1, 2):
            found[name, run] = Answer(question, "qa", "qa", f"tiny-{name}", run, (turn,), settings)
    return found


def begun(path: Path) -> Folder:
    return Folder(path, copy.deepcopy(RECORD_OF_TWO))


def test_a_question_that_a_kill_left_half_answered_is_left_out(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with pytest.raises(ValueError, match=r"has no complete answers yet; run python -m bench.spec_bench$"):
        read_folder(tmp_path)
    folder.files["plain", 1].add(answers(81)["plain", 1])
    with pytest.raises(ValueError, match="has no complete answers yet"):
        read_folder(tmp_path)
    for key, answer in answers(81).items():
        if key != ("plain", 1):
            folder.files[key].add(answer)
    for key in (("plain", 1), ("plain", 2), ("kangaroo", 1)):
        folder.files[key].add(answers(90)[key])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    record, found = read_folder(tmp_path)
    assert {name: [(a.question_id, a.run) for a in of] for name, of in found.items()} == {
        "plain": [(81, 1), (81, 2)],
        "kangaroo": [(81, 1), (81, 2)],
    }
    assert record["identity"] == RECORD_OF_TWO["identity"] and len(before) == 4
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


def test_a_kill_before_the_record_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    (tmp_path / RECORD).unlink()  # Its folders are there.
    assert all(file.path.parent.is_dir() for file in folder.files.values())
    begun(tmp_path).add(answers(81))
    (tmp_path / RECORD).unlink()
    with pytest.raises(ValueError, match=r"has answers and no record.json; pass another --out"):
        begun(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (RECORD, {}, "has no 'identity'"),
        (RECORD, RECORD_OF_TWO | {"identity": {}}, "has no 'model'"),
        (RECORD, RECORD_OF_TWO | {"methods": {"plain": {}}}, "has no 'model_id'"),
        (RECORD, RECORD_OF_TWO | {"methods": {}}, "has no complete answers yet"),
        (RECORD, RECORD_OF_TWO, "has no complete answers yet"),
        (ABLATION, {}, "has no 'kind'"),
        (ABLATION, {"kind": "grid", "rows": [], "record": 5}, "has no 'identity'"),
    ],
)
def test_what_is_no_result_is_one_line(
    name: str, content: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    assert report.main([str(tmp_path), "--out", str(tmp_path / "docs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_report_of_one_question(rounds: int, tmp_path: Path) -> None:
    """It has no interval, and without rounds no rates."""
    begun(tmp_path).add(answers(81, rounds))
    pictures = tmp_path / "figures"
    section = report.methods_section(tmp_path, pictures, "")
    assert {path.stem for path in pictures.iterdir()} == {"speedups", "ctar", "accept_lengths", "confidence"}
    lines = [[cell.strip() for cell in line.split("|")] for line in section.splitlines()]
    head = next(cells for cells in lines if "drafted/round" in cells)
    kangaroo = dict(zip(head, next(cells for cells in lines if "kangaroo" in cells), strict=True))
    assert (kangaroo["speedup [95 %]"], kangaroo["rows"]) == ("1.00x", "8")
    assert (kangaroo["CR"], kangaroo["acceptance"]) == (("1.00", "0.0%") if rounds else ("-", "-"))


def test_adapters_of_one_question(tmp_path: Path) -> None:
    none = dict.fromkeys(("speedup_interval", "compression_rate", "acceptance_rate", "drafted_per_round"))
    row = {"adapter": "kangaroo", "parameters": 5, "speedup": 1.25, "questions": 1, **none}
    rows = [row | {"exit_layer": 1}, row | {"exit_layer": 2, "speedup_interval": [1.0, 1.5], "compression_rate": 2.0}]
    section = report.adapters_section({"record": RECORD_OF_TWO, "rows": rows}, tmp_path, "")
    assert " 1.25x |" in section and "1.25x [1.00, 1.50]" in section and (tmp_path / "exits_kangaroo.png").is_file()
