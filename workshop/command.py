"""How every command ends: with an exit status, and one line for whatever went wrong."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

from kangaroo_jax.files import first_line
from kangaroo_jax.model import standard_numerics


class Terminated(Exception):
    """Asked to end by SIGTERM, with all kept that was finished."""


def exit_status(
    work: Callable[[], int | None],
    *,
    name: str = "",
    afterwards: str = "",
    out: Path | None = None,
    explain: Callable[[Exception], str | None] = lambda error: None,
    refused: int = 2,
) -> int:
    """Do a command's work; return its exit status: its own, 130 after Ctrl-C, 0 after SIGTERM, or that of a refusal.

    Args:
        work: prints its own results; None is 0.
        name: what messages begin with (default: ``error: ``, and nothing for an interruption).
        afterwards: what is true when it was interrupted, or what to do then.
        out: where it writes, for commands that a full or read-only disk most likely ends.
        explain: says what an error means that only this command knows; None where it does not know it either.
        refused: status on bad input or a refusal of the system.

    Raises:
        Exception: what is a mistake of the program, and not of its input or the system.
    """
    then = f"; {afterwards}" if afterwards else ""
    if isinstance(sys.stdout, io.TextIOWrapper):  # In a log, too, a line is there when it is printed.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        with standard_numerics():
            return work() or 0
    except KeyboardInterrupt:
        print(f"\n{f'{name}: ' if name else ''}interrupted{then}", file=sys.stderr, flush=True)
        return 130
    except Terminated:
        print(f"terminated, what was finished is kept{then}", file=sys.stderr, flush=True)
        return 0
    except Exception as error:
        message = explain(error)
        if message is None and isinstance(error, OSError):
            advice = f"; is {out} a place that can be written, with room? Then: {afterwards}" if out else ""
            message = _refusal(error) + advice
        elif message is None and isinstance(error, ValueError | FloatingPointError):
            message = str(error)
        if message is None:
            raise
        print(f"{name or 'error'}: {message}", file=sys.stderr, flush=True)
        return refused


def check_numbers(args: argparse.Namespace, *rules: tuple[str, bool, str]) -> None:
    """Raise ValueError naming the first option whose number makes no sense, its value and what it must be.

    Args:
        args: the options.
        rules: of an option: its name, whether its number makes sense, and what is expected: "at least 1".
    """
    for name, holds, expected in rules:
        if not holds:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be {expected}")


def check_counts(args: argparse.Namespace, *names: str) -> None:
    """Raise ValueError naming the first of these options that is given and below 1."""
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    check_numbers(args, *((name, value >= 1, "at least 1") for name, value in given.items()))


def _refusal(error: OSError) -> str:
    """Return what the system said, without its number; errors without one have words of their own."""
    if error.errno is None:
        return first_line(error, 400)
    return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
