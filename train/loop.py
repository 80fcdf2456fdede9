"""The training loop: batches in, a progress bar out, checkpoints that survive a kill. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from train.step import TrainState, split_devices


def replicate(tree: Any) -> Any:
    """Place a tree on all local devices, as pmap hands it back; otherwise the second step would compile again."""
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def fit(
    step_fn: Callable[..., tuple[TrainState, dict]],
    state: TrainState,
    frozen: Any,
    batches: Callable[[int], Iterator[np.ndarray]],
    steps: int,
    directory: Path,
    *,
    save_every: int = 200,
    eval_every: int = 200,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    name: str = "train",
) -> TrainState:
    """Train until ``steps`` optimiser steps are done, resuming from the newest checkpoint in ``directory``.

    Args:
        step_fn: from ``train.step.make_train_step``.
        state: the state to start from when there is no checkpoint.
        frozen: what the step reads and never changes.
        batches: ``batches(first_step)`` yields batches ``[rows, length]`` from that step on.
        steps: total number of optimiser steps.
        directory: holds ``checkpoints/`` and ``log.jsonl``.
        save_every: optimiser steps between checkpoints; the last step is always saved.
        eval_every: optimiser steps between evaluations; the last step is always evaluated.
        evaluate: ``params -> figures``, or None.
        name: label of the progress bar.

    Returns:
        The state after the last step. Ctrl-C saves a checkpoint before the exception goes on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state, frozen = replicate(state), replicate(frozen)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    with ocp.CheckpointManager((directory / "checkpoints").absolute(), options=options) as manager:
        if (newest := manager.latest_step()) is not None:
            state = manager.restore(newest, args=ocp.args.StandardRestore(state))
        first = int(state.step)
        stream = batches(first)
        devices = jax.local_device_count()
        bar = tqdm(total=steps, initial=first, desc=name, unit="step", mininterval=1.0)
        try:
            for index in range(first, steps):
                state, means = step_fn(state, frozen, split_devices(next(stream), devices))
                bar.update()
                last = index + 1 == steps
                if (index + 1) % 10 == 0 or last:
                    figures = {key: float(value) for key, value in means.items()}
                    bar.set_postfix({key: f"{value:.3f}" for key, value in figures.items() if key != "tokens"})
                    _log(directory, index + 1, figures)
                if evaluate and ((index + 1) % eval_every == 0 or last):
                    held = evaluate(state.params)
                    _log(directory, index + 1, held)
                    bar.write(f"step {index + 1}: " + ", ".join(f"{key} {value:.4f}" for key, value in held.items()))
                if (index + 1) % save_every == 0 or last:
                    manager.save(index + 1, args=ocp.args.StandardSave(state))
        except KeyboardInterrupt:
            manager.wait_until_finished()
            if manager.latest_step() != int(state.step):
                manager.save(int(state.step), args=ocp.args.StandardSave(state))
            raise
        finally:
            bar.close()
    return state


def _log(directory: Path, step: int, figures: dict[str, float]) -> None:
    with (directory / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **figures}) + "\n")
