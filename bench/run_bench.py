"""A benchmark from checked arguments to its tables: load, make the methods, ask, write, summarise."""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

import kangaroo_jax
from bench.answers import Answer
from bench.benchmark_record import new_record
from bench.differences import PLAIN, Answers, difference
from bench.fit import FITTED, fitted_rows, spare
from bench.folder import RESULTS, TABLES, WRITING, Folder, answer_settings
from bench.interleave import WARM_UPS, Protocol
from bench.methods import METHODS, Ready, chosen
from bench.prepare import prepare
from bench.question_set import Question, prompt_of, read_questions, select
from bench.result_tables import tables
from bench.settings import Rows, make_all, parse_settings
from bench.split import measure_parts, time_split
from bench.summary import rate, summarise
from kangaroo_jax.files import whole_file, write_json
from kangaroo_jax.progress import progress
from workshop.places import claimed


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Run a benchmark; returns the exit status: 0, or 1 if float32 ids differed from plain decoding's.

    Raises:
        ValueError: if something asked for cannot be run; before anything is run.
    """
    asked = chosen([name.strip() for name in args.methods.split(",") if name.strip()])
    names = [name for name in METHODS if name in (PLAIN, *asked)]
    settings = parse_settings(args.set, names)
    all_questions = read_questions(args.questions)
    questions = select(
        all_questions,
        begin=args.question_begin,
        end=args.question_end,
        per_category=args.per_category,
        per_task=args.per_task,
        tasks=[task.strip() for task in args.tasks.split(",")] if args.tasks else None,
    )
    params = kangaroo_jax.load(args.model, adapter=args.adapter, exit_layer=args.exit_layer, dtype=args.dtype)
    questions = fitting(params, questions, args.skip_long)
    if args.prepare:
        given = {name for name, changed in settings.items() if changed.keys() & {"draft_model", "directory"}}
        prepare([name for name in names if name not in given], args.model)
    rows: Rows = {name: (name, settings.get(name, {})) for name in names}
    methods = make_all(rows, params)
    with claimed(args.out, WRITING):
        if args.fitted:
            to_fit_on = fitting(params, spare(all_questions, questions), True)
            methods = make_all(fitted_rows(args.out / FITTED, params, names, settings, to_fit_on), params)
        record = new_record(
            params,
            methods,
            args.questions,
            max_new_tokens=args.max_new_tokens,
            repeats=args.repeats,
            command=command,
        )
        folder = Folder(args.out, record | {"began": now(), "ended": None}, args.force)
        measure(folder, params, methods, questions, args)
        if not folder.record["costs"] and not args.no_split:
            split(folder, params, methods, questions)
        return conclude(folder)


def fitting(params: kangaroo_jax.Params, questions: list[Question], skip: bool) -> list[Question]:
    """Return the questions whose first turn fits the model's context.

    Raises:
        ValueError: if one does not and is not to be left out, or none does.
    """
    kept: list[Question] = []
    problems: list[ValueError] = []
    for question in questions:
        try:
            prompt_of(params, question, [])
            kept.append(question)
        except ValueError as error:
            problems.append(error)
    if problems and not (skip and kept):
        raise ValueError(f"{problems[0]} ({len(problems)} of {len(questions)} questions; --skip-long leaves them out)")
    return kept


def measure(
    folder: Folder,
    params: kangaroo_jax.Params,
    methods: Mapping[str, Ready],
    questions: list[Question],
    args: argparse.Namespace,
) -> None:
    """Ask all questions that the folder has no answers to, and write these as they come."""
    done, record = folder.done, folder.record
    todo = [place for place, question in enumerate(questions) if question.question_id not in done]
    if not todo:
        return
    protocol = Protocol(
        params,
        methods,
        {name: answer_settings(record, name) for name in methods},
        {name: record["methods"][name]["model_id"] for name in methods},
        args.max_new_tokens,
        args.repeats,
        record["compile_seconds"],
    )
    with progress(total=len(methods) * WARM_UPS, desc="warming up", unit="run", leave=False) as bar:
        protocol.warm_up(questions[0], bar.update)
    per_question = len(methods) * args.repeats
    speeds: dict[str, list[float]] = {name: [rate(a) for a in found] for name, found in folder.answers().items()}
    total = len(questions) * per_question
    try:
        with progress(total=total, initial=total - len(todo) * per_question, unit="answer") as bar:
            for place in todo:
                answers: dict[tuple[str, int], Answer] = {}
                for name, answer in protocol.ask(questions[place], place):
                    answers[name, answer.run] = answer
                    speeds[name].append(rate(answer))
                    bar.set_description(f"{name}, question {answer.question_id}", refresh=False)
                    bar.set_postfix_str(so_far(speeds), refresh=False)
                    bar.update()
                folder.add(answers)
                said, answered = len(questions[place].turns), len(answers[PLAIN, 1].turns)
                if answered < said:
                    tqdm.write(
                        f"question {questions[place].question_id}: {said - answered} of {said} turns left out, "
                        "they do not fit the model's context",
                        file=sys.stderr,
                    )
                if record["identity"]["dtype"] == "float32":
                    report(answers)
    finally:  # Also of a run that is interrupted.
        folder.save()


def so_far(speeds: Mapping[str, Sequence[float]]) -> str:
    """Return the methods' speeds so far."""
    known = {name: statistics.median(found) for name, found in speeds.items() if found}
    return ", ".join(f"{name} {value:.4g}" for name, value in known.items()) + " tokens/s"


def report(answers: Mapping[tuple[str, int], Answer]) -> None:
    """Say at once where answers to a question differ from plain decoding's."""
    for (name, _), answer in answers.items():
        if found := difference(name, answer, answers[PLAIN, 1]):
            tqdm.write(f"NOT LOSSLESS: {found}", file=sys.stderr)


def split(
    folder: Folder, params: kangaroo_jax.Params, methods: Mapping[str, Ready], questions: Sequence[Question]
) -> None:
    """Measure what the parts of the methods' rounds cost, and note it in the record."""
    with progress(total=len(methods), desc="costs of parts", unit="method", leave=False) as bar:
        folder.record["costs"] = measure_parts(methods, prompt_of(params, questions[0], []), tick=bar.update)
    folder.save()


def results_of(answers: Answers, costs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what ``results.json`` holds: ``bench.summary.summarise`` with ``seconds`` by part (``bench.split``)."""
    results = summarise(answers)
    for task, table in [(None, results["overall"]), *results["tasks"].items()]:
        plain = [answer for answer in answers[PLAIN] if task in (None, answer.task)]
        for name, found in table.items():
            mine = [answer for answer in answers[name] if task in (None, answer.task)]
            found["seconds"] = time_split(mine, plain, (costs or {}).get(name))
    return results


def conclude(folder: Folder) -> int:
    """Write and print results; returns the exit status."""
    for file in folder.files.values():
        file.sort()
    folder.record["ended"] = now()
    folder.save()
    results = results_of(folder.answers(), folder.record["costs"])
    write_json(folder.path / RESULTS, results)
    text = tables(folder.record, results)
    with whole_file(folder.path / TABLES) as staged:
        staged.write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {folder.path}")
    if not (found := results["differences"]):
        return 0
    if folder.record["identity"]["dtype"] != "float32":
        print(
            f"{len(found)} of {results['compared']} answers differ from plain decoding's, as rounding of narrow "
            "dtypes can have it; kangaroo_jax.verify_lossless tells ties from mistakes",
            file=sys.stderr,
        )
        return 0
    for each in found:
        print(f"NOT LOSSLESS: {each}", file=sys.stderr)
    return 1


def now() -> str:
    """Return the time, as a record has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
