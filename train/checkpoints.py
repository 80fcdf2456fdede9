"""Checkpoints of a run: written in the background by one host, read by it, and sent to the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from kangaroo_jax.store.files import first_line


class Checkpoints:
    """The newest few states of a run; Orbax's CheckpointManager on the first host.

    A state is copied to the host before ``save`` returns: the step that follows may reuse its buffers.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        """Open the folder, or make it.

        Args:
            directory: of the checkpoints.
            keep: how many are kept.
        """
        self._directory = directory.absolute()
        self._writes = jax.process_index() == 0
        self._manager: ocp.CheckpointManager | None = None
        if self._writes:
            alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False, multiprocessing_options=alone)
            self._directory.mkdir(parents=True, exist_ok=True)
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
        """Start to write a state; an earlier one that is still being written is waited for."""
        if self._manager is not None:
            self._manager.save(step, args=ocp.args.StandardSave(jax.device_get(state)), force=True)

    def close(self) -> None:
        """Wait until all is written."""
        if self._manager is not None:
            self._manager.close()

    def _everywhere(self, tree: Any) -> Any:
        return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree
