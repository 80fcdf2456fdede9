"""The protocol: warm-ups, then for every question all methods one after the other, as many times as there are runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import kangaroo_jax
from bench.answers import Answer, Turn
from bench.methods import Ready
from bench.question_set import Question, prompt_of

WARM_UPS = 3


@dataclasses.dataclass
class Protocol:
    """How questions are asked.

    Attributes:
        params: the model.
        methods: all methods by name, on that model.
        settings: what each method's answers depend on, for its answer file.
        model_ids: what each method's answer file calls it.
        max_new_tokens: token budget of a turn.
        repeats: runs.
        compile_seconds: seconds each method has spent compiling; not in any wall time.
    """

    params: kangaroo_jax.Params
    methods: Mapping[str, Ready]
    settings: Mapping[str, Mapping[str, Any]]
    model_ids: Mapping[str, str]
    max_new_tokens: int
    repeats: int
    compile_seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def warm_up(self, question: Question, tick: Callable[[], Any] = lambda: None) -> None:
        """Run every method on a question's first turn, ``WARM_UPS`` times, unmeasured."""
        prompt = prompt_of(self.params, question, [])
        for name in self.methods:
            for _ in range(WARM_UPS):
                self._generate(name, prompt)
                tick()

    def ask(self, question: Question, place: int) -> Iterator[tuple[str, Answer]]:
        """Yield the methods' names and answers to a question: run by run, and within a run method by method.

        Args:
            question: the question.
            place: its place among the questions, which decides who begins.
        """
        for run in range(1, self.repeats + 1):
            for name in order(list(self.methods), place + run - 1):
                turns = self._turns(name, question)
                yield name, Answer.to(question, self.model_ids[name], run, turns, self.settings[name])

    def _turns(self, name: str, question: Question) -> list[Turn]:
        """Answer a question; later turns go on from the method's own answers, while they fit the model's context."""
        turns: list[Turn] = []
        for place in range(len(question.turns)):
            try:
                prompt = prompt_of(self.params, question, [turn.text for turn in turns])
            except ValueError:
                if place == 0:
                    raise
                break
            confident = self.methods[name].spec.drafter.confident
            turns.append(Turn.of(self._generate(name, prompt), confident=confident))
        return turns

    def _generate(self, name: str, prompt: Sequence[int]) -> kangaroo_jax.Generation:
        """Continue a prompt. A program's first run may do more than the others: then it is run once more."""
        ready = self.methods[name]
        out = ready.generate(prompt, self.max_new_tokens)
        if spent := out.stats.compile_seconds:
            self.compile_seconds[name] = self.compile_seconds.get(name, 0.0) + spent
            out = ready.generate(prompt, self.max_new_tokens)
        return out


def order(names: Sequence[str], turn: int) -> list[str]:
    """Return the methods in the order of a turn: each begins equally often, so that drift favours none.

    ::

        a b c    turn 0: a b c    turn 1: b c a    turn 2: c a b
    """
    start = turn % len(names)
    return [*names[start:], *names[:start]]
