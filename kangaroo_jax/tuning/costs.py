"""What the parts of decoding take on this machine: the cost model behind ``tune`` and the benchmarks' time splits.

A round that drafts k tokens takes ``round + k * draft`` seconds. Both numbers come from whole rounds, run by the real
decode loop with one drafted token and with as many as its rows hold, so that they contain everything. What of that
time is the shallow layers', the adapter's and the deep layers' comes from loops over these parts alone; what is left is
the rest: acceptance, commit, counters, the loops themselves, and what the parts cost more where their weights have
been driven out of a cache by the other parts.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kangaroo_jax import decode as dec
from kangaroo_jax.checks import integer
from kangaroo_jax.params import Params
from kangaroo_jax.tuning.timers import part_timers, round_timer, rounds_plan

PROMPT, NEW_TOKENS = 64, 128


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds that the parts of greedy decoding of one sequence take; medians, see ``measure_costs``.

    Attributes:
        plain: a step of plain decoding.
        shallow: embedding and layers ``[0, l)`` on one row.
        propose: adapter, LM head, argmax and confidence on one row.
        verify: layers ``[l, N)``, final norm, LM head and argmax, by the number of rows.
        round: a round without its drafted tokens, by the rows of its verification: the shallow layers on the newest
            token, the verification, commit and counters.
        draft: what each drafted token adds to a round, by the rows of its verification.
        slots: cache slots; attention goes over all of them.
        dtype: dtype of weights and caches.
        device: what it was measured on, as JAX names it.
        repeats: timings behind each median.
        kernels: what multiplied, as ``Params.kernels`` says it.
    """

    plain: float
    shallow: float
    propose: float
    verify: Mapping[int, float]
    round: Mapping[int, float]
    draft: Mapping[int, float]
    slots: int
    dtype: str
    device: str
    repeats: int
    kernels: str = "xla"

    def decode_seconds(self, gamma: int, rounds: float, drafted: float) -> float:
        """Return what rounds of at most ``gamma`` drafted tokens take together; gamma 0 is plain decoding.

        Args:
            gamma: largest number of tokens drafted in a round.
            rounds: how many rounds (steps).
            drafted: how many tokens they drafted in all.
        """
        if gamma == 0:
            return rounds * self.plain
        rows = self._rows(gamma)
        return rounds * self.round[rows] + drafted * self.draft[rows]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; rows become strings there."""
        return {
            name: {str(rows): seconds for rows, seconds in value.items()} if isinstance(value, Mapping) else value
            for name, value in vars(self).items()
        }

    def _rows(self, gamma: int) -> int:
        """Return the rows of a verification of ``gamma`` drafted tokens: the fewest measured that hold them."""
        fitting = [rows for rows in self.round if rows > gamma]
        if not fitting:
            most = max(self.round) - 1
            raise ValueError(
                f"gamma is {gamma}, and rounds of at most {most} drafted tokens were measured; measure more"
            )
        return min(fitting)


def measure_costs(
    params: Params,
    *,
    gammas: Sequence[int] = (7,),
    rows: Sequence[int] = (),
    prompt: Sequence[int] | None = None,
    slots: int | None = None,
    repeats: int = 7,
    tick: Callable[[], Any] = lambda: None,
    extra: Mapping[str, str | None] | None = None,
) -> Costs:
    """Measure what the parts of decoding take, compilation and prefill apart; see ``CostTimers``.

    Args:
        params: as for ``CostTimers``, and so are gammas, rows, prompt, slots and extra.
        gammas: the gammas to answer for.
        rows: further numbers of rows.
        prompt: what the rounds go on from.
        slots: cache slots.
        repeats: timings of each part.
        tick: called after every turn.
        extra: XLA options.

    Raises:
        ValueError: if there is no adapter, an argument is out of range, or the memory does not hold the caches.
    """
    integer("repeats", repeats, 1)
    timers = CostTimers(params, gammas=gammas, rows=rows, prompt=prompt, slots=slots, extra=extra)
    for _ in range(repeats):
        timers.turn()
        tick()
    return timers.costs()


class CostTimers:
    """Timers of the parts of decoding; all of them run once in a turn.

    Each timing is divided by that of a plain step of the same turn; the medians of these ratios, times the median plain
    step, are the costs: load that comes and goes falls on both.

    Attributes:
        slots: cache slots of all parts.
    """

    def __init__(
        self,
        params: Params,
        *,
        gammas: Sequence[int] = (7,),
        rows: Sequence[int] = (),
        prompt: Sequence[int] | None = None,
        slots: int | None = None,
        extra: Mapping[str, str | None] | None = None,
    ) -> None:
        """Compile the parts and run each once.

        Args:
            params: from ``load``, or anything of the same form: of any shape and dtype, also with random weights.
            gammas: the gammas that ``Costs.decode_seconds`` shall answer for; what matters of them is the rows.
            rows: further numbers of rows to time a verification with.
            prompt: token ids the rounds go on from; default: 64 drawn at random.
            slots: cache slots; default: as many as a generation of 128 tokens after the prompt has.
            extra: XLA options beside the usual ones, as of ``engine.compiled``.

        Raises:
            ValueError: if there is no adapter, an argument is out of range, or the memory does not hold the caches.
        """
        most = max((integer("gammas", gamma, 1) for gamma in gammas), default=0)
        if not most:
            raise ValueError("gammas is empty; pass at least one")
        config = params.config
        if prompt is None:
            length = max(min(PROMPT, config.max_position_embeddings // 2), 1)
            prompt = np.random.default_rng(0).integers(0, config.vocab_size, length).tolist()
        classes = sorted({rounds_plan(params, gamma).spec.rows for gamma in gammas})
        if slots is None:
            longest = min(len(prompt) + NEW_TOKENS, config.max_position_embeddings)
            slots = dec.cache_slots(rounds_plan(params, most).spec, longest)
        integer("slots", slots, len(prompt) + 2 * max([*classes, *rows]))
        widths = sorted({*classes, *(integer("rows", number, 1) for number in rows)})

        self._timers: dict[Any, Callable[[], float]] = {"plain": round_timer(params, 0, 0.0, prompt, slots, extra)}
        for count in classes:
            self._timers[count, "one"] = round_timer(params, count - 1, 2.0, prompt, slots, extra)
            self._timers[count, "all"] = round_timer(params, count - 1, 0.0, prompt, slots, extra)
        self._timers |= part_timers(params, prompt, slots, widths, extra)
        self._params, self.slots, self._classes, self._widths = params, slots, classes, widths
        self._turns: list[dict[Any, float]] = []

    def turn(self) -> None:
        """Time every part once."""
        self._turns.append({name: timer() for name, timer in self._timers.items()})

    def costs(self) -> Costs:
        """Return what the turns so far, at least one, have shown."""
        turns = [dict(turn) for turn in self._turns]
        plain = statistics.median(turn["plain"] for turn in turns)
        for turn in turns:
            for count in self._classes:  # One round drafts 1 token, the other count - 1.
                turn[count, "draft"] = (turn[count, "all"] - turn[count, "one"]) / (count - 2)
                turn[count, "round"] = turn[count, "one"] - turn[count, "draft"]

        def cost(name: Any) -> float:
            return plain * statistics.median(turn[name] / turn["plain"] for turn in turns)

        return Costs(
            plain=plain,
            shallow=cost("shallow"),
            propose=cost("propose"),
            verify={width: cost(("verify", width)) for width in self._widths},
            round={count: cost((count, "round")) for count in self._classes},
            draft={count: cost((count, "draft")) for count in self._classes},
            slots=self.slots,
            dtype=str(self._params.dtype),
            device=jax.local_devices()[0].device_kind,
            repeats=len(turns),
            kernels=self._params.kernels,
        )
