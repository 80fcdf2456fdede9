"""What the commands put on a terminal beside their results: text as it is written, and colours where they show."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from typing import Any, TextIO

import kangaroo_jax
from kangaroo_jax.engine import Piece

DIM, GREEN, _RESET = "\033[2m", "\033[32m", "\033[0m"


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Return a text in a colour if the stream is a terminal that has any and ``NO_COLOR`` is not set (no-color.org)."""
    shows = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{colour}{text}{_RESET}" if shows and text else text


def write(params: kangaroo_jax.Params, prompt: Any, arguments: dict[str, Any]) -> kangaroo_jax.Generation:
    """Write what the model makes of a prompt, as the rounds commit it; a text to go on with comes first, dimmed."""
    pieces = kangaroo_jax.stream(params, prompt, **arguments)  # Refuses bad input before anything is written.
    if isinstance(prompt, str):
        print(coloured(prompt, DIM, sys.stdout), end="", flush=True)
    return show(pieces)


def show(pieces: Generator[Piece, None, kangaroo_jax.Generation]) -> kangaroo_jax.Generation:
    """Write the pieces of a stream as they come, accepted drafts green, and end the line; return the generation."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            print(flush=True)
            return end.value
        for text, drafted in piece.spans:
            print(coloured(text, GREEN, sys.stdout) if drafted else text, end="", flush=True)
