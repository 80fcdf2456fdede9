"""``python -m train.invent``: questions that the target draws itself, and what ``train.regenerate`` makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kangaroo_jax
import train.invent
import train.regenerate
from kangaroo_jax.text.chat_template import VICUNA_TEMPLATE
from train.invent import main, opening
from train.reply_rows import read_rows
from workshop.journal import Journal


@pytest.fixture(scope="module")
def model(ending_model: Path) -> kangaroo_jax.Params:
    return kangaroo_jax.load(ending_model)


def draw(model: Path, out: Path, *more: str) -> list[Any]:
    assert main(["--model", str(model), "--max-new-tokens", "40", "--out", str(out), *more]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_an_opening_is_what_stands_before_the_users_words(model: kangaroo_jax.Params) -> None:
    before, behind = opening(model.tokenizer, model.name)
    assert before == model.tokenizer.encode("User: ")
    assert model.tokenizer.decode(behind) == "\nAssistant: "


def test_questions_are_a_function_of_seed_and_row(ending_model: Path, tmp_path: Path) -> None:
    first = draw(ending_model, tmp_path / "1.jsonl", "--rows", "30", "--batch-size", "8")
    other = draw(ending_model, tmp_path / "2.jsonl", "--rows", "30", "--batch-size", "3")
    more = draw(ending_model, tmp_path / "3.jsonl", "--rows", "40")
    assert first == other == more[: len(first)] and len(first) > 3
    asked = [row["messages"][0]["content"] for row in first]
    assert len({*asked}) == len(asked) and all(text == text.strip() != "" for text in asked)
    seeded = draw(ending_model, tmp_path / "4.jsonl", "--rows", "30", "--seed", "1")
    assert len({row["messages"][0]["content"] for row in seeded} & {*asked}) < 3


def test_regenerate_answers_them(ending_model: Path, tmp_path: Path) -> None:
    rows = draw(ending_model, tmp_path / "asked.jsonl", "--rows", "20")
    assert len(read_rows([str(tmp_path / "asked.jsonl")], None)[0]) == len(rows)
    out = tmp_path / "own.jsonl"
    command = ["--model", str(ending_model), "--data", str(tmp_path / "asked.jsonl"), "--out", str(out)]
    assert train.regenerate.main([*command, "--max-new-tokens", "7"]) == 0
    answered = [json.loads(line)["messages"] for line in out.read_text().splitlines()]
    assert answered and all(train.invent.NO_REPLY not in messages[1]["content"] for messages in answered)
    assert {messages[0]["content"] for messages in answered} <= {row["messages"][0]["content"] for row in rows}


def test_a_stopped_run_goes_on_to_the_same_rows(
    ending_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = draw(ending_model, tmp_path / "whole.jsonl", "--rows", "20", "--batch-size", "4")
    real = Journal.add

    def add(self: Journal, record: Any) -> None:
        real(self, record)
        if len(self.path.read_bytes().splitlines()) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add)
    command = ["--model", str(ending_model), "--max-new-tokens", "40", "--rows", "20", "--batch-size", "4"]
    assert main([*command, "--out", str(tmp_path / "out.jsonl")]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert draw(ending_model, tmp_path / "out.jsonl", "--rows", "20", "--batch-size", "4") == whole


def test_what_cannot_be_is_refused(refusal: Callable[..., str], ending_model: Path, tmp_path: Path) -> None:
    command = ["--model", str(ending_model), "--out", str(tmp_path / "x.jsonl")]
    assert "--rows is 0" in refusal(main, [*command, "--rows", "0"])
    assert "--top-p is 2" in refusal(main, [*command, "--top-p", "2"])
    assert "does not end in .jsonl" in refusal(main, [*command[:2], "--out", "x.txt"])
    assert "ended none of 2 questions in 1 tokens" in refusal(main, [*command, "--rows", "2", "--max-new-tokens", "1"])


@pytest.mark.parametrize(("template", "before", "behind"), [(VICUNA_TEMPLATE, " USER: ", " ASSISTANT:")])
def test_any_template_has_an_opening(model: kangaroo_jax.Params, template: str, before: str, behind: str) -> None:
    model.tokenizer.chat_template, own = template, model.tokenizer.chat_template
    try:
        found = opening(model.tokenizer, "x")
    finally:
        model.tokenizer.chat_template = own
    texts = [model.tokenizer.decode(ids) for ids in found]
    assert texts[0].endswith(before) and texts[1] == behind
