"""Questions in Spec-Bench's format: reading, choosing, and the prompts of turns."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest

import kangaroo_jax
from bench.question_set import Question, prompt_of, read_questions, select, task_of, tasks_of
from kangaroo_jax.text import chat_ids

GOOD = {"question_id": 7, "category": "qa", "turns": ["What?"], "reference": ["42"]}
MIXED = [
    Question(number, category, (f"turn {number}",))
    for number, category in enumerate(("table", "writing", "qa", "math", "qa", "qa", "writing", "docstring"), 81)
]


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def test_a_file_is_read_in_its_order(tmp_path: Path) -> None:
    second = {"question_id": 3, "category": "coding", "turns": ["Zähle\nbis drei.", "Weiter."], "source": "x"}
    assert read_questions(written(tmp_path / "q.jsonl", GOOD, "", second)) == [
        Question(7, "qa", ("What?",)),
        Question(3, "coding", ("Zähle\nbis drei.", "Weiter.")),
    ]


def test_mt_bench_is_one_task_and_other_categories_are_their_own() -> None:
    eight = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
    assert {task_of(category) for category in eight} == {"mt_bench"}
    for category in ("translation", "summarization", "qa", "math_reasoning", "rag", "docstring"):
        assert task_of(category) == category
    assert tasks_of(MIXED) == ["mt_bench", "qa", "table", "docstring"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is a list"),
        ('{"question_id": 1, "turns": ["a"]}', "line 2 lacks category"),
        ("{}", "lacks question_id and category and turns"),
        ({**GOOD, "question_id": "8"}, "question_id is '8'"),
        ({**GOOD, "question_id": True}, "question_id is True"),
        ({**GOOD, "question_id": 8, "category": 5}, "category is 5"),
        ({**GOOD, "question_id": 8, "turns": "What?"}, "turns is 'What?'"),
        ({**GOOD, "question_id": 8, "turns": []}, "turns is []"),
        ({**GOOD, "question_id": 8, "turns": ["a", " "]}, "turns[1] is ' '"),
        ({**GOOD, "question_id": 8, "turns": [None]}, "turns[0] is None"),
        (GOOD, "question_id 7 is line 1's"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, part: str) -> None:
    with pytest.raises(ValueError) as error:
        read_questions(written(tmp_path / "q.jsonl", GOOD, line))
    message = str(error.value)
    assert part in message and "q.jsonl, line 2" in message and "\n" not in message


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    for path, content, part in (
        (tmp_path / "missing.jsonl", None, "No such file"),
        (tmp_path, None, "Is a directory"),
        (tmp_path / "latin.jsonl", "Zähle".encode("latin-1"), "is not UTF-8"),
        (tmp_path / "empty.jsonl", b"\n\n", "holds no questions"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=part) as error:
            read_questions(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_some_of_the_questions() -> None:
    def ids(**options) -> list[int]:
        return [question.question_id for question in select(MIXED, **options)]

    assert ids() == list(range(81, 89))
    assert ids(begin=2, end=6) == [83, 84, 85, 86]
    assert ids(per_category=1) == [81, 82, 83, 84, 88]
    assert ids(per_task=2) == [81, 82, 83, 84, 85, 88] and ids(per_task=1, tasks=["mt_bench"]) == [82]
    assert ids(begin=3, per_category=2, tasks=["qa"]) == [85, 86]
    assert ids(tasks=["mt_bench"]) == [82, 84, 87]
    assert ids(tasks=["math", "table"]) == [81, 84]
    for options, part in (
        ({"begin": -1}, "begin is -1"),
        ({"per_category": 0}, "per_category is 0"),
        ({"tasks": ["rag"]}, "no question is of task 'rag'; choose from mt_bench, qa, table, docstring"),
        ({"begin": 9}, "no question is left of 8"),
    ):
        with pytest.raises(ValueError, match=part):
            select(MIXED, **options)


QUESTION = Question(5, "coding", ("def f(x):\n", "\ndef g(x):\n", "\ndef h(x):\n"))


def test_turns_of_a_base_model_are_one_text(tiny: kangaroo_jax.Params) -> None:
    encode = tiny.tokenizer.encode
    assert prompt_of(tiny, QUESTION, [], chat=False) == encode("def f(x):\n")
    answers = ["    return x\n", "    return 2 "]
    text = "def f(x):\n    return x\n\ndef g(x):\n    return 2 \ndef h(x):\n"
    assert prompt_of(tiny, QUESTION, answers, chat=False) == encode(text)
    with pytest.raises(ValueError, match="question 5 has 3 turns"):
        prompt_of(tiny, QUESTION, ["", "", ""])


def test_turns_of_a_chat_model_are_messages(tiny: kangaroo_jax.Params) -> None:
    named = tiny.replace(name="vicuna-test")
    messages = [
        {"role": "user", "content": "def f(x):\n"},
        {"role": "assistant", "content": "return x"},
        {"role": "user", "content": "\ndef g(x):\n"},
    ]
    assert prompt_of(named, QUESTION, ["  return x\n"], chat=True) == chat_ids(named.tokenizer, named.name, messages)


def test_turns_are_what_the_models_template_says(tiny: kangaroo_jax.Params) -> None:
    assert tiny.tokenizer.chat_template is not None and not tiny.chats  # joey's: an answer does not end.
    assert prompt_of(tiny, QUESTION, []) == tiny.tokenizer.encode("def f(x):\n")
    talks = dataclasses.replace(tiny, tokenizer=copy.copy(tiny.tokenizer))
    talks.tokenizer.chat_template = "{% for said in messages %}{{ said['content'] }}{{ eos_token }}{% endfor %}"
    assert talks.chats
    assert prompt_of(talks, QUESTION, []) == prompt_of(talks, QUESTION, [], chat=True)


def test_a_prompt_that_does_not_fit_is_named(tiny: kangaroo_jax.Params) -> None:
    with pytest.raises(ValueError, match=r"question 9, turn 1: prompt has 151 tokens; .* takes at most 100"):
        prompt_of(tiny, Question(9, "qa", ("x" * 150,)), [], chat=False)
