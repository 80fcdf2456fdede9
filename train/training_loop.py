"""The training loop: batches in, a progress bar out, checkpoints that survive a kill. Knows no model."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from kangaroo_jax.progress import EVERY, progress
from train.checkpoints import CHECKPOINTS, Checkpoints
from train.run_log import Recorder
from train.step import TrainState, check_skipped, place, place_batch
from workshop.command import Terminated

_ASK_EVERY = 10
_SHOWN = ("loss", "acceptance", "top1")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Something that is measured now and then.

    Attributes:
        every: steps between two measurements; the last step is always measured.
        run: ``(step, params) -> figures``.
    """

    every: int
    run: Callable[[int, Any], Mapping[str, float]]


@contextlib.contextmanager
def deferred_stops() -> Iterator[list[int]]:
    """Collect the numbers of the first SIGINT and of every SIGTERM; a second Ctrl-C interrupts at once.

    A step donates the state it is given: an exception between the step's return and the assignment of its result would
    leave nothing to save.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # Only the main thread may set a handler.
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(
    step_fn: Callable[..., tuple[TrainState, dict]],
    state: TrainState,
    frozen: Any,
    batches: Callable[[int], Iterator[Any]],
    steps: int,
    directory: Path,
    *,
    save_every: int = 200,
    keep: int = 2,
    log_every: int = 10,
    evaluations: Sequence[Evaluation] = (),
    name: str = "train",
    mesh: Mesh | None = None,
    max_skipped: int = 20,
    rate: Callable[[int], Any] | None = None,
    wandb: str | None = None,
    settings: Any = None,
) -> TrainState:
    """Train until ``steps`` optimiser steps are done, resuming from the newest checkpoint in ``directory``.

    Args:
        step_fn: from ``train.step.make_train_step``.
        state: the state to start from when there is no checkpoint.
        frozen: what the step reads and never changes, placed on the devices already (``train.step.place``).
        batches: ``batches(first_step)`` yields batches from that step on: arrays, or trees of arrays, ``[rows, ...]``.
        steps: total number of optimiser steps.
        directory: holds ``checkpoints/`` and what ``train.run_log`` writes.
        save_every: optimiser steps between checkpoints; the last step is always saved.
        keep: number of checkpoints that are kept.
        log_every: steps between two records; a record is of its step, but for ``tokens_per_second``.
        evaluations: measured now and then; nothing of them is lost to a kill, for they come before the checkpoint.
        name: label of the progress bar.
        mesh: the mesh of ``step_fn``, if it has one.
        max_skipped: batches in a row that may be skipped; looked at when figures are written.
        rate: the learning rate of an optimiser step, counted from 0; recorded as ``learning_rate``.
        wandb: project at Weights & Biases, or None.
        settings: shown there.

    Returns:
        The state after the last step.

    Raises:
        FloatingPointError: after too many skipped batches in a row.
        KeyboardInterrupt: after Ctrl-C, at the end of the step in progress, with a checkpoint saved.
        Terminated: likewise after SIGTERM.
    """
    checkpoints = Checkpoints(directory / CHECKPOINTS, keep)
    with contextlib.closing(checkpoints), deferred_stops() as stops:
        state = checkpoints.restore(state)
        first = int(state.step)
        writes = jax.process_index() == 0
        recorder = Recorder(directory, first, wandb, settings) if writes else None
        state, stream = place(state, mesh), batches(first)
        with (
            contextlib.closing(recorder) if recorder else contextlib.nullcontext(),
            progress(total=steps, initial=first, desc=name, unit="step", mininterval=1.0, disable=not writes) as bar,
        ):
            meter = _Meter()
            for done in range(first + 1, steps + 1):
                state, means = step_fn(state, frozen, place_batch(next(stream), mesh))
                meter.count(means)
                last = done == steps
                if done % log_every == 0 or last:
                    check_skipped(state, max_skipped)
                    figures = meter.read()
                    meter.restart()
                    if rate is not None:
                        figures["learning_rate"] = float(rate(done - 1 - int(figures.get("skipped", 0))))
                    bar.set_postfix(_shown(figures), refresh=False)
                    _write(recorder, done, figures)
                elif writes and (done == first + 1 or meter.seconds > EVERY):
                    bar.set_postfix(_shown(meter.read()), refresh=False)
                bar.update()
                for evaluation in evaluations:
                    if done % evaluation.every == 0 or last:
                        held = evaluation.run(done, state.params)
                        _write(recorder, done, held)
                        if writes and held:
                            bar.write(f"step {done}: {_line(held)}")
                        meter.restart()
                stop = 0 if last else _agreed(stops, done)
                if done % save_every == 0 or last or stop:
                    checkpoints.save(done, state)
                if stop:
                    raise KeyboardInterrupt if stop == signal.SIGINT else Terminated
    return state


def _agreed(stops: Sequence[int], step: int) -> int:
    """Return the signal to stop for, or 0; several hosts ask each other now and then, and stop at the same step."""
    asked = stops[0] if stops else 0
    if jax.process_count() == 1:
        return asked
    return int(multihost_utils.process_allgather(np.int32(asked)).max()) if step % _ASK_EVERY == 0 else 0


class _Meter:
    """Figures of the steps since the last record; nothing waits for the device before it is read."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin to measure the time anew."""
        self._tokens: list[Any] = []
        self._means: dict[str, Any] = {}
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds that are measured."""
        return time.perf_counter() - self._began

    def count(self, means: dict[str, Any]) -> None:
        self._tokens.append(means.get("tokens", 0))
        self._means = means

    def read(self) -> dict[str, float]:
        """Return the means of the last step, and the tokens per second of all that are measured."""
        figures = {key: float(value) for key, value in self._means.items()}  # Waits for the step.
        return figures | {"tokens_per_second": float(sum(map(float, self._tokens))) / self.seconds}


def _shown(figures: Mapping[str, float]) -> dict[str, str]:
    """Return the figures that stand beside the bar."""
    shown = {key: f"{figures[key]:.3f}" for key in _SHOWN if key in figures}
    return shown | {"tokens/s": f"{figures['tokens_per_second']:,.0f}"}


def _line(figures: Mapping[str, float]) -> str:
    """Return the figures as text; of several adapters one of each."""
    shown = {key: value for key, value in figures.items() if isinstance(value, float)}
    if any("/" in key for key in shown):
        shown = {key: value for key, value in shown.items() if key.endswith(("/held_out_loss", "/compression_rate"))}
    return ", ".join(f"{key} {value:.4f}" for key, value in shown.items())


def _write(recorder: Recorder | None, step: int, figures: Mapping[str, float]) -> None:
    if recorder is not None:
        recorder.write(step, figures)
