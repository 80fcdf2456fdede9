"""Resuming, stopping, and devices: the params must not depend on either."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.loop import fit
from train.step import TrainState, init_state, make_train_step, split_devices


def loss(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    errors = jnp.square(batch["x"] @ (params["w"] * frozen["scale"]) - batch["y"])
    total = jnp.sum(errors, where=batch["mask"])
    return total, {"loss": total, "tokens": batch["mask"].sum().astype(jnp.float32)}


def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
    for index in itertools.count(first):
        rng = np.random.default_rng(index)
        yield {"x": rng.normal(size=(6, 3)), "y": rng.normal(size=6), "mask": rng.random(6) < 0.6}


def start() -> TrainState:
    return init_state({"w": jnp.array([1.0, -2.0, 0.5])}, optax.adam(0.1))


def run(directory: Path, steps: int, stream: Any = batches, **options: Any) -> TrainState:
    step = make_train_step(loss, optax.adam(0.1))
    return fit(step, start(), {"scale": jnp.float32(2.0)}, stream, steps, directory, **options)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 7)
    run(tmp_path / "parts", 3, save_every=2)
    again = run(tmp_path / "parts", 7, save_every=2)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        assert (np.asarray(one) == np.asarray(other)).all()
    assert int(again.step) == 7
    done = run(tmp_path / "parts", 7)
    assert (np.asarray(done.params["w"]) == np.asarray(whole.params["w"])).all()


def test_ctrl_c_ends_the_step_saves_and_resumes(tmp_path: Path) -> None:
    def interrupted(first: int) -> Iterator[dict[str, np.ndarray]]:
        for index, batch in enumerate(batches(first), first):
            if index == 4:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 9, interrupted, save_every=100)
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["5"]
    again, whole = run(tmp_path / "stopped", 9), run(tmp_path / "whole", 9)
    assert (np.asarray(again.params["w"]) == np.asarray(whole.params["w"])).all()


def test_evaluations_and_figures_are_logged(tmp_path: Path) -> None:
    run(tmp_path, 5, eval_every=2, evaluate=lambda params: {"held_out_w": float(params["w"][0])})
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "held_out_w" in record] == [2, 4, 5]
    assert [record["step"] for record in records if "loss" in record] == [5]


def test_a_run_of_skipped_batches_ends_in_an_error(tmp_path: Path) -> None:
    def broken(first: int) -> Iterator[dict[str, np.ndarray]]:
        for index, batch in enumerate(batches(first), first):
            yield batch if index < 4 else batch | {"x": batch["x"] * np.nan}

    with pytest.raises(FloatingPointError, match="the last 16 of 20 batches were skipped"):
        run(tmp_path, 100, broken, max_skipped=12)


def test_rows_must_divide_over_the_devices() -> None:
    batch = {"x": np.zeros((6, 3)), "mask": np.zeros(6)}
    assert jax.tree.map(np.shape, split_devices(batch, 2)) == {"x": (2, 3, 3), "mask": (2, 3)}
    with pytest.raises(ValueError, match="6 rows on 4 devices; use a multiple of 4"):
        split_devices(batch, 4)
