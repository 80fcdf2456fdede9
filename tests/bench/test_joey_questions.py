"""The questions that are shipped for joey: as many as they should be, all different, and none from a training file."""

from __future__ import annotations

import collections
import json
import re

from bench.question_set import JOEY_QUESTIONS, read_questions, tasks_of
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import read_config, resolve
from train.passages import KINDS, LONGEST, SHORTEST
from train.questions import runs
from workshop.held_out import is_held_out

ROWS = [json.loads(line) for line in JOEY_QUESTIONS.read_text("utf-8").splitlines()]


def prompts(category: str) -> list[str]:
    return [row["turns"][0] for row in ROWS if row["category"] == category]


def test_twenty_of_each_kind() -> None:
    questions = read_questions(JOEY_QUESTIONS)
    assert [question.question_id for question in questions] == list(range(1, 121))
    assert collections.Counter(question.category for question in questions) == dict.fromkeys(KINDS, 20)
    assert tasks_of(questions) == list(KINDS)
    assert all(set(row) == {"question_id", "category", "turns", "source"} for row in ROWS)


def test_they_are_short_and_leave_joey_room_for_an_answer() -> None:
    config: LlamaConfig = read_config(resolve("joey"))
    for question in read_questions(JOEY_QUESTIONS):
        [prompt] = question.turns
        assert SHORTEST <= len(prompt) <= LONGEST
        assert 1 + len(prompt.encode()) + 512 <= config.max_position_embeddings


def test_none_is_from_a_file_that_joey_was_trained_on() -> None:
    for row in ROWS:
        name, line = row["source"].rsplit(":", 1)
        assert is_held_out(name) and int(line) >= 1, row["source"]
    assert not is_held_out("ast.py")


def test_no_two_share_text() -> None:
    seen: dict[str, int] = {}
    for row in ROWS:
        for run in runs(row["turns"][0].rpartition("\n")[0]):
            assert seen.setdefault(run, row["question_id"]) == row["question_id"]
    every = [row["turns"][0] for row in ROWS]
    assert not [(a, b) for a in every for b in every if a is not b and a in b]


def test_no_two_overlap() -> None:
    places: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    for row in ROWS:
        name, line = row["source"].rsplit(":", 1)
        places[name].append((int(line), row["turns"][0].count("\n")))
    for name, spans in places.items():
        for (first, lines), (second, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
            assert first + lines < second, name


def test_each_is_of_its_kind() -> None:
    definition = re.compile(r"\s*(@.*\n\s*)*(async )?(def|class) ")
    for prompt in prompts("function"):
        assert definition.match(prompt)
    for prompt in prompts("class"):
        assert re.match(r"\s*(@.*\n\s*)*class ", prompt)
    for prompt in prompts("test"):
        assert re.match(r"\s*(@.*\n\s*)*(async )?def test", prompt)
    for prompt in prompts("docstring"):
        quotes = max(('"""', "'''"), key=prompt.count)
        assert prompt.count(quotes) == 1 and (definition.match(prompt) or prompt.index(quotes) <= 1)
    for prompt in prompts("table"):
        for row in prompt.split("\n")[:-1]:
            assert re.fullmatch(r"[\w\s,:()\[\]{}=-]*", re.sub(r"b?'[^']*'|\"[^\"]*\"|#.*", "", row)), row
            assert re.search(r"['\"\d]", row), row
    for prompt in prompts("repeat"):
        assert prompt[-48:] in prompt[:-1]
