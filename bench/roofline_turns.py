"""What ``bench.roofline`` times turn by turn beside the parts: bandwidth, empty loops, and whole decoding."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import kangaroo_jax
from bench import forced, machine
from kangaroo_jax import decode as dec
from kangaroo_jax.engine import HOST_LOOPS, ONE_GRAPH
from kangaroo_jax.tuning import Costs

GRAPHS: dict[str, Mapping[str, str | None]] = {
    "default": HOST_LOOPS,
    "one": ONE_GRAPH,
    "no-triton": {**ONE_GRAPH, "xla_gpu_enable_triton_gemm": "False"},
    "skip-temp": {**ONE_GRAPH, "xla_gpu_command_buffer_update_mode": "SKIP_TEMP"},
}
"""XLA options by the name that ``--graph`` gives them: XLA's own, those of ``generate`` on a GPU, and others."""
PROMPT = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        gammas: tokens drafted in each round of forced acceptance.
        acceptances: probabilities that a drafted token is accepted.
        rows: rows to time a verification of.
        tokens: tokens that a run decodes.
        repeats: turns; in each of them everything is timed once.
        megabytes: MiB of the matrix that bandwidth is measured with.

    Raises:
        ValueError: if one is out of range; the message calls it as the command does.
    """

    gammas: tuple[int, ...] = (3, 6)
    acceptances: tuple[float, ...] = (0.6, 0.7, 0.8)
    rows: tuple[int, ...] = tuple(range(1, 17))
    tokens: int = 128
    repeats: int = 7
    megabytes: int = dataclasses.field(default_factory=machine.megabytes)

    def __post_init__(self) -> None:
        counts = {"gamma": min(self.gammas), "rows": min(self.rows), "tokens": self.tokens, "repeats": self.repeats}
        for name, value in (counts | {"megabytes": self.megabytes}).items():
            if value < 1:
                raise ValueError(f"--{name} is {value}; it must be at least 1")
        for rate in self.acceptances:
            if not 0 <= rate <= 1:
                raise ValueError(f"--acceptance is {rate}; give a probability, 0 to 1")


class Turns:
    """Everything that is timed; one turn times it once, in the same order, so that neighbours can be compared."""

    def __init__(self, params: kangaroo_jax.Params, settings: Settings, graphs: Sequence[str]) -> None:
        """Compile the loops, and run everything once.

        Args:
            params: the model.
            settings: what to measure.
            graphs: keys of ``GRAPHS``.

        Raises:
            ValueError: if the model's context is too short for so many tokens, or it has no adapter.
        """
        config = params.config
        length = max(min(PROMPT, config.max_position_embeddings // 2), 1)
        if length + settings.tokens >= config.max_position_embeddings:
            most = config.max_position_embeddings - length - 1
            raise ValueError(f"--tokens is {settings.tokens}; after {length} tokens {params.name} takes at most {most}")
        self.prompt = np.random.default_rng(0).integers(0, config.vocab_size, length).tolist()
        longest = max(length + settings.tokens + 1, length + 2 * max(settings.rows))
        widest = dec.DecodeSpec(config, dec.Kangaroo(exit_layer=1), max(settings.gammas))
        self.slots, self.tokens = dec.cache_slots(widest, longest), settings.tokens
        self.timers: dict[Any, Callable[[], float]] = {
            "matvec": machine.matvec(settings.megabytes),
            "copy": machine.copy(settings.megabytes),
        }
        self.loops: dict[tuple[str, int], forced.Loop] = {}
        for graph in graphs:
            self.timers["iteration", graph] = machine.iteration(GRAPHS[graph])
            for gamma in (*settings.gammas, 0):
                loop = forced.Loop(params, gamma, self.prompt, settings.tokens, self.slots, GRAPHS[graph])
                self.loops[graph, gamma] = loop
                for rate in settings.acceptances if gamma else (None,):
                    self.timers["decode", graph, gamma, rate] = self._decoding(loop, rate)
        for timer in self.timers.values():
            timer()
        self.times: dict[Any, list[float]] = {name: [] for name in self.timers}

    def _decoding(self, loop: forced.Loop, rate: float | None) -> Callable[[], float]:
        marks = None if rate is None else forced.marks(rate, self.slots)
        return lambda: loop.seconds(marks)

    def turn(self) -> None:
        """Time everything once."""
        for name, timer in self.timers.items():
            self.times[name].append(timer())

    def median(self, *name: Any) -> float:
        """Return the median of what a timer gave."""
        return statistics.median(self.times[name if len(name) > 1 else name[0]])

    def speedup(self, graph: str, gamma: int, rate: float) -> list[float]:
        """Return plain decoding's time over that of forced acceptance, turn by turn."""
        plain, mine = (self.times["decode", graph, *key] for key in ((0, None), (gamma, rate)))
        return [a / b for a, b in zip(plain, mine, strict=True)]

    def forced(self, graph: str, gamma: int, rate: float, costs: Costs, parts: Mapping[str, int]) -> dict[str, Any]:
        """Return the speedup at one acceptance, and what models of a round make of it."""
        loop = self.loops[graph, gamma]
        rounds = forced.rounds(forced.marks(rate, self.slots), loop.start, loop.end, gamma)
        once = self.median("iteration", graph)
        # Every part was timed in a loop of its own; a drafted token, and the rest of a round, take one iteration each.
        draft, rest = costs.shallow + costs.propose - once, costs.shallow + costs.verify[loop.spec.rows] - once
        ratios = self.speedup(graph, gamma, rate)
        return {
            "acceptance": rate,
            "gamma": gamma,
            "expected_tokens_per_round": forced.expected(rate, gamma),
            "tokens_per_round": self.tokens / rounds,
            "by_bytes": self.tokens * parts["plain"] / rounds / (gamma * parts["draft"] + parts["plain"]),
            "by_parts": self.tokens * costs.plain / rounds / (gamma * draft + rest),
            "by_rounds": self.tokens * costs.plain / costs.decode_seconds(gamma, rounds, gamma * rounds),
            "measured": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
