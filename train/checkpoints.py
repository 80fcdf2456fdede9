"""Checkpoints of a run: written in the background by one host, read by it, and sent to the others."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from kangaroo_jax.files import first_line, read_json, write_json
from kangaroo_jax.store import FORMAT, await_orbax, quiet_orbax, system_error

CHECKPOINTS = "checkpoints"
"""Their folder in that of a run."""
GOES_ON = "the same command goes on from the last checkpoint"
_RECORD = "format.json"


def check_format(directory: Path) -> None:
    """Refuse states whose fused weights, and what the optimiser knows of each, have their columns in another order.

    Args:
        directory: of the checkpoints; it need not exist.

    Raises:
        ValueError: if there are such states.
    """
    if not any(item.name.isdigit() for item in directory.glob("*")):
        return
    advice = "end the run with the version of kangaroo_jax that began it, or delete that folder to start anew"
    record = read_json(directory / _RECORD, advice) if (directory / _RECORD).is_file() else {"format": 1}
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{directory} has states of format {record.get('format')!r:.20}, and this version of kangaroo_jax goes on "
            f"from format {FORMAT}; {advice}"
        )


class Checkpoints:
    """The newest few states of a run; Orbax's CheckpointManager on the first host.

    A state is copied to the host before ``save`` returns: the step that follows may reuse its buffers.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        """Open the folder, or make it.

        Args:
            directory: of the checkpoints.
            keep: how many are kept.

        Raises:
            ValueError: if it holds states of another format.
            OSError: if the folder cannot be made.
        """
        self._directory = directory.absolute()
        self._writes = jax.process_index() == 0
        self._manager: ocp.CheckpointManager | None = None
        self._quiet = contextlib.ExitStack()
        if self._writes:
            alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False, multiprocessing_options=alone)
            check_format(self._directory)
            self._directory.mkdir(parents=True, exist_ok=True)
            write_json(self._directory / _RECORD, {"format": FORMAT})
            self._quiet.enter_context(quiet_orbax())  # Until the end: a failure in the background is told at any time.
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def newest(self) -> int:
        """Return the step of the newest checkpoint, 0 when there is none."""
        found = 0 if self._manager is None else self._manager.latest_step() or 0
        return int(self._everywhere(found))

    def restore(self, state: Any) -> Any:
        """Return the newest state as NumPy arrays, or ``state`` when there is none.

        Args:
            state: has the structure, shapes and dtypes.

        Raises:
            ValueError: if the checkpoint is damaged, or of another structure.
        """
        step = self.newest()
        state = jax.device_get(state)
        if not step:
            return state
        if self._manager is not None:
            try:
                state = self._manager.restore(step, args=ocp.args.StandardRestore(state))
            except Exception as error:  # Orbax's and TensorStore's errors have no common base.
                raise ValueError(
                    f"{self._directory / str(step)} cannot be read ({first_line(error)}); remove it to go on from an "
                    "earlier one"
                ) from error
        return self._everywhere(state)

    def save(self, step: int, state: Any) -> None:
        """Start to write a state; an earlier one that is still being written is waited for.

        Raises:
            OSError: if the earlier one could not be written, or this one not begun.
        """
        if self._manager is not None:
            try:
                self._manager.save(step, args=ocp.args.StandardSave(jax.device_get(state)), force=True)
            except Exception as error:  # As above.
                self._failed(error)

    def close(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: if it could not be.
        """
        with self._quiet:
            if self._manager is not None:
                try:
                    self._manager.close()
                except Exception as error:  # As above.
                    self._failed(error)

    def _failed(self, error: Exception) -> NoReturn:
        await_orbax()
        if reason := system_error(error):
            raise OSError(reason.errno, reason.strerror, str(self._directory)) from error
        raise OSError(f"writing {self._directory} failed ({first_line(error)})") from error

    def _everywhere(self, tree: Any) -> Any:
        return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree
