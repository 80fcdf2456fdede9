"""What ``tune`` returns: the settings it looked at, what it chose, and how that is kept."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from kangaroo_jax.model import KangarooConfig
from kangaroo_jax.params import Params
from kangaroo_jax.store import save_choice
from kangaroo_jax.tuning.costs import Costs


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to draft, over all prompts.

    Attributes:
        adapter: which of the adapters that were compared, counted from 0.
        exit_layer: the adapter's exit layer.
        gamma: largest number of tokens drafted in a round.
        eta: confidence below which drafting stops.
        compression_rate: tokens committed per round.
        drafted: tokens drafted per round.
        predicted: speedup over plain decoding that the costs predict.
        measured: speedup measured with real runs; None where none were made.
    """

    adapter: int
    exit_layer: int
    gamma: int
    eta: float
    compression_rate: float
    drafted: float
    predicted: float
    measured: float | None = None

    @property
    def pays(self) -> bool:
        """Whether real runs were faster than plain decoding."""
        return self.measured is not None and self.measured > 1

    @property
    def error(self) -> float | None:
        """Prediction over measurement, less 1; None where nothing was measured."""
        return None if self.measured is None else self.predicted / self.measured - 1


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The outcome of ``tune``; ``print`` shows a table.

    A speedup is the sum over prompts of plain decoding's time over that of Kangaroo's, prefill included.

    Attributes:
        params: the model with the chosen adapter, gamma, eta and method: what ``generate`` takes from now on.
        chosen: the fastest of the settings that were measured.
        settings: all settings, from the fastest predicted to the slowest.
        before: gamma and eta that the first adapter had.
        adapters: directories of the adapters; (None,) for the one that ``params`` had.
        costs: what the parts of decoding take, for each adapter.
        plain_tokens_per_second: speed of plain decoding in the runs that measured, prefill included.
        identical: whether all runs gave the token ids of plain decoding; in bf16 ties may differ, see
            ``verify_lossless``.
        prompts: number of prompts.
        new_tokens: tokens generated for them by plain decoding.
        max_new_tokens: token budget of each.
        repeats: measured runs of each setting on each prompt.
        versions: of the packages that decided the speed.
    """

    params: Params = dataclasses.field(repr=False)
    chosen: Setting
    settings: tuple[Setting, ...] = dataclasses.field(repr=False)
    before: tuple[int, float]
    adapters: tuple[Path | None, ...]
    costs: tuple[Costs, ...] = dataclasses.field(repr=False)
    plain_tokens_per_second: float
    identical: bool
    prompts: int
    new_tokens: int
    max_new_tokens: int
    repeats: int
    versions: dict[str, str]

    @property
    def pays(self) -> bool:
        """Whether the chosen setting is faster than plain decoding."""
        return self.chosen.pays

    @property
    def draft(self) -> KangarooConfig:
        """The draft model with the choice in it; its method is plain where no setting pays."""
        assert self.params.draft is not None
        return self.params.draft

    def save(
        self, directory: str | os.PathLike[str] | None = None, *, out: str | os.PathLike[str] | None = None
    ) -> Path:
        """Store the choice with the adapter, so that ``load`` and ``generate`` use it from then on.

        Args:
            directory: the adapter's directory; needed unless ``tune`` was told it.
            out: directory to write a copy of the adapter to, which gets the choice; default: none, the adapter's own
                record is rewritten, and no other file or field of it.

        Returns:
            The directory that was written.

        Raises:
            ValueError: if the directory is not known, not this adapter's or cannot be written, or ``out`` exists.
        """
        source = self.adapters[self.chosen.adapter] if directory is None else Path(directory)
        if source is None:
            raise ValueError("the adapter's directory is not known; pass save(DIR), or tune(..., adapters=[DIR])")
        return save_choice(source, self.params.config, self.draft, self.note(), None if out is None else Path(out))

    def note(self) -> dict[str, Any]:
        """Return how the choice was made, as it is stored beside it."""
        costs = self.costs[self.chosen.adapter]
        return {
            "predicted_speedup": round(self.chosen.predicted, 3),
            "measured_speedup": None if self.chosen.measured is None else round(self.chosen.measured, 3),
            "device": costs.device,
            "dtype": costs.dtype,
            "kernels": costs.kernels,
            "versions": self.versions,
            "prompts": self.prompts,
            "max_new_tokens": self.max_new_tokens,
            "repeats": self.repeats,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON has it."""
        plain = ("pays", "plain_tokens_per_second", "identical", "prompts", "new_tokens", "max_new_tokens", "repeats")
        return {
            "model": self.params.name,
            "method": self.draft.method,
            "chosen": dataclasses.asdict(self.chosen),
            **{name: getattr(self, name) for name in plain},
            "before": {"gamma": self.before[0], "eta": self.before[1]},
            "adapters": [None if path is None else str(path) for path in self.adapters],
            "costs": [costs.as_dict() for costs in self.costs],
            "versions": self.versions,
            "settings": [dataclasses.asdict(setting) for setting in self.settings],
        }

    def __str__(self) -> str:
        """Return a table: of every adapter and gamma the best eta, and all that was measured."""
        best = {(setting.adapter, setting.gamma): setting for setting in reversed(self.settings)}
        shown = [setting for setting in self.settings if setting.measured or setting in best.values()]
        names = [path.name if path else self.params.name for path in self.adapters]
        width = max(len("adapter"), *map(len, names)) + 2 if len(names) > 1 else 0
        lines = [f"{'adapter':{width}}"[:width] + "gamma   eta  tokens/round  drafted  predicted  measured"]
        for setting in shown:
            measured = "" if setting.measured is None else f"{setting.measured:8.2f}x"
            lines.append(
                f"{names[setting.adapter]:{width}}"[:width]
                + f"{setting.gamma:5d}  {setting.eta:4.2f}  {setting.compression_rate:12.2f}  {setting.drafted:7.2f}"
                f"  {setting.predicted:8.2f}x  {measured}{'  <- chosen' if setting is self.chosen else ''}".rstrip()
            )
        return "\n".join([*lines, "", *self._summary()])

    def _summary(self) -> list[str]:
        """Return what the table rests on, and what follows from it."""
        costs, chosen = self.costs[self.chosen.adapter], self.chosen
        rounds = ", ".join(f"{seconds / costs.plain:.2f} with {rows} rows" for rows, seconds in costs.round.items())
        drafts = ", ".join(f"{seconds / costs.plain:.3f}" for seconds in costs.draft.values())
        errors = [abs(setting.error) for setting in self.settings if setting.error is not None]
        choice = f"gamma {chosen.gamma}, eta {chosen.eta:g}: {chosen.measured:.2f}x"
        return [
            f"model       {self.params.name}, {costs.dtype} on {costs.device}, {costs.kernels} kernels; "
            f"{self.prompts} prompts, {self.new_tokens} new tokens, {self.plain_tokens_per_second:.0f} tokens/s plain",
            f"costs       in plain steps of {1000 * costs.plain:.2f} ms: a round {rounds}; a drafted token {drafts}",
            f"prediction  within {100 * max(errors):.1f} % of what was measured",
            f"identical   {'yes' if self.identical else 'NO (python -m kangaroo_jax verify says why)'}",
            f"before      gamma {self.before[0]}, eta {self.before[1]:g}",
            f"choice      {choice}" if self.pays else f"choice      plain decoding: no setting pays (best: {choice})",
        ]
