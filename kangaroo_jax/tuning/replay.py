"""What any gamma and eta would have done, from one run that drafts at every position of the text.

Greedy drafting from a position depends on nothing but the text before it, and the text is the same for every gamma and
eta: it is plain decoding's. So it is enough to know, for every position, the chain of drafts that starts there, how
far the target agrees with it, and how sure the draft model was of each. A run of ordinary rounds shows the chains at
its own rounds' starts alone, and other settings start elsewhere. Here every round drafts ``gamma`` tokens (eta 0),
verifies them, and commits one: a chain for each position, by the decoder's own round::

    text        a b c d e f         drafted from b:  c d x y    agreed 2, then e is the target's own
    agreed      . 2 1 0 3 ...       from c:          d x y z    agreed 1

A round of (gamma 3, eta 0) that starts after b accepts c d, commits c d e, and the next one starts after e. With an eta
that the second draft's confidence does not reach, it drafts c d and stops; and so on, exactly. What is left to chance
is rounding: verifications of 8 and of 16 rows need not round alike. An adapter that reads final states also reads its
own guesses of them in drafts that were accepted, and here none: of such a one, rounds are nearly the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kangaroo_jax import decode as dec
from kangaroo_jax.engine import LINES, Options, Run, compiled, plan
from kangaroo_jax.params import Params

_ROUNDS_A_CALL = 16
"""Rounds between two moments in which Ctrl-C is heard."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """Drafts from every position of one text.

    Attributes:
        token_ids: the text's ids, as plain decoding has them.
        confidence: confidence of the j-th token drafted after the first ``i + 1`` ids, ``[N - 1, G]`` for N ids.
        agreed: how many drafts from there the target agrees with, up to G, ``[N - 1]``.
    """

    token_ids: tuple[int, ...]
    confidence: Float[np.ndarray, "N G"]
    agreed: Int[np.ndarray, " N"]

    @property
    def gamma(self) -> int:
        """The largest gamma that can be replayed."""
        return self.confidence.shape[1]


@dataclasses.dataclass(frozen=True)
class Replay:
    """The rounds that a setting has on a traced text; fields are named and meant as in ``Stats``.

    Attributes:
        accept_lengths: tokens committed in each round.
        draft_lengths: tokens drafted in each round.
        accepted_drafts: drafted tokens of each round that the target accepted.
    """

    accept_lengths: tuple[int, ...]
    draft_lengths: tuple[int, ...]
    accepted_drafts: tuple[int, ...]

    @property
    def rounds(self) -> int:
        """Verify rounds."""
        return len(self.accept_lengths)

    @property
    def drafted(self) -> int:
        """Tokens drafted in all rounds."""
        return sum(self.draft_lengths)


def trace(params: Params, prompt: Sequence[int], gamma: int, max_new_tokens: int) -> Trace:
    """Decode greedily, one token a round, with ``gamma`` tokens drafted in each.

    Args:
        params: from ``load``, with an adapter.
        prompt: ids.
        gamma: tokens drafted from every position.
        max_new_tokens: token budget.

    Raises:
        ValueError: as ``generate``.
    """
    checked = plan(params, Options(max_new_tokens=max_new_tokens, gamma=gamma, eta=0.0, method="kangaroo", **LINES))
    run = Run(params, [list(prompt)], checked)
    state = run.state
    while int(state.finish[0]) == dec.RUNNING:
        args = (run.weights, state, run.controls, np.int32(_ROUNDS_A_CALL))
        program, _ = compiled(_walk, {0: checked.spec}, *args)
        state = jax.block_until_ready(program(*args))
    tokens, length, stats = jax.device_get((state.tokens, state.length, state.stats))
    rounds = int(stats.rounds[0])
    return Trace(
        token_ids=tuple(tokens[0, len(prompt) : int(length[0])].tolist()),
        confidence=np.asarray(stats.confidence[0, :rounds, :gamma], np.float32),
        agreed=np.asarray(stats.accepted_drafts[0, :rounds]),
    )


def replay(traced: Trace, gamma: int, eta: float) -> Replay:
    """Return the rounds of a greedy run with these settings on a traced text.

    Args:
        traced: from ``trace``.
        gamma: largest number of tokens drafted in a round, at most the trace's.
        eta: confidence below which drafting stops.

    Raises:
        ValueError: if ``gamma`` is larger than the trace's.
    """
    if gamma > traced.gamma:
        raise ValueError(f"gamma is {gamma}, and {traced.gamma} tokens were drafted from each position; trace again")
    # As the device compares: in fp32, and the token that is not sure is kept.
    unsure = traced.confidence[:, :gamma] < np.float32(min(eta, 2.0))
    drafted = np.where(unsure.any(axis=1), unsure.argmax(axis=1) + 1, gamma)
    accepted = np.minimum(drafted, traced.agreed)
    place, rounds = 0, []
    while place < len(drafted):
        committed = min(int(accepted[place]) + 1, len(drafted) - place)
        rounds.append((committed, int(drafted[place]), int(accepted[place])))
        place += committed
    columns = list(zip(*rounds, strict=True)) or [(), (), ()]
    return Replay(*columns)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _walk(
    spec: dec.DecodeSpec, weights: dec.Weights, state: dec.DecodeState, controls: dec.Controls, rounds: Int[Array, ""]
) -> dec.DecodeState:
    """Run rounds that commit one token each: a budget of one token cuts every block, and is renewed."""
    limit = state.limit

    def unfinished(carry: tuple[Array, dec.DecodeState]) -> Array:
        return (carry[1].finish == dec.RUNNING).any() & (carry[0] < rounds)

    def step(carry: tuple[Array, dec.DecodeState]) -> tuple[Array, dec.DecodeState]:
        state = dec.speculative_round(spec, weights, carry[1].replace(limit=carry[1].length + 1), controls)
        cut = (state.finish == dec.LENGTH) & (state.length < limit)
        return carry[0] + 1, state.replace(limit=limit, finish=jnp.where(cut, dec.RUNNING, state.finish))

    start: Any = (jnp.zeros((), jnp.int32), state)
    return jax.lax.while_loop(unfinished, step, start)[1]
