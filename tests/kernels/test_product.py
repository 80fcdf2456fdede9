"""The native product against float64 and XLA: values, what is left out, and numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.kernels import Packed, pack, product
from kangaroo_jax.model.layers import linear

Draw = Callable[..., np.ndarray]
STORAGES = ("float32", "bfloat16")
SUBNORMAL = 0x00200000  # As bits; bf16 holds it.
_product = jax.jit(product, static_argnames=("out_dtype", "eps"))
_linear = jax.jit(linear)


@pytest.fixture
def draw(normal: Draw) -> Callable[..., tuple[Any, Any, Packed]]:
    """Return a function that draws x and a matrix, which bf16 holds, and packs the matrix."""

    def make(rows: tuple[int, ...], depth: int, columns: int, storage: str) -> tuple[Any, Any, Packed]:
        kernel = jnp.asarray(jnp.asarray(normal(1, depth, columns), jnp.bfloat16), jnp.float32)
        return normal(0, *rows, depth), np.asarray(kernel), pack(kernel, storage=storage)

    return make


def close(found: Any, x: Any, kernel: Any, rounding: float = 0.0) -> None:
    """Check a product: fp32 sums err by as many half units of the sum of magnitudes as there are terms.

    Args:
        found: the product.
        x: float64 factor.
        kernel: the other one.
        rounding: relative error of each element of x.
    """
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    bound = (rounding + (len(kernel) + 2) * 2.0**-24) * (np.abs(x) @ np.abs(kernel))
    assert (np.abs(np.asarray(found, np.float64) - x @ kernel) <= bound).all()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (3, 31), (2, 64), (130, 97), (257, 33)])
def test_shapes(draw: Any, depth: int, columns: int, storage: str) -> None:
    for rows in (1, 3):
        x, kernel, packed = draw((rows,), depth, columns, storage)
        found = _product(x, packed)
        assert found.shape == (rows, columns) and found.dtype == jnp.float32
        close(found, x, kernel)
        close(_linear(x, kernel), x, kernel)


@pytest.mark.parametrize("storage", STORAGES)
def test_any_number_of_rows(draw: Any, storage: str) -> None:
    for rows in (0, *range(1, 17), 33, 130):
        x, kernel, packed = draw((rows,), 57, 67, storage)
        close(_product(x, packed), x, kernel)


def test_leading_axes_stay(draw: Any) -> None:
    x, kernel, packed = draw((2, 3, 5), 7, 37, "float32")
    close(_product(x, packed), x, kernel)
    assert _product(x[0, 0, 0], packed).shape == (37,)
    assert _product(x[:0], packed).shape == (0, 3, 5, 37)


@pytest.mark.parametrize("storage", STORAGES)
def test_bf16_rows(draw: Any, storage: str) -> None:
    x, kernel, packed = draw((5,), 131, 67, storage)
    x = jnp.asarray(x, jnp.bfloat16)
    wide = _product(x, packed, out_dtype=jnp.float32)
    close(wide, x, kernel)
    assert _product(x, packed).dtype == jnp.bfloat16
    np.testing.assert_array_equal(_product(x, packed), wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_rows_go_through_a_norm_first(draw: Any, normal: Draw, storage: str, dtype: str, eps: float) -> None:
    x, kernel, packed = draw((5,), 131, 67, storage)
    x, scale = jnp.asarray(x, dtype), normal(2, 131)
    found = _product(x, packed, scale=scale, eps=eps, out_dtype=jnp.float32)
    wide = np.asarray(x, np.float64)
    normed = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * scale
    # What is multiplied may be rounded to the dtype of x.
    close(found, normed, kernel, 2.0**-8 if dtype == "bfloat16" else 2.0**-20)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("counts", [[5, 0, 2], [-7, 9, 3], [0, 0, 0]])
def test_rows_beyond_count_are_zeros(draw: Any, normal: Draw, counts: list[int], scaled: bool) -> None:
    """x = rows that are multiplied, of counts 5, 0 and 2::

    x x x x x
    . . . . .
    x x . . .
    """
    x, _, packed = draw((3, 5), 23, 37, "float32")
    options = {"scale": normal(2, 23), "eps": 0.1} if scaled else {}
    found = np.asarray(_product(x, packed, count=jnp.array(counts), **options))
    every = np.asarray(_product(x, packed, **options))
    computed = np.arange(5) < np.array(counts)[:, None]
    np.testing.assert_array_equal(found, np.where(computed[..., None], every, 0))
    assert every.all()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("rows", [1, 6])
def test_infinities_and_nans_are_where_xla_has_them(draw: Any, rows: int, storage: str) -> None:
    x, kernel, _ = draw((rows,), 97, 71, storage)
    x, kernel = x.copy(), kernel.copy()
    kernel[5, 3], kernel[96, 40], kernel[7, 70] = np.inf, np.nan, -np.inf
    kernel[:, 33] = 0
    x[-1, 5] = x[-1, 20] = np.inf
    x[0, 7] = 0
    found = np.asarray(_product(x, pack(jnp.asarray(kernel), storage=storage)))
    expected = np.asarray(_linear(x, kernel))
    kinds = [(np.isnan(values), np.isposinf(values), np.isneginf(values)) for values in (found, expected)]
    np.testing.assert_array_equal(*kinds)
    assert all(kind.any() for kind in kinds[0]) and (rows == 1 or np.isfinite(found).any())


INT8_SHAPES = [(1, 1), (3, 31), (4, 33), (130, 97), (257, 64), (1031, 33)]


@pytest.mark.parametrize(("depth", "columns"), INT8_SHAPES)
def test_int8_holds_whole_numbers_exactly(depth: int, columns: int) -> None:
    """Rows and columns whose largest number is 127, times powers of two."""
    rng = np.random.default_rng(0)
    for rows in (1, 3, 13):
        x, kernel = rng.integers(-127, 128, (rows, depth)), rng.integers(-127, 128, (depth, columns))
        x[:, -1] = kernel[0] = 127
        x[0, -1] = -127
        powers = 2.0 ** rng.integers(-9, 9, rows)[:, None], 2.0 ** rng.integers(-9, 9, columns)
        left, right = (x * powers[0]).astype(np.float32), (kernel * powers[1]).astype(np.float32)
        found = _product(left, pack(jnp.asarray(right), storage=jnp.int8))
        exact = (x @ kernel).astype(np.float64) * powers[0] * powers[1]
        np.testing.assert_allclose(found, exact, rtol=3e-7, atol=0)


@pytest.mark.parametrize(("depth", "columns"), INT8_SHAPES)
def test_int8_errs_by_half_a_step_of_each_factor(draw: Any, depth: int, columns: int) -> None:
    for rows in (1, 3, 13):
        x, kernel, packed = draw((rows,), depth, columns, "int8")
        half, other = (np.abs(each).max(axis, keepdims=True) / 254.0 for each, axis in ((x, 1), (kernel, 0)))
        bound = np.abs(x).sum(1, keepdims=True) * other + half * np.abs(kernel).sum(0) + depth * half * other
        found = np.asarray(_product(x, packed), np.float64)
        assert (np.abs(found - x.astype(np.float64) @ kernel.astype(np.float64)) <= bound * 1.0001).all()


def test_int8_rows_of_zeros_infinities_and_nans(draw: Any) -> None:
    """What is no number in a row is none in all its products, and in no other row's."""
    x, _, packed = draw((6,), 37, 71, "int8")
    expected = np.asarray(_product(x, packed))
    x = x.copy()
    x[1], x[2, 5], x[3, 36], x[4, 0], x[5] = 0, np.inf, np.nan, -np.inf, 1e36
    found = np.asarray(_product(x, packed))
    np.testing.assert_array_equal(found[0].view(np.uint32), expected[0].view(np.uint32))
    assert not found[1].any() and np.isnan(found[2:5]).all() and np.isfinite(found[5]).all()


