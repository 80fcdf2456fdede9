"""Checks of what callers pass: errors that name the argument, its value and what is expected."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable
from typing import Any


def token_ids(name: str, value: Any, vocab_size: int, expected: str) -> list[int]:
    """Return ``value`` as a list of ids of the vocabulary.

    Raises:
        ValueError: if it is something else; the message names argument, value and what is expected.
    """
    wrong_type = isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable)
    tokens = [] if wrong_type else list(value)
    try:
        ids = [operator.index(token) for token in tokens]
    except TypeError:
        wrong_type = True
    if wrong_type:
        raise ValueError(f"{name} is {value!r:.60}; pass {expected}")
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
    if number < least:
        raise ValueError(f"{name} is {number}; it must be at least {least}")
    if most is not None and number > most:
        raise ValueError(f"{name} is {number}; it must be at most {most}")
    return number


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
