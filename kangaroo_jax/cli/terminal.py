"""What the commands put on a terminal beside their results: text as it is written."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import kangaroo_jax


def write(params: kangaroo_jax.Params, prompt: str, arguments: dict[str, Any]) -> kangaroo_jax.Generation:
    """Write prompt and continuation as the rounds commit it; the prompt dimmed on a terminal."""
    pieces = kangaroo_jax.stream(params, prompt, **arguments)  # Refuses bad input before anything is written.
    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"{dim}{prompt}{plain}", end="", flush=True)
    return show(pieces)


def show(pieces: Generator[str, None, kangaroo_jax.Generation]) -> kangaroo_jax.Generation:
    """Write the pieces of a stream as they come, and end the line; return the generation."""
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as end:
            print(flush=True)
            return end.value
