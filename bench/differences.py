"""Where a method's answers are not plain decoding's: which question, and the first token that differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from bench.answers import Answer

PLAIN = "plain"
Answers = Mapping[str, Sequence[Answer]]
"""Answers of all runs, by method."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """An answer that is not plain decoding's.

    Attributes:
        method: whose it is.
        question_id: the question.
        task: its task.
        run: number of the run, from 1.
        turn: first turn that differs, from 1.
        position: first new token that differs, from 0.
        plain_token: plain decoding's token there; None if its text ends there.
        token: the method's.
    """

    method: str
    question_id: int
    task: str
    run: int
    turn: int
    position: int
    plain_token: int | None
    token: int | None

    def __str__(self) -> str:
        """Return it as a sentence."""
        mine, plain = ("the end" if token is None else f"token {token}" for token in (self.token, self.plain_token))
        where = f"question {self.question_id}, turn {self.turn}, run {self.run}"
        return f"{self.method} differs from plain: {where}, at new token {self.position}: {mine} for {plain}"


def differences(answers: Answers) -> list[Difference]:
    """Return every answer whose ids or ends are not those of plain decoding's first run, plain's later runs too."""
    first: dict[int, Answer] = {}
    for answer in sorted(answers[PLAIN], key=lambda answer: answer.run):
        first.setdefault(answer.question_id, answer)
    found = [difference(name, answer, first[answer.question_id]) for name, given in answers.items() for answer in given]
    return [each for each in found if each is not None]


def difference(method: str, answer: Answer, plain: Answer) -> Difference | None:
    """Return where an answer first differs from plain decoding's to the same question, or None.

    ::

        plain  a b c d     method  a b x     position 2: x for c
    """
    for place, (turn, base) in enumerate(zip(answer.turns, plain.turns, strict=False), 1):
        mine, theirs = turn.token_ids, base.token_ids
        if (mine, turn.finish_reason) == (theirs, base.finish_reason):
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(map(len, (mine, theirs)))
        )
        tokens_there = (ids[at] if at < len(ids) else None for ids in (theirs, mine))
        return Difference(method, answer.question_id, answer.task, answer.run, place, at, *tokens_there)
    return None
