"""Timers of whole rounds and of the parts they are made of: loops on the device, as decoding runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from kangaroo_jax import decode as dec
from kangaroo_jax.engine import LINES, Kept, Options, Plan, Run, compiled, plan
from kangaroo_jax.model import embed, line, logits, run_layers
from kangaroo_jax.params import Params

ITERATIONS = 64
"""Most iterations of one timing; fewer where they take longer than ``SECONDS``, but never below 4."""
SECONDS = 0.1


def rounds_plan(params: Params, gamma: int, eta: float = 0.0) -> Plan:
    """Return a checked plan of greedy decoding that no token ends; gamma 0 is plain."""
    budget = params.config.max_position_embeddings
    method: dict[str, Any] = {"method": "plain"}
    if gamma:
        method = {"gamma": gamma, "eta": eta, "method": "kangaroo", **LINES}
    return plan(params, Options(max_new_tokens=budget, eos_token_id=(), **method))


def round_timer(
    params: Params,
    gamma: int,
    eta: float,
    prompt: Sequence[int],
    slots: int,
    extra: Mapping[str, str | None] | None = None,
) -> Callable[[], float]:
    """Return a function that runs the real decode loop from the end of the prompt: seconds a round.

    ``extra`` are XLA options beside the usual ones, here and in ``part_timers``.
    """
    checked = rounds_plan(params, gamma, eta)
    context = min(slots - checked.spec.rows, params.config.max_position_embeddings)
    run = Run(params, [list(prompt)], checked, Kept(slots, dec.prefill_chunk(len(prompt), slots, 1)), context)
    start, static = run.state, {0: checked.spec}

    def timed(count: int) -> tuple[float, float]:
        args = (run.weights, jax.block_until_ready(jax.tree.map(jnp.copy, start)), run.controls, np.int32(count))
        program, _ = compiled(dec.decode, static, *args, extra=extra)
        began = time.perf_counter()
        state = jax.block_until_ready(program(*args))
        return time.perf_counter() - began, int(state.stats.rounds[0])

    return _steady(timed)


def _steady(timed: Callable[[int], tuple[float, float]]) -> Callable[[], float]:
    """Return a function that gives seconds per iteration, of as many as take about ``SECONDS``; warm after this."""
    timed(4)
    took, done = timed(4)
    count = int(min(max(SECONDS * max(done, 1) / max(took, 1e-9), 4), ITERATIONS))

    def timer() -> float:
        took, done = timed(count)
        return took / max(done, 1)

    return timer


def part_timers(
    params: Params,
    prompt: Sequence[int],
    slots: int,
    widths: Sequence[int],
    extra: Mapping[str, str | None] | None = None,
) -> dict[Any, Callable[[], float]]:
    """Return timers of the parts alone, each a loop on the device over one of them."""
    checked = rounds_plan(params, 1)
    spec, weights = checked.spec, {"target": params.target, "adapter": params.adapter}
    tokens = jnp.asarray(np.resize(np.asarray(prompt, np.int32), (1, slots)))

    def timer(function: Any, width: int) -> Callable[[], float]:
        def timed(count: int) -> tuple[float, float]:
            caches = jax.block_until_ready(dec.allocate(spec, 1, slots, params.dtype))
            args = (weights, caches, tokens, np.int32(count))
            program, _ = compiled(function, {0: spec, 1: width}, *args, extra=extra)
            began = time.perf_counter()
            jax.block_until_ready(program(*args))
            return time.perf_counter() - began, count

        return _steady(timed)

    timers = {"shallow": timer(_shallow, 1), "propose": timer(_propose, 1)}
    return timers | {("verify", width): timer(_verify, width) for width in widths}


def _looped(part: Callable[..., tuple[Any, dec.Caches]]) -> Any:
    """Return a jitted loop over a part, which gets another stretch of the text each time, so that none is left out."""

    @partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
    def loop(
        spec: dec.DecodeSpec,
        width: int,
        weights: dec.Weights,
        caches: dec.Caches,
        tokens: Int[Array, "1 S"],
        count: Int[Array, ""],
    ) -> Any:
        def once(index: Array, carry: tuple[Any, dec.Caches]) -> tuple[Any, dec.Caches]:
            at = index % (tokens.shape[1] - width)
            block = jax.lax.dynamic_slice_in_dim(tokens, at, width, axis=1)
            return part(spec, weights, carry[1], block, at + jnp.arange(width)[None])

        one = jnp.zeros((1, width), jnp.int32)
        result = jax.eval_shape(partial(part, spec), weights, caches, one, one)[0]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), result)
        return jax.lax.fori_loop(0, count, once, (zeros, caches))

    return loop


@_looped
def _shallow(spec: dec.DecodeSpec, weights: Any, caches: dec.Caches, tokens: Array, positions: Array) -> Any:
    target, (layers, adapter), exit_layer = weights["target"], caches, spec.drafter.exit_layer
    context = line(positions, layers[0].slots)
    x, shallow = run_layers(spec.config, target, embed(target, tokens), context, layers[:exit_layer], 0, exit_layer)
    return x, ((*shallow, *layers[exit_layer:]), adapter)


@_looped
def _propose(spec: dec.DecodeSpec, weights: Any, caches: dec.Caches, tokens: Array, positions: Array) -> Any:
    hidden = embed(weights["target"], tokens)  # Stands for the exit layer's states.
    assert isinstance(spec.drafter, dec.Kangaroo)
    scores, adapter = spec.drafter.propose(spec, weights, hidden, positions, caches[1])
    return dec.surest(weights, scores)[:2], (caches[0], adapter)


@_looped
def _verify(spec: dec.DecodeSpec, weights: Any, caches: dec.Caches, tokens: Array, positions: Array) -> Any:
    config, target, (layers, adapter) = spec.config, weights["target"], caches
    exit_layer, last = spec.drafter.exit_layer, config.num_hidden_layers
    context = line(positions, layers[0].slots)
    hidden = embed(target, tokens)  # Stands for the exit layer's states.
    x, deep = run_layers(config, target, hidden, context, layers[exit_layer:], exit_layer, last)
    return dec.most_likely(logits(config, target, x)), ((*layers[:exit_layer], *deep), adapter)
