"""Settings of methods as they are typed, and all methods made at once."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import kangaroo_jax
from bench.methods import METHODS, Ready, make

Settings = Mapping[str, Mapping[str, Any]]
"""Changed settings by method and name."""
Rows = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Methods and changed settings by what they are called in tables."""


def parse_settings(words: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings that ``METHOD.NAME=VALUE`` words ask for.

    A value is of the default's type. Where the model chooses the default (None), and for lists, it is what Python
    reads it as, or else text.

    Args:
        words: what was typed.
        names: the methods that are to run.

    Raises:
        ValueError: if a word is of another form, or names a method or setting there is not, or a value does not fit.
    """
    settings: dict[str, dict[str, Any]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        method, dot, name = key.partition(".")
        if not (equals and dot and method and name):
            raise ValueError(f"--set {word}: write METHOD.NAME=VALUE, such as kangaroo.gamma=4")
        if method not in names:
            raise ValueError(f"--set {word}: {method} is not among the methods to run, {', '.join(names)}")
        defaults = METHODS[method].defaults
        if name not in defaults:
            known = ", ".join(defaults) or "no settings"
            raise ValueError(f"--set {word}: {method} has no setting {name}; it has {known}")
        settings.setdefault(method, {})[name] = _value(word, value, defaults[name])
    return settings


def make_all(rows: Rows, params: kangaroo_jax.Params) -> dict[str, Ready]:
    """Put methods on a model.

    Raises:
        ValueError: if some cannot be made: a line for each, which names the command that makes what it needs.
    """
    made: dict[str, Ready] = {}
    problems: list[str] = []
    for row, (name, settings) in rows.items():
        try:
            made[row] = make(name, params, settings)
        except ValueError as error:
            needs = METHODS[name].needs
            hint = f"; it needs: {needs}" if needs and needs.split(" -")[0] not in str(error) else ""
            problems.append(f"{row}: {str(error).removeprefix(f'{name}: ')}{hint}")
    if problems:
        raise ValueError(
            "\n  ".join([f"{len(problems)} of {len(rows)} methods cannot run on {params.name}", *problems])
        )
    return made


def _value(word: str, text: str, default: Any) -> Any:
    """Return a typed value."""
    kind = type(default)
    if kind is str:
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        value = text
    if default is None:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return kind(value)
    if type(value) is not kind:
        raise ValueError(f"--set {word}: expected a value like {default!r} ({kind.__name__})")
    return value
