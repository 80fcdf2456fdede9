"""What the machine can do: bytes read and copied in a second, and what an iteration of a loop costs beside its work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kangaroo_jax.engine import compiled

CHAIN = 4
ITERATIONS = 256


def megabytes() -> int:
    """Return the MiB to measure bandwidth over: more than a cache holds, and on a GPU enough to hide a launch."""
    return 256 if jax.default_backend() == "cpu" else 1024


def matvec(size: int, dtype: Any = jnp.float32) -> Callable[[], float]:
    """Return a timer of products of one row with a square matrix of ``size`` MiB: bytes of it read per second.

    Each of the products takes the result of the one before, so that they cannot run side by side.
    """
    width = math.isqrt(size * 2**20 // jnp.dtype(dtype).itemsize)
    matrix = (jax.random.normal(jax.random.key(0), (width, width)) / math.sqrt(width)).astype(dtype)
    vector = jnp.ones((1, width), dtype)

    @jax.jit
    def products(vector: Any, matrix: Any) -> Any:
        for _ in range(CHAIN):
            vector = vector @ matrix
        return vector

    return _rate(lambda: products(vector, matrix), CHAIN * matrix.nbytes)


def copy(size: int) -> Callable[[], float]:
    """Return a timer of passes that read and write ``size`` MiB in place: bytes read and written per second."""
    held = jax.random.normal(jax.random.key(1), (size * 2**20 // 4,))
    negate = jax.jit(lambda values: -values, donate_argnums=0)

    def passes() -> Any:
        nonlocal held
        for _ in range(CHAIN):  # One after the other: each waits for what it overwrites.
            held = negate(held)
        return held

    return _rate(passes, 2 * CHAIN * held.nbytes)


def iteration(extra: Mapping[str, str | None] | None = None) -> Callable[[], float]:
    """Return a timer of a loop on the device that does next to nothing: seconds per iteration.

    Its end depends on what it computes, as in drafting; on a GPU the host then looks at every iteration, unless the
    loop is in a CUDA graph.

    Args:
        extra: XLA options beside the usual ones.
    """
    ends = np.float32(0), np.float32(ITERATIONS)
    program, _ = compiled(_count, {}, *ends, extra=extra)
    rate = _rate(lambda: program(*ends), ITERATIONS)
    return lambda: 1 / rate()


@jax.jit
def _count(value: Any, end: Any) -> Any:
    return jax.lax.while_loop(lambda value: value < end, lambda value: value + 1, value)


def _rate(run: Callable[[], Any], amount: float) -> Callable[[], float]:
    """Return a timer of ``run``, which has run once after this: ``amount`` per second."""
    jax.block_until_ready(run())

    def timer() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run())
        return amount / (time.perf_counter() - began)

    return timer
