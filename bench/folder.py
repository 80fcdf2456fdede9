"""A benchmark's folder: its record, its answers, and going on where a killed run stopped.

::

    OUT/record.json                                                   how the numbers came about
    OUT/spec_bench/model_answer_temp0_run_1/MODEL-METHOD.jsonl        Spec-Bench's answer files, one for each run
    OUT/results.json  OUT/results.md                                  figures and tables, made from these

``record.json`` holds ``identity`` (what the answers depend on: model, settings, versions, questions), ``methods`` (by
name: ``about``, ``source``, ``settings``, ``gamma``, ``exit_layer``, ``rows``, ``added_parameters``, ``model_id``),
``costs`` (by name: shares of a plain step, ``bench.split``), and the recipe: ``command``, ``commits``, ``began``,
``ended``, ``cores``, ``load_average``, ``compile_seconds``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.answer_file import AnswerFile, answer_path, read_answers
from bench.answers import Answer
from kangaroo_jax.files import held_interrupts, read_json, write_json

BENCH = "spec_bench"
GOES_ON = "the same command goes on from here"
WRITING = "writes answers in"
"""What a process does that claims a folder (``workshop.places.claimed``)."""

RECORD, RESULTS, TABLES = "record.json", "results.json", "results.md"
_FIX = "pass another --out, or begin anew with --force"
_AGAIN = "run python -m bench.spec_bench"
_IN_RECORD = ("identity", "methods", "costs", "command", "commits", "cores")
_OF_QUESTIONS = ("questions", "questions_sha256", "max_new_tokens", "repeats", "warm_ups")
IN_IDENTITY = ("model", "dtype", "device", "versions", *_OF_QUESTIONS)
"""What the identity in every record of a benchmark has, and tables show."""
_IN_METHOD = ("model_id", "about", "source", "settings", "rows", "added_parameters")


class Folder:
    """A folder to write answers into; only for one process at a time (``WRITING``).

    Attributes:
        path: the folder.
        record: what ``record.json`` holds.
        files: answer files by method and run.
    """

    def __init__(self, path: Path, record: dict[str, Any], force: bool = False) -> None:
        """Begin a folder, or go on with one.

        Questions that not all methods have answered in all runs are dropped: their answers were not made side by side.

        Args:
            path: the folder.
            record: what is to be in ``record.json``; what the folder's has of other runs stays.
            force: whether to remove what is there of other settings.

        Raises:
            ValueError: if it holds answers of another identity and is not to be emptied, or something is damaged.
        """
        self.path = path
        if force:
            clear(path)
        if (path / RECORD).exists():
            kept = read_json(path / RECORD, _FIX)
            check_identity(path, kept.get("identity", {}), record["identity"])
            commits = dict.fromkeys([*kept.get("commits", []), *record["commits"]])
            costs = {"costs": kept["costs"]} if kept.get("costs") else {}
            record = record | {name: kept[name] for name in ("began", "compile_seconds") if name in kept} | costs
            record["commits"] = list(commits)
        elif any((path / BENCH).glob("*/*.jsonl")):  # Folders without files: a kill came before the record's.
            raise ValueError(f"{path} has answers and no {RECORD}; {_FIX}")
        self.record = record
        runs = range(1, record["identity"]["repeats"] + 1)
        self.files = {
            (name, run): AnswerFile(answer_path(path, BENCH, method["model_id"], run), answer_settings(record, name))
            for name, method in record["methods"].items()
            for run in runs
        }
        done = self.done
        for file in self.files.values():
            file.keep(done)
        self.save()

    @property
    def done(self) -> set[int]:
        """Questions that all methods have answered in all runs."""
        return set.intersection(*(file.done for file in self.files.values()))

    def add(self, answers: Mapping[tuple[str, int], Answer]) -> None:
        """Write all answers to one question, of all methods and runs; Ctrl-C waits for it."""
        with held_interrupts():
            for key, answer in answers.items():
                self.files[key].add(answer)

    def answers(self) -> dict[str, list[Answer]]:
        """Return all answers, by method."""
        found: dict[str, list[Answer]] = {name: [] for name in self.record["methods"]}
        for (name, _), file in self.files.items():
            found[name] += file.answers
        return found

    def save(self) -> None:
        """Write the record."""
        write_json(self.path / RECORD, self.record)


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, list[Answer]]]:
    """Return the record of a folder, and the answers of all runs by method; nothing is changed.

    Answers to questions that not all methods have answered in all runs are left out: a run that is in progress, or was
    killed, has some.

    Raises:
        ValueError: if there is no record, something is damaged, or no question is answered by all.
    """
    record = read_record(path)
    found: dict[str, list[list[Answer]]] = {}
    for name, method in record["methods"].items():
        files = [answer_path(path, BENCH, method["model_id"], run + 1) for run in range(record["identity"]["repeats"])]
        found[name] = [read_answers(file) if file.exists() else [] for file in files]
    sets = [{answer.question_id for answer in answers} for runs in found.values() for answers in runs]
    done = set.intersection(*sets) if sets else set()
    if not done:
        raise ValueError(f"{path} has no complete answers yet; {_AGAIN}")
    return record, {
        name: [answer for answers in runs for answer in answers if answer.question_id in done]
        for name, runs in found.items()
    }


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a folder.

    Raises:
        ValueError: if there is none, or it lacks something that tables show.
    """
    file = path / RECORD
    record = read_json(file, f"{_AGAIN} first")
    check_fields(file, record, _IN_RECORD)
    check_fields(file, record["identity"], IN_IDENTITY)
    for method in record["methods"].values():
        check_fields(file, method, _IN_METHOD)
    return record


def check_fields(file: Path, found: Any, names: Iterable[str]) -> None:
    """Raise ValueError if an object in a JSON file of a benchmark lacks one of some fields."""
    for name in names:
        if not isinstance(found, Mapping) or name not in found:
            raise ValueError(f"{file} has no {name!r}; run the benchmark again")


def answer_settings(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what stands in each of a method's answers: its settings, and what all methods share."""
    identity, method = record["identity"], record["methods"][name]
    shared = {key: identity[key] for key in ("dtype", "max_new_tokens")}
    return {**method["settings"], "gamma": method["gamma"], **shared}


def check_identity(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError if answers of a folder depend on something else than those to come."""
    for name in dict.fromkeys([*wanted, *found]):
        old, new = found.get(name), wanted.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differing = [key for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key)]
            name, old, new = f"{name}: {differing[0]}", old.get(differing[0]), new.get(differing[0])
        raise ValueError(f"{path} holds answers with {name} {_shown(old)}, not {_shown(new)}; {_FIX}")


def clear(path: Path) -> None:
    """Remove what a benchmark has written in a folder, and nothing else."""
    shutil.rmtree(path / BENCH, ignore_errors=True)
    for name in (RECORD, RESULTS, TABLES):
        (path / name).unlink(missing_ok=True)


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value}"
