"""Progress of long work, on standard error: a bar on a terminal; in a file or a pipe whole lines, now and then."""

from __future__ import annotations

import io
import sys
import threading
import time
import weakref
from typing import Any, TextIO

from tqdm import tqdm

EVERY = 15.0
"""Seconds between two lines."""
_COUNTED = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_ENDLESS = "{desc}: {n_fmt} {unit} [{elapsed}, {rate_fmt}{postfix}]"


def progress(iterable: Any = None, **options: Any) -> Any:
    """Return a ``tqdm`` of these options.

    Where standard error is no terminal, work that takes longer writes a line every ``EVERY`` seconds, half as often
    while a single part of it does not end, and one in the end, unless it is not to be left.
    """
    if sys.stderr.isatty() or options.get("disable"):
        return tqdm(iterable, **options)
    lines = _Lines(sys.stderr)
    endless = options.get("total") is None and not hasattr(iterable, "__len__")
    own = {"file": lines, "mininterval": EVERY, "miniters": 1, "delay": EVERY}
    bar = tqdm(iterable, **{**options, **own, "bar_format": _ENDLESS if endless else _COUNTED})
    threading.Thread(target=_keep_writing, args=(weakref.ref(bar), lines), daemon=True).start()
    return bar


class _Lines(io.TextIOBase):
    """What ``tqdm`` writes to overwrite it later, as lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last, self.written = stream, "", time.monotonic()

    def write(self, text: str) -> int:
        line = text.strip()
        if line and line != self._last:
            self._stream.write(f"{line}\n")
            self._stream.flush()
            self._last, self.written = line, time.monotonic()
        return len(text)


def _keep_writing(bar_of: weakref.ref[Any], lines: _Lines) -> None:
    """Write a line whenever none has been for a while, as long as the bar is there and not closed."""
    while (bar := bar_of()) is not None and not bar.disable:
        if (wait := lines.written + 2 * EVERY - time.monotonic()) <= 0:
            bar.refresh()
            wait = 2 * EVERY
        del bar
        time.sleep(wait)
