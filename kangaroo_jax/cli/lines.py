"""Lines that are typed on a terminal, with those of earlier times to go back to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kangaroo_jax.files import whole_file

_MOST_LINES = 1000


@contextlib.contextmanager
def remembered(file: Path) -> Iterator[None]:
    """Let ``input`` offer earlier lines while the block runs (arrow keys, Ctrl-R), and keep them in a file after it.

    Where there is no readline, or the file cannot be read or written, lines are not kept, and nothing else changes.
    """
    try:
        import readline  # Not on every system; and from here on ``input`` uses it.
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        readline.set_history_length(_MOST_LINES)
        with contextlib.suppress(OSError), whole_file(file) as staged:
            readline.write_history_file(staged)
