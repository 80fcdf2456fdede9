"""Draw prompts from the held-out files of the standard library, at random and without looking at them."""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from workshop.command import exit_status
from workshop.held_out import SourceFile, split_sources, standard_library


def draw_prompts(files: list[SourceFile], count: int, size: int, seed: int) -> list[dict[str, str]]:
    """Return ``count`` prompts of at most ``size`` characters, each from another file as long as there are any.

    A file is drawn with equal chance, then a line of it; files shorter than two prompts are passed over. A prompt
    mostly ends within a line: after its last full line up to 12 more characters are kept.

    Raises:
        ValueError: if no file is long enough.
    """
    rng = random.Random(seed)
    suitable = [file for file in files if len(file.data.decode()) > 2 * size]
    if not suitable:
        raise ValueError(f"no file is longer than {2 * size} characters; ask for a smaller size")
    order: list[SourceFile] = []
    while len(order) < count:
        order += rng.sample(suitable, min(len(suitable), count - len(order)))
    prompts = []
    for file in order:
        text = file.data.decode()
        start = text.rfind("\n", 0, rng.randrange(len(text) - size)) + 1
        prompts.append({"name": file.name, "prompt": end_within_line(text[start : start + size], rng)})
    return prompts


def end_within_line(piece: str, rng: random.Random) -> str:
    """Return the beginning of a text that ends, mostly, within a line: up to 12 characters behind a full line.

    That line is the last one that leaves so many characters; a text without one stays as it is.
    """
    line = piece.rfind("\n", 0, max(len(piece) - 12, 0)) + 1
    return piece[: line + rng.randrange(13)] if line else piece


def main(argv: list[str] | None = None) -> int:
    """Write the prompts as JSON lines and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.prompts", description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="number of prompts (default: %(default)s)")
    parser.add_argument("--size", type=int, default=200, help="longest prompt, in characters (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args(argv)

    def write() -> None:
        rows = draw_prompts(split_sources([standard_library()])[1], args.count, args.size, args.seed)
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{len(rows)} prompts written to {args.out}")

    return exit_status(write)


if __name__ == "__main__":
    sys.exit(main())
