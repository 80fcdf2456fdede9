"""Draw questions in Spec-Bench's format from the held-out files of the standard library, so many of each kind.

    python -m train.questions --out bench/prompts/joey.jsonl

At random and by the rules of train/passages.py, without looking at them; bench/prompts/README.md tells the rules.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kangaroo_jax.files import whole_file
from kangaroo_jax.progress import progress
from train.passages import FOLLOWING, KINDS, Parsed, Passage
from train.prompts import end_within_line
from workshop.command import check_counts, exit_status
from workshop.held_out import SourceFile, split_sources, standard_library

RUN_CHARACTERS = 40


def draw_questions(
    held_out: Sequence[SourceFile], training: Sequence[SourceFile], count: int, seed: int
) -> list[dict[str, Any]]:
    """Return ``count`` questions of each kind, as Spec-Bench has them, with the place each is from (``file:line``).

    For each kind in turn, files are taken in a random order, round after round, and in each a passage of the kind at
    random, whose prompt gets a random length. It is passed over if, with the 128 characters behind it, it overlaps
    with one taken before, or has a run of lines that stands in one of those or in a training file (``runs``).

    Args:
        held_out: the files to draw from; those that are no Python are passed over.
        training: files whose text must not be drawn.
        count: questions of each kind.
        seed: of the draw.

    Raises:
        ValueError: if there are too few passages of a kind.
    """
    sources = list(_parsed(held_out))
    draw = Draw(random.Random(seed), set().union(*(runs(file.data.decode()) for file in training)))
    questions: list[dict[str, Any]] = []
    for kind, passages in progress(KINDS.items(), desc="draw", unit="kind", leave=False):
        found = draw.prompts({source: list(passages(source)) for source in sources}, count)
        if len(found) < count:
            raise ValueError(f"only {len(found)} prompts of kind {kind!r} in {len(sources)} files; ask for fewer")
        for place, prompt in found:
            number = len(questions) + 1
            questions.append({"question_id": number, "category": kind, "turns": [prompt], "source": place})
    return questions


class Draw:
    """What is drawn, and what must not be drawn any more."""

    def __init__(self, rng: random.Random, known: set[str]) -> None:
        self._rng, self._known = rng, known
        self._taken: list[tuple[str, int, int]] = []

    def prompts(self, passages: dict[Parsed, list[Passage]], count: int) -> list[tuple[str, str]]:
        """Return (place, prompt) of up to ``count`` passages, each from another file as long as there are any."""
        found: list[tuple[str, str]] = []
        for kind in passages.values():
            self._rng.shuffle(kind)
        while len(found) < count and any(passages.values()):
            order = [source for source, left in passages.items() if left]
            for source in self._rng.sample(order, len(order)):
                if (prompt := self._next(source, passages[source])) is not None:
                    found.append(prompt)
                if len(found) == count:
                    break
        return found

    def _next(self, source: Parsed, passages: list[Passage]) -> tuple[str, str] | None:
        """Take passages off the list until one gives a prompt."""
        while passages:
            passage = passages.pop()
            size = self._rng.randint(passage.shortest, passage.longest)
            prompt = end_within_line(source.text[passage.start : passage.start + size], self._rng)
            if len(prompt) < passage.shortest:  # It lost its last line.
                prompt = source.text[passage.start : passage.start + size]
            if self._takes(source, passage.start, passage.start + len(prompt) + FOLLOWING):
                return f"{source.name}:{source.line_of(passage.start)}", prompt
        return None

    def _takes(self, source: Parsed, start: int, end: int) -> bool:
        """Tell whether the characters are new, and remember them if so."""
        if any(source.name == name and start < stop and begin < end for name, begin, stop in self._taken):
            return False
        lines = runs(source.text[start:end])
        if not self._known.isdisjoint(lines):
            return False
        self._taken.append((source.name, start, end))
        self._known |= lines
        return True


def runs(text: str) -> set[str]:
    """Return the runs of lines by which texts are compared: two in a row, or as many more as make 40 characters.

    A run starts at every line. Empty lines, and white space around a line, do not count.
    """
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    found = set()
    for first in range(len(lines)):
        for last in range(first + 2, len(lines) + 1):
            run = "\n".join(lines[first:last])
            if len(run) > RUN_CHARACTERS:
                found.add(run)
                break
    return found


def _parsed(files: Iterable[SourceFile]) -> Iterable[Parsed]:
    for file in files:
        try:
            yield Parsed(file)
        except SyntaxError:
            continue


def main(argv: list[str] | None = None) -> int:
    """Write the questions as JSON lines and return the exit status."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m train.questions",
        description=summary,
        epilog=details.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=20, help="questions of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5, help="seed of the draw (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args(argv)

    def write() -> None:
        check_counts(args, "count")
        training, held_out = split_sources([standard_library()])
        rows = draw_questions(held_out, training, args.count, args.seed)
        with whole_file(args.out) as staged:
            staged.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{len(rows)} questions of {len(KINDS)} kinds written to {args.out}")

    return exit_status(write)


if __name__ == "__main__":
    sys.exit(main())
