"""The training loop: batches in, a progress bar out, checkpoints that survive a kill. Knows no model."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from jax.sharding import Mesh
from tqdm import tqdm

from train.step import TrainState, check_skipped, place, place_batch


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event that is set; a second one interrupts at once.

    A step donates the state it is given: an exception between the step's return and the assignment of its result would
    leave nothing to save.
    """
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # Only the main thread may set a handler.
        yield asked
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def fit(
    step_fn: Callable[..., tuple[TrainState, dict]],
    state: TrainState,
    frozen: Any,
    batches: Callable[[int], Iterator[Any]],
    steps: int,
    directory: Path,
    *,
    save_every: int = 200,
    eval_every: int = 200,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    name: str = "train",
    mesh: Mesh | None = None,
    max_skipped: int = 20,
) -> TrainState:
    """Train until ``steps`` optimiser steps are done, resuming from the newest checkpoint in ``directory``.

    Args:
        step_fn: from ``train.step.make_train_step``.
        state: the state to start from when there is no checkpoint.
        frozen: what the step reads and never changes, placed on the devices already (``train.step.place``).
        batches: ``batches(first_step)`` yields batches from that step on: arrays, or trees of arrays, ``[rows, ...]``.
        steps: total number of optimiser steps.
        directory: holds ``checkpoints/`` and ``log.jsonl``.
        save_every: optimiser steps between checkpoints; the last step is always saved.
        eval_every: optimiser steps between evaluations; the last step is always evaluated.
        evaluate: ``params -> figures``, or None.
        name: label of the progress bar.
        mesh: the mesh of ``step_fn``, if it has one.
        max_skipped: batches in a row that may be skipped.

    Returns:
        The state after the last step.

    Raises:
        FloatingPointError: after too many skipped batches in a row; looked for every tenth step.
        KeyboardInterrupt: after Ctrl-C, at the end of the step in progress, with a checkpoint saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = place(state, mesh)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    with (
        ocp.CheckpointManager((directory / "checkpoints").absolute(), options=options) as manager,
        deferred_interrupt() as interrupted,
    ):
        if (newest := manager.latest_step()) is not None:
            state = manager.restore(newest, args=ocp.args.StandardRestore(state))
        first = int(state.step)
        stream = batches(first)
        with tqdm(total=steps, initial=first, desc=name, unit="step", mininterval=1.0) as bar:
            for done in range(first + 1, steps + 1):
                state, means = step_fn(state, frozen, place_batch(next(stream), mesh))
                bar.update()
                last = done == steps
                if done % 10 == 0 or last:
                    check_skipped(state, max_skipped)
                    figures = {key: float(value) for key, value in means.items()}
                    bar.set_postfix({key: f"{value:.3f}" for key, value in figures.items() if key != "tokens"})
                    _log(directory, done, figures)
                if evaluate and (done % eval_every == 0 or last):
                    held = evaluate(state.params)
                    _log(directory, done, held)
                    bar.write(f"step {done}: " + ", ".join(f"{key} {value:.4f}" for key, value in held.items()))
                if done % save_every == 0 or last or interrupted.is_set():
                    manager.save(done, args=ocp.args.StandardSave(state))
                if interrupted.is_set():
                    raise KeyboardInterrupt
    return state


def _log(directory: Path, step: int, figures: dict[str, float]) -> None:
    with (directory / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **figures}) + "\n")
