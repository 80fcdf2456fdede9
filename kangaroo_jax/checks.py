"""Every check of a value: what callers pass, and fields of files anyone may have written; one short line for each.

Errors name the argument, its value and what is expected.
"""

from __future__ import annotations

import math
import numbers
import operator
import reprlib
import sys
from typing import Any

WIDEST = 1 << 24  # Of what is allocated or traced by its size: ten times the largest vocabulary there is.
DEEPEST = 1000  # Layers are traced one by one; the deepest model of these families has 126.
INT32 = (1 << 31) - 1  # Positions and token ids are int32.

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxlong = _brief.maxother = 60


def token_ids(name: str, value: Any, vocab_size: int, expected: str) -> list[int]:
    """Return ``value`` as a list of ids of the vocabulary.

    Raises:
        ValueError: if it is something else; the message names argument, value and what is expected.
    """
    value = plain(value)
    tokens: list[Any] = [plain(item) for item in value] if isinstance(value, list | tuple) else [None]
    # True would be 1, and was hardly meant.
    if any(isinstance(token, bool) or not isinstance(token, numbers.Integral) for token in tokens):
        raise ValueError(f"{name} is {value!r:.60}; pass {expected}")
    ids = [operator.index(token) for token in tokens]
    if wrong := [token for token in ids if not 0 <= token < vocab_size]:
        raise ValueError(f"{name} has token id {wrong[0]}; ids of this model go from 0 to {vocab_size - 1}")
    return ids


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return ``value`` as an int.

    Raises:
        ValueError: if it is no whole number from ``least`` to ``most``; the message names argument, value and range.
    """
    # True would be 1, and was hardly meant.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} is {value!r:.60}; pass a whole number of at least {least}")
    number = operator.index(value)
    _check_range(name, number, least, most)
    return number


def real(name: str, value: Any, expected: str, least: float = 0, most: float | None = None) -> float:
    """Return ``value`` as a float.

    Raises:
        ValueError: if it is no finite number from ``least`` to ``most``; the message names argument and value.
    """
    value = plain(value)
    wrong = isinstance(value, bool) or not isinstance(value, numbers.Real)
    if wrong or not least <= value <= (sys.float_info.max if most is None else most):
        raise ValueError(f"{name} is {value!r:.60}; pass {expected}")
    return float(value)


def plain(value: Any) -> Any:
    """Return arrays as lists and numbers; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def text(name: str, value: Any) -> str:
    """Return ``value`` if it is valid text.

    Raises:
        ValueError: if it is no string, or has half of a surrogate pair; the message names argument and value.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.60}; pass a string")
    if lone := next((character for character in value if "\ud800" <= character <= "\udfff"), None):
        raise ValueError(f"{name} has {lone!r}, half of a surrogate pair, which is no text; pass valid Unicode")
    return value


def brief(value: Any) -> str:
    """Return a value as it may stand in a message: as ``repr`` has it, on one line, shortened."""
    return _brief.repr(value)


def check_integer(name: str, value: Any, least: int = 1, most: int = WIDEST) -> None:
    """Raise ValueError if ``value`` is no integer from ``least`` to ``most``."""
    if type(value) is not int:
        raise ValueError(f"{name} is {brief(value)}; it must be an integer")
    _check_range(name, value, least, most)


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


def _check_range(name: str, number: int, least: int, most: int | None) -> None:
    if number < least:
        raise ValueError(f"{name} is {brief(number)}; it must be at least {least}")
    if most is not None and number > most:
        raise ValueError(f"{name} is {brief(number)}; it must be at most {most}")
