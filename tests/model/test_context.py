"""What a block of tokens sees: lines, sliding windows, trees, and blocks that begin in the middle of a tree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model import (
    LlamaConfig,
    branch,
    fork,
    init_adapter,
    init_cache,
    init_params,
    line,
    run_adapter,
    run_layers,
)

SLOTS = 13
# A root, a and b after it, c and d after b: two tokens at depth 1, two at depth 2.
DEPTH = np.array([0, 1, 1, 2, 2])
SEEN = np.array(
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 1, 0, 1]],
    bool,
)
PATHS = ((0, 1), (0, 2, 3), (0, 2, 4))
CONFIG = LlamaConfig(61, 23, 29, 2, 6, 2, 10)


def drawn(mask: jax.Array) -> list[str]:
    return [" ".join("x" if visible else "." for visible in row) for row in np.asarray(mask)]


def test_mask_over_cache_slots() -> None:
    mask = line(jnp.array([[2, 3]]), 5).mask(None)
    # fmt: off
    assert drawn(mask[0]) == [
        "x x x . .",  # position 2
        "x x x x .",  # position 3
    ]
    # fmt: on


def test_mask_of_sequences_of_different_lengths() -> None:
    context = line(jnp.array([[0, 1], [3, 4]]), 5)
    assert drawn(context.mask(None)[0]) == ["x . . . .", "x x . . ."]
    assert drawn(context.mask(None)[1]) == ["x x x x .", "x x x x x"]
    assert context.start.tolist() == [0, 3]


def test_mask_without_a_cache_is_causal() -> None:
    mask = line(jnp.array([[0, 1, 2]]), None).mask(None)
    assert drawn(mask[0]) == ["x . .", "x x .", "x x x"]


def test_mask_of_a_sliding_window() -> None:
    assert drawn(line(jnp.array([[2, 3]]), 5).mask(2)[0]) == [
        ". x x . .",  # position 2
        ". . x x .",  # position 3
    ]
    assert drawn(line(jnp.array([[0, 1, 2]]), None).mask(2)[0]) == ["x . .", "x x .", ". x x"]


def tree(*root: int, rows: tuple[int, int] | None = None) -> Any:
    """Return the context of the tree above, in several sequences."""
    depth, seen = (np.broadcast_to(each, (len(root), *each.shape)) for each in (DEPTH, SEEN))
    return branch(jnp.array(root), jnp.array(depth), jnp.array(seen), SLOTS, rows)


def test_a_tree_sees_the_past_and_its_ancestors() -> None:
    # fmt: off
    assert drawn(tree(2).mask(None)[0, :, :8]) == [
        "x x x . . . . .",  # the root at position 2
        "x x x x . . . .",  # a at 3
        "x x x . x . . .",  # b at 3
        "x x x . x x . .",  # c at 4
        "x x x . x . x .",  # d at 4
    ]
    # fmt: on
    assert tree(2).positions.tolist() == [[2, 3, 3, 4, 4]] and tree(2).start.tolist() == [2]


def test_a_fork_is_a_tree_of_a_line_and_what_may_stand_in_its_place() -> None:
    made = fork(jnp.array([3]), jnp.array([1]), 2, 7)
    # fmt: off
    assert drawn(made.mask(None)[0]) == [
        "x x x x . . .",  # the line's end at position 3
        "x x . . x . .",  # two at 2
        "x x . . . x .",
    ]
    assert drawn(made.mask(2)[0]) == [
        ". . x x . . .",
        ". x . . x . .",
        ". x . . . x .",
    ]
    # fmt: on
    assert made.positions.tolist() == made.twins.tolist() == [[3, 2, 2]] and made.start.tolist() == [3]


def test_a_window_counts_positions_in_a_tree_not_slots() -> None:
    # fmt: off
    assert drawn(tree(2).mask(2)[0, :, :8]) == [
        ". x x . . . . .",
        ". . x x . . . .",
        ". . x . x . . .",
        ". . . . x x . .",
        ". . . . x . x .",
    ]
    # fmt: on


def test_a_block_in_the_middle_of_a_tree() -> None:
    whole, rest = tree(2, 5), tree(2, 5, rows=(3, 5))
    assert rest.start.tolist() == [5, 8] and rest.positions.tolist() == [[4, 4], [7, 7]]
    np.testing.assert_array_equal(rest.mask(None), whole.mask(None)[:, 3:])
    np.testing.assert_array_equal(rest.mask(2), whole.mask(2)[:, 3:])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("part", ["layers", "adapter"])
def test_a_tree_at_once_in_pieces_and_path_by_path(part: str, window: int | None) -> None:
    """Hidden states of a tree's rows are those of the lines they end, whether its rows are run together or not."""
    config = CONFIG if window is None else LlamaConfig(61, 23, 29, 2, 6, 2, 10, model_type="mistral", sliding_window=3)
    scaled = jax.tree.map(lambda leaf: leaf * 9 if leaf.ndim == 2 else leaf, init_params(config, jax.random.key(1)))
    adapter = init_adapter(config, jax.random.key(2))
    roots, rng = (3, 6), np.random.default_rng(0)
    past, rows = (jnp.asarray(rng.standard_normal((2, n, 23)), jnp.float32) for n in (6, 5))

    @jax.jit
    def run(x: Any, context: Any, caches: Any) -> Any:
        if part == "layers":
            return run_layers(config, scaled, x, context, caches, 0, 2)
        x, cache = run_adapter(config, adapter, x, context, caches[0])
        return x, (cache,)

    caches = init_cache(config, 2, SLOTS, jnp.float32, 2 if part == "layers" else 1)
    _, caches = run(past, line(jnp.broadcast_to(jnp.arange(6), (2, 6)), SLOTS), caches)
    whole, _ = run(rows, tree(*roots), caches)
    first, after = run(rows[:, :2], tree(*roots, rows=(0, 2)), caches)
    second, after = run(rows[:, 2:4], tree(*roots, rows=(2, 4)), after)
    third, _ = run(rows[:, 4:], tree(*roots, rows=(4, 5)), after)
    np.testing.assert_allclose(jnp.concatenate([first, second, third], axis=1), whole, atol=2e-5)
    for path in PATHS:
        positions = jnp.array(roots)[:, None] + jnp.arange(len(path))
        alone, _ = run(rows[:, jnp.array(path)], line(positions, SLOTS), caches)
        np.testing.assert_allclose(alone, whole[:, jnp.array(path)], atol=2e-5)
