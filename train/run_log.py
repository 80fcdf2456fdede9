"""Where the figures of a run go: a JSONL file, always; TensorBoard if it is there; Weights & Biases when asked."""

from __future__ import annotations

import importlib.util
import json
import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kangaroo_jax.files import whole_file

LOG = "log.jsonl"
SEEN = "seen_tokens"
"""The figure that says how many tokens have been trained on until a step, without padding."""


class Recorder:
    """Writes figures by step; a resumed run goes on in the same files, behind the step it resumes from.

    Attributes:
        directory: holds ``log.jsonl``; ``tensorboard/`` if tensorboardX is installed; ``wandb/`` when it is asked for.
    """

    def __init__(self, directory: Path, step: int = 0, wandb: str | None = None, settings: Any = None) -> None:
        """Open the files.

        Args:
            directory: of the run.
            step: what is there already; records of later steps, of a run that was killed, are dropped.
            wandb: project at Weights & Biases, or None. Its own environment variables hold (``WANDB_MODE=offline``).
            settings: shown there beside the run.

        Raises:
            ValueError: if a library is not installed.
        """
        require_libraries(wandb)
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._log = directory / LOG
        _drop_after(self._log, step)
        self._board = _Board(directory / "tensorboard", step) if importlib.util.find_spec("tensorboardX") else None
        self._wandb = None if wandb is None else _start_wandb(directory, wandb, settings)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures of one step; names go to all places as they are."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        if self._board is not None:
            self._board.write(step, figures)
        if self._wandb is not None:
            self._wandb.log(dict(figures), step=step)

    def close(self) -> None:
        """Write out what is buffered."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class _Board:
    """TensorBoard's file, written in this thread.

    tensorboardX's own writer has a thread; when a full disk ends that, its queue fills and the caller waits for ever.
    """

    _EVERY = 10.0  # Seconds between two flushes, which wait for the disk.

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2, summary_pb2
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        self._flushed = 0.0
        if step:  # TensorBoard drops what a killed run has written of later steps.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        values = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        summary = self._summary.Summary(value=values)
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > self._EVERY:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def read_log(log: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of a run: name -> (step, value), in order; values that are not finite are left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in _records(log):
        step = record.pop("step")
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((step, value))
    return curves


def _records(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; what a kill or a crash of the machine has cut short or garbled is left out."""
    records = []
    for line in log.read_bytes().splitlines() if log.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _drop_after(log: Path, step: int) -> None:
    kept = [record for record in _records(log) if record["step"] <= step]
    with whole_file(log) as staged:
        staged.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def require_libraries(wandb: str | None = None) -> None:
    """Raise ValueError if a library that figures need is not installed; for a look before long work."""
    for name, needed in (("matplotlib", True), ("wandb", wandb is not None)):
        if needed and importlib.util.find_spec(name) is None:
            extra = "wandb" if name == "wandb" else "train"
            raise ValueError(f"training needs {name}, which is not installed: pip install 'kangaroo-jax[{extra}]'")


def _start_wandb(directory: Path, project: str, settings: Any) -> Any:
    import wandb

    # One run for all processes that go on with it.
    marker = directory / "wandb-run.txt"
    if not marker.is_file():
        marker.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return wandb.init(
        project=project,
        id=marker.read_text(encoding="utf-8").strip(),
        resume="allow",
        dir=str(directory),
        name=directory.name,
        config=settings,
    )
