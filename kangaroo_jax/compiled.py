"""Ahead-of-time compilation, so that compile time is known and never counted as decoding."""

from __future__ import annotations

import time
from typing import Any

import jax

_executables: dict[Any, Any] = {}

OPTIONS: dict[str, dict[str, str]] = {
    # Products over a few rows: Eigen's beat YNNPACK's in most shapes measured (docs/joey.md).
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
}
"""XLA options by platform; dropped where the installed XLA does not know them."""


def compiled(function: Any, static: dict[int, Any], *args: Any) -> tuple[Any, float]:
    """Return ``function`` compiled for these arguments, and the seconds that took (0 when it was compiled before).

    Args:
        function: a jitted function.
        static: its static arguments by position; hashable.
        *args: the traced arguments, in order; only their shapes, dtypes and placement matter.

    Returns:
        A callable that takes the traced arguments, and compile seconds.
    """
    leaves, tree = jax.tree.flatten(args)
    shapes = tuple((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
    key = (function, tuple(static.items()), tree, shapes)
    if key in _executables:
        return _executables[key], 0.0
    merged = list(args)
    for position, value in sorted(static.items()):
        merged.insert(position, value)
    start = time.perf_counter()
    lowered = function.lower(*merged)
    try:
        _executables[key] = lowered.compile(compiler_options=OPTIONS.get(jax.default_backend()))
    except jax.errors.JaxRuntimeError as error:
        if not any(reason in str(error) for reason in ("No such compile option", "valid enum value")):
            raise
        _executables[key] = lowered.compile()
    return _executables[key], time.perf_counter() - start


def executables() -> int:
    """Return how many programs have been compiled in this process; for tests that count them."""
    return len(_executables)
