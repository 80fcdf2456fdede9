"""Answers as Spec-Bench has them: a line for each question.

Of a line Spec-Bench's own tools (``evaluation/speed.py``, ``equal.py``) read the keys outside ``kangaroo_jax``::

    {"question_id", "category", "answer_id", "model_id", "tstamp",
     "choices": [{"index": 0, "turns": [text], "decoding_steps": [rounds], "new_tokens": [tokens of the text],
                  "wall_time": [seconds], "accept_lengths": [s_k of all turns, one flat list]}],
     "kangaroo_jax": {"task", "run", "settings", "turns": [what else is known of each turn]}}

``speed.py`` divides ``new_tokens`` by ``wall_time`` for a method, and for the baseline tokenises ``turns`` anew. So the
texts stand here as they were generated, white space too, and ``new_tokens`` leaves out EOS, which is no text: else a
method would be credited with one token more than plain decoding. ``accept_lengths`` holds verify rounds only, and its
mean is the compression rate; the prefill's token is in no round. (The authors' files count it as a round of 1 token,
which lowers the mean a little; Spec-Bench's files of EAGLE do not.)
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from bench.question_set import Question
from kangaroo_jax import Generation
from kangaroo_jax.files import first_line

EXTRA = "kangaroo_jax"
_CHOICE = ("text", "text_tokens", "wall_time", "accept_lengths")


@dataclasses.dataclass(frozen=True)
class Turn:
    """What is kept of the answer to one turn.

    Attributes:
        text: the new text, as it was generated.
        text_tokens: tokens of the text: the new tokens without EOS.
        wall_time: seconds, prefill included, tokenisation and compilation not.
        accept_lengths: tokens committed in each verify round (s_k); the prefill's token is apart.
        draft_lengths: tokens drafted in each round.
        accepted_drafts: drafted tokens of each round that the target accepted.
        confidence: confidence of each drafted token, by round, to six places; rounds of methods that have none are
            empty.
        prompt_tokens: tokens of the prompt.
        prefill_seconds: the prefill's share of ``wall_time``.
        finish_reason: ``"stop"`` or ``"length"``.
        token_ids: the new ids, EOS included; lossless methods give plain decoding's.
    """

    text: str
    text_tokens: int
    wall_time: float
    accept_lengths: tuple[int, ...]
    draft_lengths: tuple[int, ...]
    accepted_drafts: tuple[int, ...]
    confidence: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    prefill_seconds: float
    finish_reason: str
    token_ids: tuple[int, ...]

    @property
    def new_tokens(self) -> int:
        """Tokens generated, EOS included: the prefill's and those of the rounds."""
        return 1 + sum(self.accept_lengths)

    @classmethod
    def of(cls, generation: Generation, wall_time: float | None = None, confident: bool = True) -> Turn:
        """Return what is kept of a generation.

        Args:
            generation: from any method.
            wall_time: seconds on the caller's clock; default: those of prefill and rounds.
            confident: whether the method's confidences are worth keeping.
        """
        stats = generation.stats
        # The text of EOS is empty. A stopped text has one at its end, unless it was a stop string that ended it.
        ended = generation.finish_reason == "stop" and generation.token_texts[-1:] == ("",)
        return cls(
            text=generation.text,
            text_tokens=len(generation.token_ids) - ended,
            wall_time=stats.prefill_seconds + stats.decode_seconds if wall_time is None else wall_time,
            accept_lengths=stats.accept_lengths,
            draft_lengths=stats.draft_lengths,
            accepted_drafts=stats.accepted_drafts,
            confidence=tuple(
                tuple(round(float(value), 6) for value in values) if confident else () for values in stats.confidence
            ),
            prompt_tokens=stats.prompt_tokens,
            prefill_seconds=stats.prefill_seconds,
            finish_reason=generation.finish_reason,
            token_ids=tuple(map(int, generation.token_ids)),
        )


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer of one method to one question in one run.

    Attributes:
        question_id: the question's number.
        category: the question's.
        task: the task it is reported under.
        model_id: model, method and settings in a word, as the file is named.
        run: number of the run, from 1.
        turns: one for each turn of the question.
        settings: what the answer depends on, as JSON has it; the same in the whole file.
        answer_id: a random name.
        tstamp: seconds since 1970 at the end of the answer.
    """

    question_id: int
    category: str
    task: str
    model_id: str
    run: int
    turns: tuple[Turn, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    answer_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    tstamp: float = dataclasses.field(default_factory=time.time)

    @classmethod
    def to(
        cls, question: Question, model_id: str, run: int, turns: Sequence[Turn], settings: Mapping[str, Any]
    ) -> Answer:
        """Return a new answer to a question."""
        return cls(question.question_id, question.category, question.task, model_id, run, tuple(turns), settings)

    def to_json(self) -> str:
        """Return the line, without its end."""
        choice = {
            "index": 0,
            "turns": [turn.text for turn in self.turns],
            "decoding_steps": [len(turn.accept_lengths) for turn in self.turns],
            "new_tokens": [turn.text_tokens for turn in self.turns],
            "wall_time": [turn.wall_time for turn in self.turns],
            "accept_lengths": [length for turn in self.turns for length in turn.accept_lengths],
        }
        extra = [{k: v for k, v in dataclasses.asdict(turn).items() if k not in _CHOICE} for turn in self.turns]
        row = {
            "question_id": self.question_id,
            "category": self.category,
            "answer_id": self.answer_id,
            "model_id": self.model_id,
            "choices": [choice],
            "tstamp": self.tstamp,
            EXTRA: {"task": self.task, "run": self.run, "settings": dict(self.settings), "turns": extra},
        }
        return json.dumps(row, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Answer:
        """Return the answer of a line that ``to_json`` wrote.

        Raises:
            ValueError: if it is no such line.
        """
        try:
            row = json.loads(line)
            choice, extra = row["choices"][0], row[EXTRA]
            lengths, start, turns = choice["accept_lengths"], 0, []
            for place, fields in enumerate(extra["turns"]):
                rounds = choice["decoding_steps"][place]
                known = {"text": choice["turns"][place], "text_tokens": choice["new_tokens"][place]}
                known |= {"wall_time": choice["wall_time"][place], "accept_lengths": lengths[start : start + rounds]}
                turns.append(Turn(**{key: _as_tuples(value) for key, value in (known | fields).items()}))
                start += rounds
            names = ("question_id", "category", "answer_id", "model_id", "tstamp")
            return cls(
                **{name: row[name] for name in names},
                **{name: extra[name] for name in ("task", "run", "settings")},
                turns=tuple(turns),
            )
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"no answer of this benchmark ({type(error).__name__}: {first_line(error)})") from error


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
