"""Predicted speedup of every gamma and eta: counted rounds and drafted tokens, times what they are measured to take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from kangaroo_jax import decode as dec
from kangaroo_jax.engine import Options, Run, plan
from kangaroo_jax.params import Params
from kangaroo_jax.tuning.costs import Costs, measure_costs
from kangaroo_jax.tuning.outcome import Setting
from kangaroo_jax.tuning.replay import replay, trace

COST_REPEATS = 7
PREFILLS = 3


def predict(
    index: int,
    model: Params,
    prompts: list[list[int]],
    max_gamma: int,
    etas: Sequence[float],
    max_new_tokens: int,
    tick: Callable[[], Any],
) -> tuple[list[Setting], Costs]:
    """Return every setting of one adapter with its predicted speedup, and the costs that rests on.

    Args:
        index: the adapter's number, for the settings.
        model: the model with this adapter.
        prompts: ids of every prompt.
        max_gamma: the largest gamma.
        etas: the thresholds; the adapter's own is added.
        max_new_tokens: tokens to generate for each prompt.
        tick: called ``len(prompts) + COST_REPEATS`` times.

    Raises:
        ValueError: if no prompt gives more than one token.
    """
    draft = model.draft
    assert draft is not None
    traces, prefills = [], {"plain": 0.0, "kangaroo": 0.0}
    for prompt in prompts:
        traces.append(trace(model, prompt, max_gamma, max_new_tokens))
        for method in prefills:
            prefills[method] += _prefill_seconds(model, prompt, method, max_gamma, max_new_tokens)
        tick()
    if not any(len(traced.token_ids) > 1 for traced in traces):
        raise ValueError("no prompt gives more than one token, and the first is the prefill's; pass other prompts")
    middle = sorted(prompts, key=len)[len(prompts) // 2]
    spec = plan(model, Options(method="kangaroo", gamma=max_gamma)).spec
    longest = min(len(middle) + max_new_tokens, model.config.max_position_embeddings)
    # A measured round goes on from the prompt, however small the budget.
    slots = dec.cache_slots(spec, max(longest, len(middle) + spec.rows))
    gammas = range(1, max_gamma + 1)
    costs = measure_costs(model, gammas=gammas, prompt=middle, slots=slots, repeats=COST_REPEATS, tick=tick)
    plain = prefills["plain"] + costs.plain * sum(len(traced.token_ids) - 1 for traced in traces)

    def setting(gamma: int, eta: float) -> Setting:
        runs = [replay(traced, gamma, eta) for traced in traces]
        rounds, drafted = (sum(getattr(run, name) for run in runs) for name in ("rounds", "drafted"))
        committed = sum(sum(run.accept_lengths) for run in runs)
        seconds = prefills["kangaroo"] + costs.decode_seconds(gamma, rounds, drafted)
        rates = (committed / rounds, drafted / rounds)
        return Setting(index, draft.exit_layer, gamma, eta, *rates, predicted=plain / seconds)

    return [setting(gamma, eta) for gamma in gammas for eta in sorted({*etas, float(draft.eta)})], costs


def _prefill_seconds(model: Params, prompt: list[int], method: str, gamma: int, max_new_tokens: int) -> float:
    """Return what a prefill takes, compilation apart; the median."""
    checked = plan(model, Options(method=method, gamma=gamma, max_new_tokens=max_new_tokens))
    return statistics.median(Run(model, [prompt], checked).prefill_seconds for _ in range(PREFILLS))
