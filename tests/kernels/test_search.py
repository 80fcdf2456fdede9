"""What is most likely, and what top_k and top_p leave in: what XLA and NumPy find, native kernels find."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest

from kangaroo_jax import decode as dec
from kangaroo_jax.kernels import highest, surest

SIZE = 5003
cut = jax.jit(dec.cut, static_argnums=2)


def sampling(temperature: float, top_k: int, top_p: float, rows: int) -> dec.Sampling:
    columns = (np.full(rows, value, kind) for value, kind in zip((temperature, top_k, top_p, 0), "fiff", strict=True))
    return dec.Sampling(*columns)


SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flat": lambda x: 0.5 * x,
    "steep": lambda x: 4 * x,
    "in steps": lambda x: np.round(2 * x),
    "equal": np.zeros_like,
    "few": lambda x: np.where(np.abs(x) < 2.5, -np.inf, x),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_stays_is_what_stays_with_xla(normal: Callable[..., np.ndarray], shape: str) -> None:
    logits = SHAPES[shape](normal(7, 3, SIZE)).astype(np.float32)
    for temperature in (0.4, 1.0, 5.0):
        for top_k, top_p in (
            (SIZE, 0.9),
            (SIZE, 0.99),
            (65, 1.0),
            (900, 0.95),
            (3000, 0.3),
            (SIZE - 1, 1.0),
            (64, 0.97),
        ):
            settings = sampling(temperature, top_k, top_p, len(logits))
            mine, xlas = (cut(settings, logits, truncate) for truncate in (dec.NATIVE, True))
            # Sums are added up in another order: a token on the verge may be on either side.
            counts = [np.asarray((left.weights(logits) > 0).sum(-1)) for left in (mine, xlas)]
            assert np.abs(counts[0] - counts[1]).max() <= (top_p < 1), (temperature, top_k, top_p)
            np.testing.assert_allclose(mine.total, xlas.total, rtol=1e-4)


def test_only_what_is_sought_is_searched(normal: Callable[..., np.ndarray]) -> None:
    """Sequences whose cuts are read off the most likely tokens are as they are alone."""
    logits = normal(3, 4, SIZE)
    settings = dec.Sampling(
        np.ones(4, np.float32),
        np.array([5, SIZE, 300, 1], np.int32),
        np.array([1, 0.9, 0.5, 0.2], np.float32),
        np.zeros(4, np.float32),
    )
    together = cut(settings, logits, dec.NATIVE)
    for row in range(4):
        alone = cut(jax.tree.map(lambda values, at=row: values[[at]], settings), logits[[row]], dec.NATIVE)
        for one, all_of_them in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_array_equal(one[0], all_of_them[row])


@pytest.mark.parametrize("size", [1, 61, 4096, 4097, 49_152])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        np.round,
        np.zeros_like,
        lambda x: np.full_like(x, -np.inf),
        lambda x: np.where(np.arange(x.size).reshape(x.shape) % 3 == 2, np.nan, x),
        lambda x: np.where(np.arange(x.shape[-1]) == x.shape[-1] - 1, np.inf, x),
    ],
    ids=["distinct", "ties", "equal", "nothing", "nan", "last"],
)
def test_the_most_likely_token_is_the_first_highest_or_the_first_nan(
    normal: Callable[..., np.ndarray], size: int, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    x = change(normal(11, 3, 5, size)).astype(np.float32)
    np.testing.assert_array_equal(highest(x), x.argmax(-1))
    counts = np.array([0, 2, 5], np.int32)
    expected = np.where(np.arange(5) < counts[:, None], x.argmax(-1), 0)
    np.testing.assert_array_equal(highest(x, counts), expected)
    place, share, others = surest(x, 2)
    np.testing.assert_array_equal(place, x.argmax(-1))
    with np.errstate(invalid="ignore"):
        wide = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    np.testing.assert_allclose(share, 1 / wide.sum(-1), rtol=2e-6)
    lower, expected = x, []
    for _ in range(2):
        lower = np.where(lower < lower.max(-1, keepdims=True), lower, -np.inf)
        expected.append(np.where(lower.max(-1) > -np.inf, lower.argmax(-1), 0))
    real = np.isfinite(x).all(-1)
    np.testing.assert_array_equal(np.asarray(others)[real], np.stack(expected, -1)[real])
