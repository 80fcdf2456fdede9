"""Figures of a benchmark, from its answers alone: speed, speedup, compression rate, CTAR, acceptance, differences.

``summarise`` returns what ``results.json`` holds::

    {"tasks": {task: {method: figures}}, "overall": {method: figures},
     "repetitive_questions": [ids], "differences": [what is not plain's], "compared": answers compared}

and ``figures`` are, of one method on one task or on all of them:

* ``questions``, ``runs``, ``new_tokens`` (of one run, the median)
* ``tokens_per_second``: tokens of all questions over the sum of their median wall times
* ``speedup``: median over questions of the median over runs of the ratio to plain in the same run (neighbours in
  time); ``speedup_interval``: its 95 % bootstrap interval over questions; ``speedups``: the ratio of each question
* ``speedup_without_repetition``: the same without questions whose plain answer repeats one pattern
* ``harness_speedup`` {mean, std over runs; None of one}: mean over questions of tokens/s over the same of plain, as
  Spec-Bench's ``speed.py`` has it; ``harness_tokens_per_second``: the mean alone
* ``compression_rate``: mean tokens committed in a verify round; ``compression_rate_with_prefill``: the same if each
  prefill counts as a round of one token, as in the authors' files
* ``ctar``: share of rounds that committed more than w tokens, w = 1..gamma
* ``acceptance_rate``, ``acceptance_by_position`` (w = 1..gamma), ``drafted_per_round``, ``accept_length_counts``

Rates are None where there is nothing to divide by. All runs count, but for ``new_tokens``.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bench.answers import Answer, Turn
from bench.differences import PLAIN, Answers, differences
from bench.question_set import Question, tasks_of
from kangaroo_jax.proof import is_repetition

RESAMPLES = 10_000


def summarise(answers: Answers) -> dict[str, Any]:
    """Return the figures of all methods, per task and overall, and where a method's ids are not plain's."""
    plain = answers[PLAIN]
    repetitive = repetitive_questions(plain)
    tasks = tasks_of([Question(answer.question_id, answer.category, ()) for answer in plain])

    def table(task: str | None) -> dict[str, Any]:
        of_task = {name: [a for a in found if task in (None, a.task)] for name, found in answers.items()}
        return {name: figures(found, of_task[PLAIN], repetitive) for name, found in of_task.items()}

    return {
        "tasks": {task: table(task) for task in tasks},
        "overall": table(None),
        "repetitive_questions": sorted(repetitive),
        "differences": [dataclasses.asdict(difference) for difference in differences(answers)],
        "compared": sum(len(found) for found in answers.values()),
    }


def figures(
    answers: Sequence[Answer], plain: Sequence[Answer], repetitive: frozenset[int] = frozenset()
) -> dict[str, Any]:
    """Return one method's figures; the module's docstring explains them.

    Args:
        answers: of the method, of every run.
        plain: plain decoding's to the same questions in the same runs.
        repetitive: questions to leave out of ``speedup_without_repetition``.
    """
    ratios = speedups(answers, plain)
    fresh = [ratio for question, ratio in ratios.items() if question not in repetitive]
    runs = sorted({answer.run for answer in answers})
    return {
        "questions": len(ratios),
        "runs": len(runs),
        "new_tokens": int(statistics.median(sum(tokens(a) for a in answers if a.run == run) for run in runs)),
        "tokens_per_second": tokens_per_second(answers),
        "speedup": statistics.median(ratios.values()),
        "speedup_interval": bootstrap_interval(list(ratios.values())),
        "speedup_without_repetition": statistics.median(fresh) if fresh else None,
        "speedups": {str(question): ratio for question, ratio in sorted(ratios.items())},
        **harness_figures(answers, plain),
        **round_figures([turn for answer in answers for turn in answer.turns], int(answers[0].settings["gamma"])),
    }


def round_figures(turns: Sequence[Turn], gamma: int) -> dict[str, Any]:
    """Return what the rounds of some texts say: compression rate, CTAR, acceptance.

    A position w of a draft counts where at least w tokens were drafted; of a tree, where it has at least w candidates,
    and w is the depth.

    Args:
        turns: the texts.
        gamma: longest line that can be drafted.
    """
    lengths = [length for turn in turns for length in turn.accept_lengths]
    drafts = [
        pair for turn in turns for pair in zip(turn.draft_lengths, turn.accepted_drafts, strict=True) if pair[0] > 0
    ]
    by_position = [[accepted >= w for drafted, accepted in drafts if drafted >= w] for w in range(1, gamma + 1)]
    drafted = sum(count for count, _ in drafts)
    return {
        "rounds": len(lengths),
        "compression_rate": _ratio(sum(lengths), len(lengths)),
        "compression_rate_with_prefill": _ratio(sum(lengths) + len(turns), len(lengths) + len(turns)),
        "ctar": [_ratio(sum(length > w for length in lengths), len(lengths)) for w in range(1, gamma + 1)],
        "acceptance_rate": _ratio(sum(accepted for _, accepted in drafts), drafted),
        "acceptance_by_position": [_ratio(sum(found), len(found)) for found in by_position],
        "drafted_per_round": _ratio(drafted, len(lengths)),
        "accept_length_counts": {str(s): n for s, n in sorted(collections.Counter(lengths).items())},
    }


def speedups(answers: Sequence[Answer], plain: Sequence[Answer]) -> dict[int, float]:
    """Return, by question, the median over runs of tokens/s over plain's tokens/s in the same run."""
    base = {(answer.question_id, answer.run): rate(answer) for answer in plain}
    ratios: dict[int, list[float]] = collections.defaultdict(list)
    for answer in answers:
        ratios[answer.question_id].append(rate(answer) / base[answer.question_id, answer.run])
    return {question: statistics.median(found) for question, found in ratios.items()}


