"""One optimisation step under ``jax.pmap``: the only place that names a device axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

Tree = Any
LossFn = Callable[[Tree, Tree, Tree], tuple[jax.Array, dict[str, jax.Array]]]


class TrainState(struct.PyTreeNode):
    """What changes from step to step.

    Attributes:
        step: optimiser steps done, an int32 scalar.
        params: the trained params (never the frozen target's).
        opt_state: the optimiser's state.
    """

    step: jax.Array
    params: Tree
    opt_state: Tree


def init_state(params: Tree, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def make_train_step(loss_fn: LossFn, optimizer: optax.GradientTransformation) -> Callable[..., tuple[TrainState, dict]]:
    """Build ``step(state, frozen, batch) -> (state, means)``.

    Args:
        loss_fn: ``(params, frozen, batch) -> (sum of losses, sums)``; ``sums`` maps names to sums over tokens and has
            ``"tokens"``, their number. Sums, not means: over devices they add up to the mean over all tokens,
            however the tokens are spread.
        optimizer: the optax optimiser.

    Returns:
        A pmapped function. ``state`` and ``frozen`` are replicated, not stacked; every leaf of ``batch`` is
        ``[devices, rows, ...]``. The state is donated.
    """

    def step(state: TrainState, frozen: Tree, batch: Tree) -> tuple[TrainState, dict]:
        grads, sums = jax.grad(loss_fn, has_aux=True)(state.params, frozen, batch)
        sums = jax.lax.psum(sums, "data")
        count = jnp.maximum(sums["tokens"], 1.0)
        grads = jax.tree.map(lambda g: g / count, jax.lax.psum(grads, "data"))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        means = {name: value / count for name, value in sums.items() if name != "tokens"}
        means |= {"tokens": sums["tokens"], "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state), means

    return jax.pmap(step, "data", in_axes=(None, None, 0), out_axes=None, donate_argnums=0)


def make_eval_step(loss_fn: LossFn) -> Callable[[Tree, Tree, Tree], dict]:
    """Build ``evaluate(params, frozen, batch) -> sums`` over all devices, with the same arguments as a step."""

    def evaluate(params: Tree, frozen: Tree, batch: Tree) -> dict:
        return jax.lax.psum(loss_fn(params, frozen, batch)[1], "data")

    return jax.pmap(evaluate, "data", in_axes=(None, None, 0), out_axes=None)


def split_devices(batch: Tree, devices: int) -> Tree:
    """Reshape every leaf from ``[rows, ...]`` to ``[devices, rows / devices, ...]``.

    Raises:
        ValueError: if the rows do not divide evenly.
    """

    def split(leaf: np.ndarray) -> np.ndarray:
        if leaf.shape[0] % devices:
            raise ValueError(f"batch of {leaf.shape[0]} rows on {devices} devices; use a multiple of {devices}")
        return leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:])

    return jax.tree.map(split, batch)
