"""One step: accumulation, what is skipped, and what is not copied."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kangaroo_jax.model import LlamaConfig, init_adapter
from train.loss import distillation_loss
from train.optimizer import adapter_optimizer
from train.step import TrainState, check_skipped, init_state, make_train_step, place, place_batch, target_mesh


def batch_of(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Rows of very different numbers of tokens: a mean of means would show.
    mask = rng.random((rows, 23)) < np.linspace(0.05, 1, rows)[:, None]
    return {"tokens": rng.integers(0, 259, (rows, 23)).astype(np.int32), "mask": mask}


def simple(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    total = jnp.sum(params["w"] * batch["x"], where=batch["mask"])
    return total, {"loss": total, "tokens": batch["mask"].sum().astype(jnp.float32)}


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_parts_equal_the_big_batch(accumulate: int, tiny_config: LlamaConfig, tiny_params: dict) -> None:
    loss, optimizer = distillation_loss(tiny_config, 1), optax.sgd(0.1, momentum=0.9)
    found = []
    for parts in (1, accumulate):
        step = make_train_step(loss, optimizer, parts)
        state = place(init_state(init_adapter(tiny_config, jax.random.key(1)), optimizer))
        for seed in range(3):
            state, means = step(state, place(tiny_params), place_batch(batch_of(8, seed)))
        found.append(leaves((state, means)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def test_rows_must_divide_into_the_parts() -> None:
    step = make_train_step(simple, optax.sgd(0.1), 4)
    batch = place_batch({"x": np.ones((6, 2)), "mask": np.ones((6, 2), bool)})
    with pytest.raises(ValueError, match="6 rows to accumulate over 4 parts; use a multiple of it"):
        step(init_state({"w": jnp.ones(2)}, optax.sgd(0.1)), {}, batch)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_unusable_batches_change_nothing_and_are_counted(accumulate: int) -> None:
    optimizer = adapter_optimizer(0.1, 10, 2)
    step = make_train_step(simple, optimizer, accumulate)
    good = {"x": np.ones((2, 3)), "mask": np.ones((2, 3), bool)}
    empty = good | {"mask": np.zeros((2, 3), bool)}
    broken = [good | {"x": np.array([[1, value, 1], [1, 1, 1]])} for value in (np.nan, np.inf, -np.inf)]
    state, _ = step(init_state({"w": jnp.ones(3)}, optimizer), {}, place_batch(good))
    for index, batch in enumerate((empty, *broken), 1):
        before = leaves((state.params, state.opt_state))
        state, means = step(state, {}, place_batch(batch))
        assert all((a == b).all() for a, b in zip(before, leaves((state.params, state.opt_state)), strict=True))
        assert int(means["skipped"]) == int(state.skipped) == int(state.skipped_in_a_row) == index
    state, _ = step(state, {}, place_batch(good))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (6, 4, 0)
    # The rate follows the updates that happened: two of them, as without the batches between.
    straight = init_state({"w": jnp.ones(3)}, optimizer)
    for _ in range(2):
        straight, _ = step(straight, {}, place_batch(good))
    assert (np.asarray(straight.params["w"]) == np.asarray(state.params["w"])).all()


def test_too_many_skipped_batches_stop_the_run() -> None:
    state = init_state({"w": jnp.ones(3)}, optax.sgd(0.1))
    state = state.replace(step=jnp.int32(90), skipped=jnp.int32(7), skipped_in_a_row=jnp.int32(5))
    check_skipped(state, 6)
    with pytest.raises(FloatingPointError, match=r"the last 5 of 90 batches .*; look at") as stopped:
        check_skipped(state, 5)
    assert "\n" not in str(stopped.value)


def test_a_step_copies_nothing_of_the_target(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    optimizer = optax.adamw(0.1)
    step = make_train_step(distillation_loss(tiny_config, 1), optimizer)
    state: TrainState = place(init_state(init_adapter(tiny_config, jax.random.key(1)), optimizer))
    target, batch = place(tiny_params), place_batch(batch_of(2, 0))
    state, means = step(state, target, batch)
    alive = sum(array.nbytes for array in jax.live_arrays())
    for _ in range(3):
        state, means = step(state, target, batch)
    assert sum(array.nbytes for array in jax.live_arrays()) == alive
    assert float(means["tokens"]) > 0


def test_a_mesh_needs_a_divisor_of_the_devices() -> None:
    assert target_mesh(1).shape == {"data": jax.device_count(), "model": 1}
    with pytest.raises(ValueError, match=r"a target in 7 parts on \d+ devices; use a number that divides"):
        target_mesh(7)
