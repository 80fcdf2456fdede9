"""The adapter that has decoded best so far, on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kangaroo_jax.model import KangarooConfig, LlamaConfig
from kangaroo_jax.store import load_adapter, save_adapter

BEST = "best"
"""Name of the folder in a run's workspace."""
MEASURE = "compression_rate"


class Best:
    """Keeps the adapter with the highest compression rate; of equal ones the first."""

    def __init__(self, folder: Path, config: LlamaConfig, draft: KangarooConfig) -> None:
        """Go on with what is in ``folder``, an adapter directory that need not exist yet."""
        self.folder, self._config, self._draft = folder, config, draft

    def offer(self, step: int, params: Any, figures: Mapping[str, float]) -> None:
        """Keep the params if they are the best.

        Args:
            step: of the run; an adapter of a later step is of a run that was killed since its checkpoint.
            params: fp32.
            figures: have ``compression_rate``, and go into the record.
        """
        record = self._record()
        if record is None or record["step"] >= step or figures[MEASURE] > record[MEASURE]:
            save_adapter(self.folder, self._config, self._draft, params, {"step": step, **figures})

    def read(self) -> tuple[int, Any] | None:
        """Return step and fp32 params of the best one, or None if nothing was kept.

        Raises:
            ValueError: if what is there is of another draft model.
        """
        record = self._record()
        if record is None:
            return None
        found, params = load_adapter(self.folder, self._config, "float32", self._draft.exit_layer)
        if found.adapter != self._draft.adapter:
            raise ValueError(f"{self.folder} holds an adapter of another kind, {found.adapter.kind}; delete it")
        return record["step"], jax.device_get(params)

    def _record(self) -> dict[str, Any] | None:
        file = self.folder / "adapter_config.json"
        return json.loads(file.read_text(encoding="utf-8"))["training"] if file.is_file() else None
