"""Ablations and the report on a tiny model: what is measured, going on after a stop, and what the page holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench import ablate, report, spec_bench

ROWS = [
    {"question_id": 81, "category": "writing", "turns": ["import os", "import re"]},
    {"question_id": 90, "category": "qa", "turns": ["def f(x):"]},
]
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


def arguments(model: Path, questions: Path, out: Path) -> list[str]:
    common = ["--model", str(model), "--questions", str(questions), "--out", str(out), "--dtype", "float32"]
    return [*common, "--max-new-tokens", "8", "--repeats", "1"]


@pytest.fixture(scope="module")
def grid(tiny_model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid") / "grid"
    assert ablate.main(["grid", "--gammas", "1,3", "--etas", "0,2", *arguments(tiny_model, questions, out)]) == 0
    return out


def test_a_grid_has_every_setting(grid: Path) -> None:
    found = json.loads((grid / "ablation.json").read_text())
    rows = {(row["gamma"], row["eta"]): row for row in found["rows"]}
    assert list(rows) == [(1, 0.0), (1, 2.0), (3, 0.0), (3, 2.0)] and found["kind"] == "grid"
    # eta 0 drafts gamma tokens each time, an eta above 1 a single one.
    assert [row["drafted_per_round"] for row in rows.values()] == [1, 1, 3, 1]
    assert all(row["questions"] == 2 and row["speedup"] > 0 and row["parameters"] > 0 for row in rows.values())


@pytest.mark.full
def test_a_grid_goes_on_where_it_stopped(
    grid: Path, tiny_model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "grid"
    shutil.copytree(grid, copy)
    before = json.loads((copy / "ablation.json").read_text())["rows"]
    shutil.rmtree(copy / "gamma-3")
    (copy / "ablation.json").unlink()
    assert ablate.main(["grid", "--gammas", "1,3", "--etas", "0,2", *arguments(tiny_model, questions, copy)]) == 0
    after = json.loads((copy / "ablation.json").read_text())["rows"]
    assert after[:2] == before[:2]  # Not measured again: the very speedups.
    same = ("compression_rate", "drafted_per_round", "new_tokens")
    assert [[row[name] for name in same] for row in after] == [[row[name] for name in same] for row in before]


def test_adapters_are_told_apart_by_exit_layer_and_kind(
    tiny_model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tiny_model / "adapter"
    out = tmp_path / "out"
    assert ablate.main(["adapters", str(own), *arguments(tiny_model, questions, out)]) == 0
    (row,) = json.loads((out / "ablation.json").read_text())["rows"]
    assert row["adapter"] == "kangaroo" and row["name"] == f"exit-{row['exit_layer']}-kangaroo"
    assert ablate.main(["adapters", str(own), str(own), *arguments(tiny_model, questions, tmp_path / "x")]) == 2
    assert "second adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapters"], "adapters needs adapter directories"),
        (["grid", "somewhere"], "grid takes no adapter directories"),
        (["adapters", "no such folder"], "no adapter directory 'no such folder'"),
        (["grid", "--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["grid", "--max-new-tokens", "1"], "--max-new-tokens is 1; it must be at least 2"),
        (["grid", "--gammas", "0"], "gamma is 0"),
        (["grid", "--model", "somewhere"], "no questions for somewhere"),
    ],
)
def test_what_cannot_be_run(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out" / ablate.ABLATION).exists()


def test_the_report_has_figures_and_tables(grid: Path, tiny_model: Path, questions: Path, tmp_path: Path) -> None:
    runs, page = tmp_path / "runs", tmp_path / "docs" / report.PAGE
    asked = ["--methods", "early-exit,kangaroo", "--no-split"]
    assert spec_bench.main([*arguments(tiny_model, questions, runs), *asked]) == 0
    page.parent.mkdir()
    page.write_text("# Benchmarks\n\nbefore\n\n<!-- tiny grid -->old<!-- /tiny grid -->\n\nafter\n", "utf-8")
    written = report.report([runs, grid], page.parent)
    text = page.read_text("utf-8")
    assert text.startswith("# Benchmarks\n\nbefore\n\n<!-- tiny grid -->\n") and "old" not in text
    assert text.index("after") < text.index("<!-- tiny methods -->") and text.endswith("<!-- /tiny methods -->\n")
    for word in ("### Overall", "early-exit", "eta 2", "gamma 3", "python -m bench.ablate grid"):
        assert word in text
    pictures = [path for path in written if path.suffix == ".png"]
    names = {"accept_lengths", "confidence", "ctar", "speedups"}
    assert {path.name for path in pictures} == {"tiny_grid_grid.png", *(f"tiny_methods_{name}.png" for name in names)}
    assert all(path.read_bytes().startswith(PNG) and f"figures/{path.name}" in text for path in pictures)
    # A second report changes what it draws, and nothing else on the page.
    report.report([grid], page.parent)
    assert page.read_text("utf-8") == text


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path), "--out", str(tmp_path / "docs")]) == 2
    assert "holds neither" in capsys.readouterr().err and not (tmp_path / "docs").exists()
