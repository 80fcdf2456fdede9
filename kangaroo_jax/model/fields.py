"""Checks of a config's fields, which come out of files anyone may have written: kind and range, in one short line."""

from __future__ import annotations

import math
import reprlib
from typing import Any

WIDEST = 1 << 24  # Of what is allocated or traced by its size: ten times the largest vocabulary there is.
DEEPEST = 1000  # Layers are traced one by one; the deepest model of these families has 126.
INT32 = (1 << 31) - 1  # Positions and token ids are int32.

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxlong = _brief.maxother = 60


def brief(value: Any) -> str:
    """Return a value as it may stand in a message: as ``repr`` has it, on one line, shortened."""
    return _brief.repr(value)


def check_integer(name: str, value: Any, least: int = 1, most: int = WIDEST) -> None:
    """Raise ValueError if ``value`` is no integer from ``least`` to ``most``."""
    if type(value) is not int:
        raise ValueError(f"{name} is {brief(value)}; it must be an integer")
    if value < least:
        raise ValueError(f"{name} is {brief(value)}; it must be at least {least}")
    if value > most:
        raise ValueError(f"{name} is {brief(value)}; it must be at most {most}")


def positive(name: str, value: Any) -> float:
    """Return a number as a float.

    Raises:
        ValueError: if it is none, or not finite, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {brief(value)}; it must be a number")
    try:
        number = float(value)
    except OverflowError:  # JSON's integers have no bound.
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {brief(value)}; it must be above 0 and finite")
    return number
