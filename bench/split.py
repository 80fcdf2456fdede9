"""Where the time of a method goes: prefill, shallow layers, what proposes tokens, deep layers, and the rest.

What a part costs is measured apart (``measure_parts``), as a share of a step of plain decoding. How often it ran is in
the answers. So a split needs no clock inside the loop, which would change what it measures.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bench.answers import Answer
from bench.methods import Ready
from kangaroo_jax import decode as dec
from kangaroo_jax.engine import compiled
from kangaroo_jax.tuning import Costs, measure_costs

PARTS = ("prefill", "shallow", "propose", "deep", "rest")
"""Parts of a split, in order; ``propose`` is adapter and LM head, or all that another method drafts with."""
NEW_TOKENS = 48


def time_split(
    answers: Sequence[Answer], plain: Sequence[Answer], costs: Mapping[str, float] | None
) -> dict[str, float] | None:
    """Return the seconds of each part in a method's answers; they sum to its wall time.

    ``rest`` is what is left of the measured time: acceptance, commit, the loop. Where the parts alone sum to more than
    was measured, as noise can have it, they are scaled down and ``rest`` is 0. A method that has no such part has 0
    there. Plain decoding's steps are all ``deep``.

    Args:
        answers: the method's.
        plain: plain decoding's to the same questions: its seconds a step are what ``costs`` are shares of.
        costs: the method's entry of ``measure_parts``; None where nothing could be measured.
    """
    if costs is None:
        return None
    rounds, drafted, decode = _counts(answers)
    steps, _, plain_decode = _counts(plain)
    step = plain_decode / steps if steps else 0.0
    steps_drafted = _draft_steps(answers)
    parts = {
        "shallow": (rounds + steps_drafted) * costs.get("shallow", 0.0) * step,
        "propose": (steps_drafted * costs.get("propose", 0.0) + rounds * costs.get("draft", 0.0)) * step,
        "deep": (rounds * costs["deep"] + drafted * costs.get("row", 0.0)) * step,
    }
    spent = sum(parts.values())
    scale = min(1.0, decode / spent) if spent else 1.0
    parts = {name: scale * seconds for name, seconds in parts.items()}
    prefill = sum(turn.prefill_seconds for answer in answers for turn in answer.turns)
    return {"prefill": prefill} | parts | {"rest": max(decode - sum(parts.values()), 0.0)}


def measure_parts(
    methods: Mapping[str, Ready], prompt: Sequence[int], repeats: int = 7, tick: Callable[[], Any] = lambda: None
) -> dict[str, dict[str, float] | None]:
    """Measure the parts of each method's rounds, as shares of a step of plain decoding.

    ``shallow`` is a pass of one row, ``propose`` one of adapter and head. ``deep`` is a verification that drafted
    nothing, and ``row`` what each drafted token adds to it, where rows without one are left out, as by native kernels:
    of the layers above the exit layer, or of the whole model where the draft shares no layers with it (its commit
    included). ``draft`` is then what a round takes to draft. Without an adapter, an exit layer's parts cannot be
    measured, and the method has None.

    Args:
        methods: ready to run, by name.
        prompt: what the rounds go on from.
        repeats: timings behind each median.
        tick: called after each method.
    """
    measured: dict[int, Costs] = {}
    found: dict[str, dict[str, float] | None] = {}
    for name, ready in methods.items():
        spec, params = ready.spec, ready.params
        exit_layer = spec.drafter.exit_layer
        if spec.gamma == 0:
            found[name] = {"deep": 1.0}
        elif exit_layer == 0:
            found[name] = _whole_model(ready, prompt, repeats)
        elif params.draft is None:
            found[name] = None
        else:
            if exit_layer not in measured:
                shared = [m.spec for m in methods.values() if m.spec.gamma and m.spec.drafter.exit_layer == exit_layer]
                measured[exit_layer] = measure_costs(
                    params.replace(draft=dataclasses.replace(params.draft, exit_layer=exit_layer)),
                    gammas=[each.gamma for each in shared],
                    rows=sorted({1, *(each.rows for each in shared)}),
                    repeats=repeats,
                )
            costs = measured[exit_layer]
            parts = {"shallow": costs.shallow, "propose": costs.propose}
            parts |= _verification(ready, costs.verify.__getitem__)
            if not spec.drafter.reads_adapter:  # It drafts with less than what was measured.
                del parts["propose"]
            found[name] = {part: seconds / costs.plain for part, seconds in parts.items()}
        tick()
    return found


@dataclasses.dataclass(frozen=True)
class Nothing(dec.Drafter):
    """Has so many rows verified, and accepts nothing."""

    width: int = 8
    agree = staticmethod(lambda drafted, count, target: jnp.zeros_like(count))

    def rows(self, gamma: int) -> int:
        """Return the rows."""
        return self.width

    def draft(self, spec: dec.DecodeSpec, weights: dec.Weights, state: dec.DecodeState, controls: Any) -> dec.Draft:
        """Return tokens for all rows."""
        tokens = jnp.zeros((len(state.length), self.width - 1), jnp.int32)
        return dec.token_draft(spec, weights, state, tokens, jnp.full_like(state.length, self.width - 1), None)


def _verification(ready: Ready, cost: Callable[[int], float]) -> dict[str, float]:
    """Return ``deep`` and ``row`` of a method by what a verification of so many rows costs."""
    fewest, most = ready.fewest_rows, ready.spec.rows
    if ready.params.kernels == "xla" or fewest == most:
        return {"deep": cost(most)}
    deep = cost(fewest)
    return {"deep": deep, "row": max(cost(most) - deep, 0.0) / (most - fewest)}


def _whole_model(ready: Ready, prompt: Sequence[int], repeats: int) -> dict[str, float]:
    """Return what a round takes that verifies rows of the whole model, and drafting, as shares of a plain step."""
    params, config = ready.params, ready.params.config
    plain = Ready("plain", params, dec.DecodeSpec(config, dec.PLAIN, 0))
    prompt = prompt[: max(config.max_position_embeddings - NEW_TOKENS, 1)]

    def step(ready: Ready) -> float:
        stats = ready.generate(prompt, NEW_TOKENS, eos_token_id=()).stats
        return stats.decode_seconds / max(stats.rounds, 1)

    def share(timer: Callable[[], float]) -> float:
        timer(), step(plain)
        return statistics.median(timer() / step(plain) for _ in range(repeats))

    def of_rows(rows: int) -> float:
        return share(partial(step, Ready("rows", params, dec.DecodeSpec(config, Nothing(rows), 1))))

    return {"draft": share(_drafting(ready, prompt))} | _verification(ready, of_rows)


def _drafting(ready: Ready, prompt: Sequence[int]) -> Callable[[], float]:
    """Return a function that drafts again and again at the end of a generation's text: seconds a draft."""
    run = ready.begin(prompt, NEW_TOKENS, ())
    while not run.finished:
        run.advance()
    controls, most = run.controls, NEW_TOKENS // 2

    def timer() -> float:
        args = (run.weights, jax.tree.map(jnp.copy, run.state), controls, jnp.int32(most))
        program, _ = compiled(_draft_again, {0: ready.spec}, *args)
        began = time.perf_counter()
        jax.block_until_ready(program(*jax.block_until_ready(args)))
        return (time.perf_counter() - began) / most

    return timer


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _draft_again(
    spec: dec.DecodeSpec, weights: dec.Weights, state: dec.DecodeState, controls: dec.Controls, times: Int[Array, ""]
) -> Any:
    def once(index: Array, carry: tuple[dec.DecodeState, Any]) -> tuple[dec.DecodeState, Any]:
        state, _ = carry
        # Another text each time, of which nothing can be drafted ahead.
        state = state.replace(length=state.length - index % 2 * 2 + 1, finish=state.finish * 0)
        found = spec.drafter.draft(spec, weights, state, controls)
        return state.replace(drafter=found.drafter), (found.tokens, found.count, found.tree)

    result = jax.eval_shape(partial(once, jnp.int32(0)), (state, None))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), result)
    return jax.lax.fori_loop(0, times, once, (state, zeros))


def _draft_steps(answers: Sequence[Answer]) -> int:
    """Return how often a draft model ran: for every drafted token, or those that confidences tell.

    Siblings have no confidence of their own, 0; and a round that is sure of everything was looked up.
    """
    turns = [turn for answer in answers for turn in answer.turns]
    rounds = [pair for turn in turns for pair in zip(turn.confidence, turn.draft_lengths, strict=True)]
    return sum(
        count if not values else 0 if min(values) == 1 else sum(value > 0 for value in values)
        for values, count in rounds
    )


def _counts(answers: Sequence[Answer]) -> tuple[int, int, float]:
    """Return rounds, drafted tokens and seconds of decoding, the prefill apart."""
    turns = [turn for answer in answers for turn in answer.turns]
    return (
        sum(len(turn.accept_lengths) for turn in turns),
        sum(sum(turn.draft_lengths) for turn in turns),
        sum(turn.wall_time - turn.prefill_seconds for turn in turns),
    )