def test_int8_weights_that_are_no_numbers_spoil_their_column_alone(draw: Any) -> None:
    x, kernel, _ = draw((3,), 37, 71, "float32")
    kernel = kernel.copy()
    kernel[5, 3], kernel[36, 40] = np.inf, np.nan
    found = np.asarray(_product(x, pack(jnp.asarray(kernel), storage=jnp.int8)))
    assert np.isnan(found[:, [3, 40]]).all() and np.isfinite(np.delete(found, [3, 40], 1)).all()


def _word(bits: int) -> np.float32:
    return np.array(bits, np.uint32).view(np.float32)[()]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("x", "weight"),
    [(2.0**66, _word(SUBNORMAL)), (_word(SUBNORMAL), 2.0**66), (2.0**-70, 2.0**-60)],
    ids=["subnormal weights", "subnormal x", "subnormal result"],
)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 3, 33), (1, 512, 4096), (8, 512, 4096)])
def test_subnormals_are_zero_as_with_xla(
    x: float, weight: float, rows: int, depth: int, columns: int, storage: str
) -> None:
    """For the thread that calls, and, where the work is shared, for the others."""
    left, right = np.zeros((rows, depth), np.float32), np.zeros((depth, columns), np.float32)
    left[:, 0], right[0] = x, weight
    packed, expected = pack(jnp.asarray(right), storage=storage), np.asarray(_linear(left, right))
    for _ in range(50):  # Not every call finds a thread that is free.
        found = np.asarray(_product(left, packed))
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
        assert not found.view(np.uint32).any()


@pytest.mark.parametrize("columns", [1, 1000, 1024, 4097])
def test_work_that_is_shared(draw: Any, columns: int) -> None:
    """Blocks of columns go to whoever is free: none is left out, none computed for another."""
    x, kernel, packed = draw((1,), 701, columns, "float32")
    for _ in range(5):
        close(_product(x, packed), x, kernel)


def test_a_product_within_a_program(draw: Any) -> None:
    """In a loop, each result is the next argument."""
    x, kernel, packed = draw((3,), 37, 37, "float32")
    found = jax.jit(lambda x, w: jax.lax.fori_loop(0, 3, lambda _, y: product(y, w) / 8, x))(x, packed)
    expected = x.astype(np.float64)
    for _ in range(3):
        expected = expected @ kernel / 8
    np.testing.assert_allclose(found, expected, atol=1e-5)
