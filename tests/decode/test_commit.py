"""commit(): tokens are appended and cut exactly where decoding one token at a time would have stopped."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo_jax.decode import LENGTH, RUNNING, STOP, DecodeState, commit
from kangaroo_jax.decode.stats import init_stats, record_round

EOS, OTHER_EOS = 9, 8
SLOTS = 23
commit_once = jax.jit(commit)

Row = tuple[list[int], int, int]  # committed tokens, limit, finish


def state_of(rows: Sequence[Row]) -> DecodeState:
    tokens = np.full((len(rows), SLOTS), 77, np.int32)
    for row, (text, _, _) in zip(tokens, rows, strict=True):
        row[: len(text)] = text
    return DecodeState(
        tokens=jnp.asarray(tokens),
        length=jnp.array([len(text) for text, _, _ in rows], jnp.int32),
        limit=jnp.array([limit for _, limit, _ in rows], jnp.int32),
        finish=jnp.array([finish for _, _, finish in rows], jnp.int32),
        seed=jnp.zeros((len(rows), 2), jnp.uint32),
        caches=(),
        drafter=None,
        stats=init_stats(len(rows), SLOTS, 8),
    )


def rows_of(state: DecodeState) -> list[Row]:
    texts = [row[:length].tolist() for row, length in zip(np.asarray(state.tokens), state.length, strict=True)]
    return list(zip(texts, state.limit.tolist(), state.finish.tolist(), strict=True))


def committed(text: list[int], room: int, block: list[int], count: int, eos: Sequence[int]) -> tuple[list[int], int]:
    """Commit to one running sequence; returns what was appended, and finish."""
    state = state_of([(text, len(text) + room, RUNNING)])
    state, number = commit_once(state, jnp.array([block]), jnp.array([count]), jnp.array([eos], jnp.int32))
    ((after, _, finish),) = rows_of(state)
    assert after[: len(text)] == text
    assert number.tolist() == [len(after) - len(text)]
    return after[len(text) :], finish


@pytest.mark.parametrize(
    ("room", "block", "count", "eos", "expected"),
    [
        (9, [1, 2, EOS, 3], 4, [EOS], ([1, 2, EOS], STOP)),  # the docstring's two
        (2, [1, 2, EOS, 3], 4, [EOS], ([1, 2], LENGTH)),
        (9, [1, 2, 3, 4], 4, [EOS], ([1, 2, 3, 4], RUNNING)),
        (9, [1, 2, 3, 4], 1, [EOS], ([1], RUNNING)),
        (9, [1, 2, EOS, 4], 2, [EOS], ([1, 2], RUNNING)),  # an EOS beyond count is not there
        (9, [1, 2, EOS, 4], 3, [EOS], ([1, 2, EOS], STOP)),
        (9, [EOS, 1, 2, 3], 4, [EOS], ([EOS], STOP)),  # first of the block
        (9, [EOS], 1, [EOS], ([EOS], STOP)),  # the prefill's token
        (9, [1, EOS, EOS, 2], 4, [EOS], ([1, EOS], STOP)),  # the first of two
        (9, [1, OTHER_EOS, EOS, 2], 4, [EOS, OTHER_EOS], ([1, OTHER_EOS], STOP)),
        (9, [1, EOS, OTHER_EOS, 2], 4, [EOS, OTHER_EOS], ([1, EOS], STOP)),
        (9, [1, EOS, 2, 3], 4, [], ([1, EOS, 2, 3], RUNNING)),  # no EOS tokens at all
        (2, [1, EOS, 2, 3], 4, [], ([1, EOS], LENGTH)),
        (3, [1, 2, EOS, 4], 4, [EOS], ([1, 2, EOS], STOP)),  # EOS is the last token of the budget: STOP
        (4, [1, 2, 3, 4], 4, [EOS], ([1, 2, 3, 4], LENGTH)),  # budget spent exactly
        (1, [1, 2, 3, 4], 4, [EOS], ([1], LENGTH)),
        (0, [1, 2, 3, 4], 4, [EOS], ([], LENGTH)),  # max_new_tokens = 0
        (0, [EOS, 2, 3, 4], 4, [EOS], ([], LENGTH)),
    ],
)
def test_where_a_sequence_is_cut(
    room: int, block: list[int], count: int, eos: list[int], expected: tuple[list[int], int]
) -> None:
    assert committed([5, 6], room, block, count, eos) == expected


@pytest.mark.parametrize("finish", [STOP, LENGTH])
def test_finished_sequences_stay_as_they_are(finish: int) -> None:
    before = [([5, 6], 12, RUNNING), ([5, 6, 7], 12, finish), ([5, EOS], 2, finish)]
    block = jnp.array([[1, 2], [EOS, 2], [3, EOS]])
    state, number = commit_once(state_of(before), block, jnp.array([2, 2, 2]), jnp.array([[EOS]]))
    assert rows_of(state) == [([5, 6, 1, 2], 12, RUNNING), *before[1:]]
    assert number.tolist() == [2, 0, 0]


def test_a_sequence_may_fill_its_budget_to_the_last_slot() -> None:
    text = list(range(10, 10 + SLOTS - 2))
    assert committed(text, 2, [1, 2], 2, [EOS]) == ([1, 2], LENGTH)


def model(row: Row, block: list[int], count: int, eos: Sequence[int]) -> Row:
    """Append token by token, as plain decoding does."""
    text, limit, finish = row
    for token in [*block[:count], None]:
        if finish == RUNNING and len(text) == limit:
            finish = LENGTH
        if token is None or finish != RUNNING:
            break
        text = [*text, token]
        finish = STOP if token in eos else RUNNING
    return text, limit, finish


tokens = st.integers(0, 9)


@st.composite
def some_row(draw: st.DrawFn) -> Row:
    text = draw(st.lists(tokens, min_size=1, max_size=9))
    return text, len(text) + draw(st.integers(0, 7)), draw(st.sampled_from([RUNNING, RUNNING, STOP, LENGTH]))


@given(
    rows=st.lists(some_row(), min_size=3, max_size=3),
    blocks=st.lists(st.lists(tokens, min_size=5, max_size=5), min_size=3, max_size=3),
    counts=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    ends=st.lists(st.lists(tokens, min_size=2, max_size=2), min_size=3, max_size=3),
)
def test_commit_equals_appending_one_by_one(
    rows: list[Row], blocks: list[list[int]], counts: list[int], ends: list[list[int]]
) -> None:
    state, number = commit_once(state_of(rows), jnp.array(blocks), jnp.array(counts), jnp.array(ends))
    expected = [model(*each) for each in zip(rows, blocks, counts, ends, strict=True)]
    assert rows_of(state) == expected
    assert number.tolist() == [len(after[0]) - len(row[0]) for after, row in zip(expected, rows, strict=True)]


def test_record_round_counts_the_sequences_that_took_part() -> None:
    state = state_of([([5], 9, RUNNING), ([5], 9, STOP)])
    for committed_now, drafted, accepted, sure in (([3, 0], [4, 4], [2, 1], 0.25), ([1, 0], [2, 2], [0, 0], 0.5)):
        confidence = jnp.full((2, 8), sure)
        state = state.replace(
            stats=record_round(state.stats, *map(jnp.array, (committed_now, drafted, accepted)), confidence)
        )
    stats = state.stats
    assert stats.rounds.tolist() == [2, 0]
    assert stats.accept_lengths[:, :3].tolist() == [[3, 1, 0], [0, 0, 0]]
    assert stats.draft_lengths[:, :3].tolist() == [[4, 2, 0], [0, 0, 0]]
    assert stats.accepted_drafts[:, :3].tolist() == [[2, 0, 0], [0, 0, 0]]
    assert stats.confidence[0, :2].tolist() == [[0.25] * 8, [0.5] * 8]
