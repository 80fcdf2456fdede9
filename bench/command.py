"""What commands of the benchmarks share: exit statuses and their one line, and a place for figures."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from kangaroo_jax.store import system_error


def exit_status(command: Callable[[], int], resumes: bool = False) -> int:
    """Run a command; return its exit status, 2 on bad input or a refusal of the system, 130 if interrupted.

    Args:
        command: prints its own results.
        resumes: whether it goes on where it stopped when it is given again.
    """
    try:
        return command()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        reason = system_error(error) or error
        print(f"error: {reason.strerror or reason}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted" + ("; the same command goes on from here" if resumes else ""), file=sys.stderr)
        return 130
    return 2


def check_writable(option: str, path: Path | None) -> None:
    """Raise ValueError if a file cannot be written, before minutes have gone into what is to stand in it.

    Args:
        option: what names the file, as it is typed.
        path: the file; None is none to write.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} is {path}, and that is a directory: name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"{option} is {path}, and there is no directory {path.parent}: make it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"{option} is {path}, and {path.parent} cannot be written ({reason}): choose another"
        ) from None
