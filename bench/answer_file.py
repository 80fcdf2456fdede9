"""Answer files: one for each method and run, that grows line by line, survives a kill and is gone on with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bench.answers import Answer
from kangaroo_jax.files import whole_file
from workshop.journal import append_line, check_same, drop_cut_line, whole_lines


class AnswerFile:
    """An answer file that grows line by line and survives a kill.

    Attributes:
        path: the file.
        answers: what is in it, in its order.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin a file, or go on with one; a last line that a kill has cut is removed.

        Args:
            path: the file; its folders are made.
            settings: what the answers depend on, as JSON can hold it.

        Raises:
            ValueError: if the file is damaged, holds something else, or answers of other settings.
        """
        self.path = path
        self.answers = read_answers(path) if path.exists() else []
        self._settings = json.loads(json.dumps(settings))  # As they are read back: lists for tuples.
        for answer in self.answers:
            names = dict.fromkeys((*self._settings, *answer.settings))
            fix = "pass another --out, or delete it"
            check_same(f"{path} holds answers", answer.settings, self._settings, names, fix)
        drop_cut_line(path)
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def done(self) -> set[int]:
        """Numbers of the questions that are answered."""
        return {answer.question_id for answer in self.answers}

    def add(self, answer: Answer) -> None:
        """Write an answer; when this returns, it is on the disk.

        Raises:
            ValueError: if its question is answered already, or its settings are not the file's.
        """
        if answer.question_id in self.done:
            raise ValueError(f"{self.path} has an answer to question {answer.question_id}; leave it out")
        if json.loads(json.dumps(dict(answer.settings))) != self._settings:
            raise ValueError(f"the answer has settings {dict(answer.settings)}, not those of {self.path}")
        append_line(self.path, answer.to_json())
        self.answers.append(answer)

    def keep(self, questions: Collection[int]) -> None:
        """Drop the answers to all other questions."""
        kept = [answer for answer in self.answers if answer.question_id in questions]
        if len(kept) < len(self.answers):
            self._rewrite(kept)

    def sort(self) -> None:
        """Put the lines in the order of the questions' numbers, as Spec-Bench's ``equal.py`` needs them."""
        self._rewrite(sorted(self.answers, key=lambda answer: answer.question_id))

    def _rewrite(self, answers: list[Answer]) -> None:
        self.answers = answers
        with whole_file(self.path) as staged:
            staged.write_text("".join(answer.to_json() + "\n" for answer in self.answers), encoding="utf-8")


def read_answers(path: Path) -> list[Answer]:
    """Read an answer file; a last line that a kill has cut is left out.

    Raises:
        ValueError: in one line, if the file is missing or a whole line is no answer.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read answers from {path}: {error.strerror}; run the benchmark first") from None
    lines, cut = whole_lines(content)
    if cut[:1] not in (b"", b"{"):  # The line that a kill has cut begins as every other one.
        raise ValueError(f"{path} ends in something that is no answer; pass another --out, or delete it")
    answers = []
    for number, line in enumerate(lines, 1):
        try:
            answers.append(Answer.from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; pass another --out, or delete the file") from error
    return answers


def answer_path(folder: Path, bench: str, model_id: str, run: int, temperature: float = 0.0) -> Path:
    """Return where an answer file goes, named as Spec-Bench's mean over runs (``--mean-report``) looks for it.

    ``folder/spec_bench/model_answer_temp0_run_1/vicuna-7b-kangaroo.jsonl``
    """
    return folder / bench / f"model_answer_temp{temperature:g}_run_{run}" / f"{model_id}.jsonl"
