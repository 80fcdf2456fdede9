"""JAX's own defaults of arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def standard_numerics() -> Iterator[None]:
    """Trace and compute with these defaults: what a user has set for programs of his own is nothing to ours."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
