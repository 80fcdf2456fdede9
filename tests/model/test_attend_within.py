"""Attention of a block to itself, in pieces of queries, against whole rows of scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model.layers import QUERY_PIECE, attend, attend_within


@pytest.mark.parametrize(
    ("length", "window"),
    [(7, None), (QUERY_PIECE, None), pytest.param(2 * QUERY_PIECE + 5, None, marks=pytest.mark.full), (300, 31)],
)
def test_pieces_equal_the_whole_and_so_do_gradients(length: int, window: int | None) -> None:
    rng = np.random.default_rng(length)
    shapes = ((2, length, 6, 3), (4, length, 3), (4, length, 3), (2, length, 18))
    q, k, v, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    # x . .      with a window of 2:   x . .
    # x x .                            x x .
    # x x x                            . x x
    distance = np.arange(length)[:, None] - np.arange(length)
    seen = jnp.asarray((distance >= 0) & (distance < (window or length)))[None].repeat(2, 0)

    def total(one, *given):
        return jnp.sum(one(*given, seen) * weight)

    slopes = [jax.jit(jax.grad(lambda *x, f=f: total(f, *x), (0, 1, 2)))(q, k, v) for f in (attend, attend_within)]
    for one, other in zip(*slopes, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    np.testing.assert_allclose(attend(q, k, v, seen), attend_within(q, k, v, seen), atol=2e-6)
