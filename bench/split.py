"""Where the time of a method goes: prefill, shallow layers, adapter and head, deep layers, and the rest.

What a part costs is measured apart (``measure_parts``), as a share of a step of plain decoding. How often it ran is in
the answers. So a split needs no clock inside the loop, which would change what it measures.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kangaroo_jax
from bench.answers import Answer
from bench.methods import Ready
from kangaroo_jax import decode as dec
from kangaroo_jax.tuning import Costs, measure_costs

PARTS = ("prefill", "shallow", "propose", "deep", "rest")
"""Parts of a split, in order; ``propose`` is adapter and LM head."""
NEW_TOKENS = 48


def time_split(
    answers: Sequence[Answer], plain: Sequence[Answer], costs: Mapping[str, float] | None
) -> dict[str, float] | None:
    """Return the seconds of each part in a method's answers; they sum to its wall time.

    ``rest`` is what is left of the measured time: drafting by other means than shallow layers, adapter and head;
    acceptance, commit, the loop. Where the parts alone sum to more than was measured, as noise can have it, they are
    scaled down and ``rest`` is 0. A method that has no such part has 0 there. Plain decoding's steps are all ``deep``.

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
    parts = {
        "shallow": (rounds + drafted) * costs.get("shallow", 0.0) * step,
        "propose": drafted * costs.get("propose", 0.0) * step,
        "deep": rounds * costs["deep"] * step,
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

    ``shallow`` is a pass of one row, ``propose`` one of adapter and head, ``deep`` a verification: of the layers above
    the exit layer, or of the whole model where the draft shares no layers with it (its commit included). Without an
    adapter, an exit layer's parts cannot be measured, and the method has None.

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
            found[name] = {"deep": _whole_model(params, spec.rows, prompt, repeats)}
        elif params.draft is None:
            found[name] = None
        else:
            if exit_layer not in measured:
                shared = [m.spec for m in methods.values() if m.spec.gamma and m.spec.drafter.exit_layer == exit_layer]
                measured[exit_layer] = measure_costs(
                    params.replace(draft=dataclasses.replace(params.draft, exit_layer=exit_layer)),
                    gammas=[each.gamma for each in shared],
                    rows=sorted({each.rows for each in shared}),
                    repeats=repeats,
                )
            costs = measured[exit_layer]
            parts = {"shallow": costs.shallow, "propose": costs.propose, "deep": costs.verify[spec.rows]}
            if not spec.drafter.reads_adapter:  # It drafts with less than what was measured.
                del parts["propose"]
            found[name] = {part: seconds / costs.plain for part, seconds in parts.items()}
        tick()
    return found


@dataclasses.dataclass(frozen=True)
class Nothing(dec.Drafter):
    """Drafts nothing, and has so many rows verified."""

    width: int = 8

    def rows(self, gamma: int) -> int:
        """Return the rows."""
        return self.width

    def draft(self, spec: dec.DecodeSpec, weights: dec.Weights, state: dec.DecodeState, controls: Any) -> dec.Draft:
        """Return a draft without tokens."""
        nothing = state.tokens[:, :1] * 0
        return dec.token_draft(spec, weights, state, nothing, nothing[:, 0], None)


def _whole_model(params: kangaroo_jax.Params, rows: int, prompt: Sequence[int], repeats: int) -> float:
    """Return what a round takes that verifies so many rows of the whole model, as a share of a plain step."""
    config = params.config
    plain = Ready("plain", params, dec.DecodeSpec(config, dec.PLAIN, 0))
    wide = Ready("rows", params, dec.DecodeSpec(config, Nothing(rows), 1))
    prompt = prompt[: max(config.max_position_embeddings - NEW_TOKENS, 1)]

    def step(ready: Ready) -> float:
        stats = ready.generate(prompt, NEW_TOKENS, eos_token_id=()).stats
        return stats.decode_seconds / max(stats.rounds, 1)

    step(plain), step(wide)
    return statistics.median(step(wide) / step(plain) for _ in range(repeats))


def _counts(answers: Sequence[Answer]) -> tuple[int, int, float]:
    """Return rounds, drafted tokens and seconds of decoding, the prefill apart."""
    turns = [turn for answer in answers for turn in answer.turns]
    return (
        sum(len(turn.accept_lengths) for turn in turns),
        sum(sum(turn.draft_lengths) for turn in turns),
        sum(turn.wall_time - turn.prefill_seconds for turn in turns),
    )
