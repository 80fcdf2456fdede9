"""Tables of a benchmark's results, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.split import PARTS

PART_NAMES = {"propose": "adapter + head"}


def tables(record: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return all tables: overall, speedup and compression rate per task, CTAR, acceptance, time, what was run.

    Args:
        record: what ``record.json`` holds.
        results: what ``results.json`` holds.
    """
    parts = [
        ("Overall", overall(record, results)),
        (
            "Speedup by task (median of paired ratios)",
            by_task(results, lambda found: _times(found["speedup"])),
        ),
        (
            "Compression rate by task (tokens per verify round)",
            by_task(results, lambda found: number(found["compression_rate"])),
        ),
        ("CTAR(w): share of rounds that commit more than w tokens", by_position(results, "ctar")),
        ("Acceptance by position of the drafted token", by_position(results, "acceptance_by_position")),
        ("Where the time goes (share of wall time)", time_table(results)),
    ]
    text = "\n\n".join(f"### {title}\n\n{table}" for title, table in parts if table)
    return f"{text}\n\n{recipe(record, results)}\n"


def overall(record: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return a line for each method over all questions."""
    head = (
        "method",
        "tokens/s",
        "speedup [95 %]",
        "without repetition",
        "harness",
        "CR",
        "CR with prefill",
        "drafted/round",
        "rows",
        "acceptance",
        "added parameters",
        "identical",
    )
    differing = {difference["method"] for difference in results["differences"]}
    lines = []
    for name, found in results["overall"].items():
        lines.append(
            (
                name,
                f"{found['tokens_per_second']:.{0 if found['tokens_per_second'] >= 100 else 1}f}",
                with_interval(found["speedup"], found["speedup_interval"]),
                _times(found["speedup_without_repetition"]),
                _spread(found["harness_speedup"]),
                number(found["compression_rate"]),
                number(found["compression_rate_with_prefill"]),
                number(found["drafted_per_round"]),
                str(record["methods"][name]["rows"]),
                share(found["acceptance_rate"]),
                f"{record['methods'][name]['added_parameters']:,}",
                "NO" if name in differing else "yes",
            )
        )
    return markdown(head, lines)


def by_task(results: Mapping[str, Any], cell: Any) -> str:
    """Return a line for each method with a column for each task, and overall."""
    tasks = results["tasks"]
    lines = [
        (name, *(cell(tasks[task][name]) for task in tasks), cell(found)) for name, found in results["overall"].items()
    ]
    return markdown(("method", *tasks, "overall"), lines)


def by_position(results: Mapping[str, Any], figure: str) -> str:
    """Return a line for each method that drafts, with a column for each place of a draft; "" if none does."""
    lines = {name: found[figure] for name, found in results["overall"].items() if found[figure]}
    longest = max(map(len, lines.values()), default=0)
    cells = [(name, *map(share, values), *[""] * (longest - len(values))) for name, values in lines.items()]
    return markdown(("method", *map(str, range(1, longest + 1))), cells) if lines else ""


def time_table(results: Mapping[str, Any]) -> str:
    """Return the share of each part of the time; "" if nothing was measured."""
    lines = []
    for name, found in results["overall"].items():
        if split := found.get("seconds"):
            whole = sum(split.values())
            lines.append((name, *(share(split[part] / whole) if split[part] else "-" for part in PARTS)))
    return markdown(("method", *(PART_NAMES.get(part, part) for part in PARTS)), lines) if lines else ""


def recipe(record: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return how the numbers came about, and what they mean."""
    figures = next(iter(results["overall"].values()))
    repetitive = len(results["repetitive_questions"])
    differing = len(results["differences"])
    lossless = f"{results['compared']} answers compared with plain decoding's, {differing} differ"
    return "\n".join(
        (
            made_by(record, figures["questions"]),
            "* wall time includes the prefill, not tokenisation and compilation; speedup: median over questions of the "
            "median over runs of the ratio to plain in the same run, with its bootstrap interval",
            "* harness: mean over questions of tokens/s over the same of plain, as Spec-Bench's speed.py has it; mean "
            "and standard deviation over runs",
            f"* without repetition: without the {repetitive} questions whose answer repeats one pattern",
            "* CR counts verify rounds; CR with prefill counts each prefill as a round of one token, too",
            f"* {lossless}",
            *(f"* {name}: {_settings(method)}" for name, method in record["methods"].items()),
        )
    )


def made_by(record: Mapping[str, Any], questions: int) -> str:
    """Return command, model, machine, versions, commits and questions of a record, as a Markdown list."""
    identity = record["identity"]
    versions = ", ".join(f"{name} {version}" for name, version in identity["versions"].items())
    return "\n".join(
        (
            f"* `{record['command']}`",
            f"* {identity['model']}, {identity['dtype']}, {identity['device']}, {record['cores']} cores; {versions}"
            + "".join(f"; commit {commit}" for commit in record["commits"]),
            f"* {questions} questions of `{identity['questions']}` (SHA-256 {identity['questions_sha256'][:16]}), "
            f"{identity['max_new_tokens']} new tokens at most, greedy, batch 1, {identity['repeats']} runs after "
            f"{identity['warm_ups']} warm-ups, in turn on each question",
        )
    )


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned in the source, too; all but the first to the right."""
    rows = [tuple(head), *map(tuple, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def number(value: float | None) -> str:
    """Return a number with two digits; "-" for None."""
    return "-" if value is None else f"{value:.2f}"


def share(value: float | None) -> str:
    """Return a share in per cent; "-" for None."""
    return "-" if value is None else f"{value:.1%}"


def with_interval(speedup: float, interval: Sequence[float] | None) -> str:
    """Return a speedup with its interval; a single question gives none."""
    return f"{speedup:.2f}x" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _settings(method: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in method["settings"].items())
    return "; ".join(text for text in (method["about"], settings, method["source"]) if text)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _spread(value: Mapping[str, float | None] | None) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.2f}x" + (f" ± {value['std']:.2f}" if value["std"] is not None else "")
