"""Decoding whose acceptance is decided beforehand: speed depends on costs alone, also of weights drawn at random.

A table marks every position of the text: a token drafted for it will be accepted, or not. Marks are drawn
independently with one probability, so that acceptance is as the model of a speculative round assumes. Drafting,
verification and commit are the decoder's own; what is committed are the target's own choices.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kangaroo_jax
from kangaroo_jax import decode as dec
from kangaroo_jax.engine import Kept, Options, Run, compiled, plan

REJECTED, ACCEPTED = 0, 1
_SURE = 1e6


def marks(acceptance: float, slots: int, seed: int = 0) -> np.ndarray:
    """Draw the mark of each position, ``[1, slots]``: ACCEPTED with probability ``acceptance``."""
    return (np.random.default_rng(seed).random((1, slots)) < acceptance).astype(np.int32)


def rounds(marks: np.ndarray, start: int, end: int, gamma: int) -> int:
    """Return how many rounds of ``gamma`` drafted tokens commit the positions ``[start, end)``.

    A round that starts at position p drafts tokens for p, p + 1, ...; it commits those before the first one that is
    rejected, and one token of the target's::

        marks 1 1 0 1, gamma 3, from the first on: accepted 2, committed 3; then accepted 1 ...
    """
    count, place = 0, start
    while place < end:
        drafted = marks[0, place : place + gamma]
        place += int(np.cumprod(drafted == ACCEPTED).sum()) + 1
        count += 1
    return count


def expected(acceptance: float, gamma: int) -> float:
    """Return the tokens that a round of ``gamma`` drafted ones commits on average: ``(1 - a^(gamma+1)) / (1 - a)``.

    Leviathan et al. 2023 (2211.17192), equation 1.
    """
    return float(sum(acceptance**power for power in range(gamma + 1)))


@dataclasses.dataclass(frozen=True)
class Marked(dec.Kangaroo):
    """Drafts the mark of the next position in place of a token, after all the work of drafting one."""

    def vocabulary(self, weights: Any) -> None:
        """Return None: a column of the draft head stands for the mark of its number."""

    def propose(self, spec: dec.DecodeSpec, weights: Any, hidden: Any, positions: Any, memory: Any) -> Any:
        """Return logits in which the mark is the most likely token."""
        logits, memory = super().propose(spec, weights, hidden, positions, memory)
        mark = jnp.take_along_axis(weights["marks"], positions + 1, axis=1)
        return jnp.where(jnp.arange(logits.shape[1])[None] == mark, logits + _SURE, logits), memory

    def agree(self, drafted: Any, count: Any, target: Any) -> Any:
        """Accept the longest prefix that is marked so, whatever the target says."""
        return dec.accept_greedy(drafted, count, jnp.full_like(target, ACCEPTED))


class Loop:
    """The compiled decode loop after one prompt, to be run again and again over the same positions.

    Attributes:
        gamma: tokens drafted in each round; 0 decodes plainly.
        start: committed length that each run starts from.
        end: committed length at which it ends.
        compile_seconds: seconds that compiling took.
        state: the state after the latest run.
    """

    def __init__(
        self,
        params: kangaroo_jax.Params,
        gamma: int,
        prompt: Sequence[int],
        tokens: int,
        slots: int,
        extra: Mapping[str, str | None] | None = None,
    ) -> None:
        """Run the prefill and compile the loop.

        Args:
            params: the model.
            gamma: as above.
            prompt: ids.
            tokens: tokens that a run decodes; the prefill's is not one of them.
            slots: cache slots.
            extra: XLA options beside the usual ones.
        """
        method = {"method": "kangaroo", "gamma": gamma, "eta": 0.0} if gamma else {"method": "plain"}
        checked = plan(params, Options(max_new_tokens=tokens + 1, eos_token_id=(), **method))
        run = Run(params, [list(prompt)], checked, Kept(slots, dec.prefill_chunk(len(prompt), slots, 1)), slots)
        self.gamma, self.state, self.controls = gamma, run.state, run.controls
        self.spec, self._weights = checked.spec, dict(run.weights)
        self.start, self.end = len(prompt) + 1, len(prompt) + 1 + tokens
        if gamma:
            drafter = self.spec.drafter
            assert isinstance(drafter, dec.Kangaroo)
            self.spec = dataclasses.replace(self.spec, drafter=Marked(drafter.adapter, exit_layer=drafter.exit_layer))
            self._weights["marks"] = marks(1.0, slots)
        self._program, self.compile_seconds = compiled(dec.decode, {0: self.spec}, *self._args(), extra=extra)

    def seconds(self, marks: np.ndarray | None = None) -> float:
        """Decode once and return the wall time.

        Args:
            marks: which drafted tokens are accepted; needed where something is drafted.
        """
        state = self.state
        self.state = state.replace(
            length=jnp.full_like(state.length, self.start),
            finish=jnp.full_like(state.finish, dec.RUNNING),
            stats=state.stats.replace(rounds=jnp.zeros_like(state.stats.rounds)),
        )
        if marks is not None:
            self._weights["marks"] = jnp.asarray(marks)
        args = jax.block_until_ready(self._args())
        began = time.perf_counter()
        self.state = jax.block_until_ready(self._program(*args))
        return time.perf_counter() - began

    def _args(self) -> tuple[Any, ...]:
        return self._weights, self.state, self.controls, np.int32(2**31 - 1)
