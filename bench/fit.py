"""Settings fitted to the machine, for methods whose published ones were chosen on another, on questions to spare.

``--fitted`` of ``bench.spec_bench`` gives every method with settings two rows: "NAME, published", and "NAME, fitted".
Of each task the last question that is not measured is asked; every candidate of ``Method.candidates``, and what was
published, decodes it in turn with plain decoding, and the fastest is taken. fitted.jsonl in the benchmark's folder
keeps what each gave: a run that was stopped goes on, and one that has ended is not fitted again. Kangaroo's are those
that ``tune`` has found for its adapter.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kangaroo_jax
from bench.methods import METHODS, make
from bench.question_set import Question, prompt_of
from bench.settings import Rows, Settings
from kangaroo_jax import decode as dec
from kangaroo_jax.engine import Kept
from kangaroo_jax.progress import progress
from workshop.journal import Journal

FITTED = "fitted.jsonl"
NEW_TOKENS = 48


def fitted_rows(
    path: Path, params: kangaroo_jax.Params, names: Sequence[str], settings: Settings, questions: Sequence[Question]
) -> Rows:
    """Return the rows of methods: those with settings stand twice.

    Args:
        path: the journal.
        params: the model.
        names: of methods.
        settings: changed settings by method; they hold in both rows.
        questions: to fit on.
    """
    identity = {
        "model": Path(params.name).name,
        "dtype": params.dtype.name,
        "kernels": params.kernels,
        "draft_weights": params.draft_weights,
        "questions": [question.question_id for question in questions],
        "settings": {name: dict(found) for name, found in settings.items()},
    }
    journal, rows = Journal(path, identity), dict[str, tuple[str, Mapping[str, Any]]]()
    tried = [(name, {**each, **settings.get(name, {})}) for name in names for each in _candidates(name)]
    measured = {(found["method"], str(found["settings"])) for found in journal.records}
    todo = [each for each in tried if (each[0], str(each[1])) not in measured]
    prompts = [prompt_of(params, question, []) for question in questions] if todo else []
    for name, candidate in progress(todo, desc="fitting", unit="setting", leave=False):
        record = {"method": name, "settings": candidate, "speedup": _speedup(params, name, candidate, prompts)}
        journal.add(record)
        journal.records.append(record)
    for name in names:
        given = settings.get(name, {})
        best = [found for found in journal.records if found["method"] == name]
        if not best and not METHODS[name].published:
            rows[name] = name, given
            continue
        rows[f"{name}, published"] = name, {**METHODS[name].published, **given}
        fastest = max(best, key=lambda found: found["speedup"])["settings"] if best else given
        rows[f"{name}, fitted"] = name, fastest
    return rows


def spare(questions: Sequence[Question], measured: Sequence[Question]) -> list[Question]:
    """Return the last question that is not measured of each task that is.

    Raises:
        ValueError: if there is none.
    """
    taken, tasks = {question.question_id for question in measured}, {question.task for question in measured}
    left = [one for one in questions if one.question_id not in taken and one.task in tasks]
    found = {question.task: question for question in left}
    if not found:
        raise ValueError("all questions are measured; leave some to fit settings on: lower --per-task")
    return list(found.values())


def _candidates(name: str) -> list[dict[str, Any]]:
    candidates = [dict(each) for each in METHODS[name].candidates]
    return [{}, *candidates] if candidates else []


def _speedup(
    params: kangaroo_jax.Params, name: str, settings: Mapping[str, Any], prompts: Sequence[Sequence[int]]
) -> float:
    """Return how many times faster than plain decoding a method decodes, the prefill apart: the median over prompts."""
    plain, ready = make("plain", params), make(name, params, settings)
    longest = max(map(len, prompts))
    kept = Kept(dec.cache_slots(ready.spec, longest + NEW_TOKENS), 1)  # One program for all prompts.
    kept.chunk = dec.prefill_chunk(longest, kept.slots, 1)

    def rate(ready: Any, prompt: Sequence[int]) -> float:
        stats = ready.generate(prompt, NEW_TOKENS, (), kept=dataclasses.replace(kept)).stats
        return (stats.new_tokens - 1) / stats.decode_seconds

    rate(plain, prompts[0]), rate(ready, prompts[0])
    return statistics.median(rate(ready, prompt) / rate(plain, prompt) for prompt in prompts)
