"""What the tests of the native kernels share.

Where the compiled library is absent its tests cannot be run, and are not collected. What is done without it, packing
and loading, is tested either way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.kernels import why_not
from kangaroo_jax.model import LlamaConfig, abstract_params

_WITHOUT_THE_LIBRARY = {"test_packed.py", "test_load.py"}
_ALL = {path.name for path in Path(__file__).parent.glob("test_*.py")}
collect_ignore = [] if why_not() is None else sorted(_ALL - _WITHOUT_THE_LIBRARY)


@pytest.fixture(scope="session")
def normal() -> Callable[..., np.ndarray]:
    """Return a function of a seed and a shape: fp32 numbers, normally distributed."""
    return lambda seed, *shape: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="session")
def params_of() -> Callable[..., Any]:
    """Return a function of a config and a seed: params, matrices of deviation 0.3, norms and biases near 1."""

    def draw(config: LlamaConfig, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)

        def one(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            values = 0.3 * rng.standard_normal(leaf.shape) + (len(leaf.shape) == 1)
            return jnp.asarray(values, jnp.float32)

        return jax.tree.map(one, abstract_params(config))

    return draw
