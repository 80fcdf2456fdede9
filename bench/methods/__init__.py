"""The methods of the paper's table on one engine; each drafts in its own way, and all else is shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import kangaroo_jax
from bench.methods import kangaroo_variants, lookahead, medusa_drafter, prompt_lookup, rest, small_model
from bench.methods.base import Method, Ready, count_parameters

__all__ = ["METHODS", "Method", "Ready", "chosen", "count_parameters", "make"]

METHODS: dict[str, Method] = {
    method.name: method
    for module in (kangaroo_variants, prompt_lookup, lookahead, small_model, medusa_drafter, rest)
    for method in module.METHODS
}
"""All methods by name, in the order of tables."""


def chosen(names: Sequence[str]) -> list[str]:
    """Return the methods that names mean; "all" is all of them.

    Raises:
        ValueError: if one is unknown or named twice.
    """
    found = list(METHODS) if list(names) == ["all"] else list(names)
    if unknown := [name for name in found if name not in METHODS]:
        raise ValueError(f"unknown method {', '.join(unknown)}; choose from {', '.join(METHODS)}, or all")
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise ValueError(f"method {', '.join(twice)} is named twice; name each once")
    return found


def make(name: str, params: kangaroo_jax.Params, settings: Mapping[str, Any] | None = None) -> Ready:
    """Put a method on a model.

    Args:
        name: a key of ``METHODS``.
        params: from ``kangaroo_jax.load``.
        settings: values that differ from the method's defaults.

    Raises:
        ValueError: if a setting is unknown, or the method lacks what it needs, such as an adapter.
    """
    method = METHODS[name]
    if unknown := set(settings or {}) - set(method.defaults):
        known = ", ".join(method.defaults) or "no settings"
        raise ValueError(f"{name} has no setting {', '.join(sorted(unknown))}; it has {known}")
    return method.make(params, {**method.defaults, **(settings or {})})
