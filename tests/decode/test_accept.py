"""Acceptance: the longest prefix of the draft that the target agrees with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo_jax.decode import accept_greedy

A, B, C, X, Y = range(5)


def accepted(drafted: list[int], count: int, target: list[int]) -> int:
    return int(accept_greedy(jnp.array([drafted]), jnp.array([count]), jnp.array([target]))[0])


@pytest.mark.parametrize(
    ("drafted", "count", "target", "expected"),
    [
        ([A, B, C], 3, [A, B, X, Y], 2),  # the docstring's
        ([A, B, C], 3, [A, B, C, Y], 3),
        ([A, B, C], 3, [X, B, C, Y], 0),  # agreement after a difference counts for nothing
        ([A, B, C], 2, [A, B, C, Y], 2),  # the third was not drafted; it lies there from an earlier round
        ([A, B, C], 1, [A, B, C, Y], 1),
        ([A, B, C], 0, [A, B, C, Y], 0),  # a finished sequence
        ([A, B, C], 3, [A, B, X, C, A, B, C, A], 2),  # verification has more rows than the draft
        ([A], 1, [A, B], 1),
    ],
)
def test_examples(drafted: list[int], count: int, target: list[int], expected: int) -> None:
    assert accepted(drafted, count, target) == expected


def test_rows_do_not_mix() -> None:
    drafted = jnp.array([[A, B], [A, B], [X, B]])
    target = jnp.array([[A, B, C], [A, X, C], [A, B, C]])
    assert accept_greedy(drafted, jnp.array([2, 2, 2]), target).tolist() == [2, 1, 0]


@given(st.data())
def test_equals_a_loop(data: st.DataObject) -> None:
    rows, gamma, width = 3, 5, 8
    token = st.integers(0, 2)  # Few, so that long agreements happen.
    drafted, target = (
        [data.draw(st.lists(token, min_size=columns, max_size=columns)) for _ in range(rows)]
        for columns in (gamma, width)
    )
    counts = data.draw(st.lists(st.integers(0, gamma), min_size=rows, max_size=rows))
    expected = []
    for row in range(rows):
        length = 0
        while length < counts[row] and drafted[row][length] == target[row][length]:
            length += 1
        expected.append(length)
    got = jax.jit(accept_greedy)(jnp.array(drafted), jnp.array(counts), jnp.array(target))
    assert got.tolist() == expected
