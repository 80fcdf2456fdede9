"""What a failing disk says: Orbax's pages of tracebacks kept from the terminal, and one reason found in them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType

# TensorStore and safetensors write the number of the system's error into a message of their own.
_NUMBER = re.compile(r"\bos[ _]error(?:_code)?\W*(\d+)", re.IGNORECASE)

_LATE = 0.2  # Seconds for TensorStore's own threads, which nothing can wait for.


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keep Orbax's threads from printing their tracebacks: what they raise is raised in the caller's thread, too."""
    logger = logging.getLogger("absl")
    disabled, in_thread, in_callback = logger.disabled, threading.excepthook, sys.unraisablehook

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if not _through_orbax(args.exc_traceback):
            in_thread(args)

    def of_callback(unraisable: sys.UnraisableHookArgs) -> None:
        # TensorStore's threads report to an event loop that Orbax has closed after the first failure.
        if str(unraisable.exc_value) != "Event loop is closed":
            in_callback(unraisable)

    logger.disabled, threading.excepthook, sys.unraisablehook = True, of_thread, of_callback
    try:
        yield
    except Exception:
        await_orbax()
        raise
    finally:
        logger.disabled, threading.excepthook, sys.unraisablehook = disabled, in_thread, in_callback


def await_orbax(seconds: float = 30.0) -> None:
    """Wait for what Orbax's threads still do after a failure of one of them: they end, and print, later than it."""
    until = time.monotonic() + seconds
    for thread in threading.enumerate():
        if _of_orbax(type(thread).__module__) and thread is not threading.current_thread():
            thread.join(max(until - time.monotonic(), 0))
    time.sleep(_LATE)


def system_error(error: BaseException) -> OSError | None:
    """Return the refusal of the system (no space, read-only, ...) that made an error, or None if there was none.

    Libraries wrap it, or leave only its number in their message.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        if named := _NUMBER.search(str(seen)):
            return OSError(int(named[1]), os.strerror(int(named[1])))
        seen = seen.__cause__ or seen.__context__
    return None


def _through_orbax(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        if _of_orbax(traceback.tb_frame.f_globals.get("__name__", "")):
            return True
        traceback = traceback.tb_next
    return False


def _of_orbax(module: str) -> bool:
    return module.split(".")[0] == "orbax"
