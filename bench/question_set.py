"""Questions in Spec-Bench's format, the tasks that they belong to, and the prompts of their turns.

A line is ``{"question_id": 81, "category": "writing", "turns": ["...", "..."]}``; further keys are left alone.
Format and tasks: Xia et al., "Unlocking Efficiency in Large Language Model Inference" (arXiv 2401.07851),
github.com/hemingkx/Spec-Bench.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kangaroo_jax import Params
from kangaroo_jax.engine import prompt_ids

JOEY_QUESTIONS = Path(__file__).parent / "prompts" / "joey.jsonl"
MT_BENCH = frozenset(("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"))
SPEC_BENCH_TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")

_EXPECTED = '{"question_id": 1, "category": "qa", "turns": ["text"]}'


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        question_id: its number, unique in its file.
        category: what the file says.
        turns: what the user says, turn by turn.
    """

    question_id: int
    category: str
    turns: tuple[str, ...]

    @property
    def task(self) -> str:
        """The task that it is reported under."""
        return task_of(self.category)


def task_of(category: str) -> str:
    """Return the task of a category: MT-bench's eight are ``"mt_bench"``, every other one is its own."""
    return "mt_bench" if category in MT_BENCH else category


def tasks_of(questions: Sequence[Question]) -> list[str]:
    """Return the tasks that occur: Spec-Bench's in its order, then others as they come."""
    found = dict.fromkeys(question.task for question in questions)
    return [task for task in SPEC_BENCH_TASKS if task in found] + [t for t in found if t not in SPEC_BENCH_TASKS]


def read_questions(path: str | Path) -> list[Question]:
    """Read a file of questions, in its order.

    Raises:
        ValueError: in one line, if the file is missing, empty or not UTF-8, or a line is no such object or has the
            number of an earlier one.
    """
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise ValueError(f"cannot read questions from {path}: {error.strerror}; pass a file of JSON lines") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
    questions: list[Question] = []
    lines: dict[int, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        question = _question(f"{path}, line {number}", line)
        if (first := lines.setdefault(question.question_id, number)) != number:
            raise ValueError(
                f"{path}, line {number}: question_id {question.question_id} is line {first}'s; give each its own"
            )
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no questions; write one object like {_EXPECTED} per line")
    return questions


def select(
    questions: Sequence[Question],
    *,
    begin: int | None = None,
    end: int | None = None,
    per_category: int | None = None,
    per_task: int | None = None,
    tasks: Sequence[str] | None = None,
) -> list[Question]:
    """Return some of the questions, in their order.

    Args:
        questions: all of them.
        begin: place of the first one, from 0, as Spec-Bench's ``--question-begin``; default: the first.
        end: place behind the last one, as Spec-Bench's ``--question-end``; default: behind the last.
        per_category: of what is left, at most so many of each category, the first ones.
        per_task: of these, at most so many of each task, of its categories in turn.
        tasks: only questions of these tasks; or categories.

    Raises:
        ValueError: if a number is negative, a task is unknown, or nothing is left.
    """
    for name, value, least in (
        ("begin", begin, 0),
        ("end", end, 0),
        ("per_category", per_category, 1),
        ("per_task", per_task, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    known = {name for question in questions for name in (question.task, question.category)}
    if unknown := [task for task in tasks or () if task not in known]:
        raise ValueError(f"no question is of task {unknown[0]!r}; choose from {', '.join(tasks_of(questions))}")
    counts: collections.Counter[str] = collections.Counter()
    chosen: list[tuple[int, Question]] = []
    for question in questions[begin:end]:
        if tasks is not None and question.task not in tasks and question.category not in tasks:
            continue
        counts[question.category] += 1
        if per_category is None or counts[question.category] <= per_category:
            chosen.append((counts[question.category], question))
    if not chosen:
        raise ValueError(f"no question is left of {len(questions)}; begin is {begin}, end is {end}, tasks are {tasks}")
    of_task = collections.Counter[str]()
    kept = set()
    for _, question in sorted(chosen, key=lambda each: each[0]):
        of_task[question.task] += 1
        if per_task is None or of_task[question.task] <= per_task:
            kept.add(question.question_id)
    return [question for _, question in chosen if question.question_id in kept]


def prompt_of(params: Params, question: Question, answers: Sequence[str], chat: bool | None = None) -> list[int]:
    """Return the token ids of the prompt of a question's next turn.

    Args:
        params: the model.
        question: the question.
        answers: the texts that were generated in its earlier turns; turn ``len(answers)`` is the next.
        chat: whether turns and answers are messages, rendered by the model's chat template, the answers without white
            space around them, as Spec-Bench has them. If not, they are one text, each behind the other as it is.
            Default: ``params.chats``.

    Raises:
        ValueError: if there is no such turn, the model has no chat template, or the prompt does not fit its context;
            the message names the question.
    """
    if len(answers) >= len(question.turns):
        raise ValueError(
            f"question {question.question_id} has {len(question.turns)} turns and as many answers; none is left"
        )
    said = question.turns[: len(answers) + 1]
    prompt: Any
    if params.chats if chat is None else chat:
        prompt = [{"role": "user", "content": said[0]}]
        for answer, turn in zip(answers, said[1:], strict=True):
            prompt += [{"role": "assistant", "content": answer.strip()}, {"role": "user", "content": turn}]
    else:
        prompt = said[0] + "".join(answer + turn for answer, turn in zip(answers, said[1:], strict=True))
    try:
        return prompt_ids(params, prompt)[0][0]
    except ValueError as error:
        raise ValueError(f"question {question.question_id}, turn {len(answers) + 1}: {error}") from error


def _question(place: str, line: str) -> Question:
    """Return the question of a line; ``place`` is for messages."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error}); write an object like {_EXPECTED}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place} is a {type(row).__name__}; write an object like {_EXPECTED}")
    if missing := [key for key in ("question_id", "category", "turns") if key not in row]:
        raise ValueError(f"{place} lacks {' and '.join(missing)}; write an object like {_EXPECTED}")
    number, category, turns = row["question_id"], row["category"], row["turns"]
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{place}: question_id is {number!r:.60}; it must be a whole number")
    if not isinstance(category, str) or not category.strip():
        raise ValueError(f"{place}: category is {category!r:.60}; it must be a name")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{place}: turns is {turns!r:.60}; it must be a list of at least one text")
    for index, turn in enumerate(turns):
        if not isinstance(turn, str) or not turn.strip():
            raise ValueError(f"{place}: turns[{index}] is {turn!r:.60}; it must be text that is not empty")
    return Question(number, category, tuple(turns))
