"""Questions for the tiny model, and the command that asks them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

ROWS = [
    {"question_id": 81, "category": "writing", "turns": ["import os", "import re"]},
    {"question_id": 90, "category": "qa", "turns": ["def f(x):"]},
    {"question_id": 91, "category": "qa", "turns": ["for i in"]},
    {"question_id": 95, "category": "docstring", "turns": ['"""Return']},
]


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


@pytest.fixture(scope="session")
def arguments() -> Callable[..., list[str]]:
    """Return the words of ``bench.spec_bench`` for a model, a file of questions, a folder, and what is added."""

    def words(model: Path, questions: Path, out: Path, *more: str) -> list[str]:
        where = ["--model", str(model), "--questions", str(questions), "--out", str(out)]
        what = ["--methods", "kangaroo-fixed,kangaroo", "--max-new-tokens", "8", "--repeats", "2", "--no-split"]
        return [*where, *what, "--dtype", "float32", *more]

    return words