def harness_figures(answers: Sequence[Answer], plain: Sequence[Answer]) -> dict[str, Any]:
    """Return Spec-Bench's own figures: means over questions of tokens/s, EOS not counted, for each run."""

    def means(of: Sequence[Answer]) -> dict[int, float]:
        by_run: dict[int, list[float]] = collections.defaultdict(list)
        for answer in of:
            by_run[answer.run].append(sum(turn.text_tokens for turn in answer.turns) / seconds(answer))
        return {run: statistics.mean(found) for run, found in by_run.items()}

    mine, base = means(answers), means(plain)
    ratios = [mine[run] / base[run] for run in mine if base[run] > 0]
    spread = statistics.stdev(ratios) if len(ratios) > 1 else None
    return {
        "harness_tokens_per_second": statistics.mean(mine.values()),
        "harness_speedup": {"mean": statistics.mean(ratios), "std": spread} if ratios else None,
    }


def tokens_per_second(answers: Sequence[Answer]) -> float:
    """Return tokens over wall time, each question with its median over the runs."""
    times: dict[int, list[float]] = collections.defaultdict(list)
    counts: dict[int, list[int]] = collections.defaultdict(list)
    for answer in answers:
        times[answer.question_id].append(seconds(answer))
        counts[answer.question_id].append(tokens(answer))
    return sum(statistics.median(n) for n in counts.values()) / sum(statistics.median(t) for t in times.values())


def bootstrap_interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of the median, or None of fewer than two values."""
    if len(values) < 2:
        return None
    random = np.random.default_rng(0)
    drawn = random.choice(np.asarray(values), (RESAMPLES, len(values)))
    return np.quantile(np.median(drawn, axis=1), (0.025, 0.975)).tolist()


def confidences(answers: Iterable[Answer]) -> tuple[list[float], list[float]]:
    """Return the confidence of accepted and of rejected drafts, in one run's or several runs' answers.

    A round rejects one token at most; what it drafted behind that one was never judged. Only for drafts that are lines;
    what was looked up has confidence 1.
    """
    accepted: list[float] = []
    rejected: list[float] = []
    for turn in (turn for answer in answers for turn in answer.turns):
        for values, count in zip(turn.confidence, turn.accepted_drafts, strict=True):
            accepted += values[:count]
            rejected += values[count : count + 1]
    return accepted, rejected


def repetitive_questions(plain: Iterable[Answer]) -> frozenset[int]:
    """Return the questions of which plain decoding's answer, in some turn, goes on with one pattern."""
    return frozenset(a.question_id for a in plain if any(is_repetition(turn.token_ids) for turn in a.turns))


def tokens(answer: Answer) -> int:
    """Return the new tokens of all turns, EOS included."""
    return sum(len(turn.token_ids) for turn in answer.turns)


def seconds(answer: Answer) -> float:
    """Return the wall time of all turns."""
    return sum(turn.wall_time for turn in answer.turns)


def rate(answer: Answer) -> float:
    """Return new tokens over wall time, of all turns."""
    return tokens(answer) / seconds(answer)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
