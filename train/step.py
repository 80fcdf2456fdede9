"""One optimisation step, placed on devices in one of two ways: the only place that names a device axis.

``jax.pmap`` when every device holds the whole target: rows are split over the devices. ``jax.jit`` over a mesh
``("data", "model")`` when the target is spread over devices: rows are split over "data", its matrices over "model".
The loss and the update are the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = Any
LossFn = Callable[[Tree, Tree, Tree], tuple[jax.Array, dict[str, jax.Array]]]


class TrainState(struct.PyTreeNode):
    """What changes from step to step.

    Attributes:
        step: batches seen, an int32 scalar. The learning rate follows the optimiser's own count in ``opt_state``,
            which is ``step - skipped``.
        params: the trained params (never the frozen target's).
        opt_state: the optimiser's state.
        skipped: batches that changed nothing: without a token that counts, or with a gradient that is not finite.
        skipped_in_a_row: how many of them were the last ones.
    """

    step: jax.Array
    params: Tree
    opt_state: Tree
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def init_state(params: Tree, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    step, skipped, row = (jnp.zeros((), jnp.int32) for _ in range(3))  # Apart: a donated buffer cannot serve twice.
    return TrainState(step, params, optimizer.init(params), skipped, row)


def check_skipped(state: TrainState, limit: int) -> None:
    """Raise if the last ``limit`` batches were all skipped; waits for the step that made ``state``.

    Raises:
        FloatingPointError: in one line, saying what to try.
    """
    if (row := int(state.skipped_in_a_row)) >= limit:
        raise FloatingPointError(
            f"the last {row} of {int(state.step)} batches were skipped: no token counted, or no finite gradient; "
            "look at the masks of the data, lower --learning-rate, or try --dtype float32"
        )


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, accumulate: int = 1, mesh: Mesh | None = None
) -> Callable[..., tuple[TrainState, dict]]:
    """Build ``step(state, frozen, batch) -> (state, means)``.

    A batch without a token that counts, or with a gradient that is not finite, changes neither params nor optimiser
    state and is counted in the state.

    Args:
        loss_fn: ``(params, frozen, batch) -> (sum of losses, sums)``; ``sums`` maps names to sums over tokens and has
            ``"tokens"``, their number. Sums, not means: over devices they add up to the mean over all tokens,
            however the tokens are spread.
        optimizer: the optax optimiser.
        accumulate: parts that a device's rows are computed in, one after the other; their gradients are added up
            before the one update. Divides the rows of a device.
        mesh: from ``target_mesh``, for a target spread over devices; None when every device holds all of it.

    Returns:
        A compiled function of arrays placed by ``place`` and ``place_batch``. ``frozen`` is neither stacked nor
        copied. The state is donated.
    """
    axis = None if mesh else "data"

    def step(state: TrainState, frozen: Tree, batch: Tree) -> tuple[TrainState, dict]:
        grads, sums = _reduce(_accumulated(loss_fn, accumulate, state.params, frozen, batch), axis)
        count = jnp.maximum(sums["tokens"], 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        norm = optax.tree.norm(grads)
        usable = (sums["tokens"] > 0) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = optax.apply_updates(state.params, updates), opt_state
        params, opt_state = jax.tree.map(lambda a, b: jnp.where(usable, a, b), new, (state.params, state.opt_state))
        skip = 1 - usable.astype(jnp.int32)
        skipped = state.skipped + skip
        means = {name: value / count for name, value in sums.items() if name != "tokens"}
        means |= {"tokens": sums["tokens"], "grad_norm": norm, "skipped": skipped}
        row = skip * (state.skipped_in_a_row + 1)
        return TrainState(state.step + 1, params, opt_state, skipped, row), means

    if mesh:
        return jax.jit(step, donate_argnums=0, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return jax.pmap(step, "data", in_axes=(None, None, 0), out_axes=None, donate_argnums=0)


def make_eval_step(loss_fn: LossFn, mesh: Mesh | None = None) -> Callable[[Tree, Tree, Tree], dict]:
    """Build ``evaluate(params, frozen, batch) -> sums`` over all devices, with the same arguments as a step."""

    def evaluate(params: Tree, frozen: Tree, batch: Tree) -> dict:
        return _reduce(loss_fn(params, frozen, batch)[1], None if mesh else "data")

    if mesh:
        return jax.jit(evaluate, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return jax.pmap(evaluate, "data", in_axes=(None, None, 0), out_axes=None)


def target_mesh(parts: int) -> Mesh:
    """Return a mesh ``("data", "model")`` of all devices in which ``parts`` of them share one copy of the target.

    Of several processes each has whole copies: "model" never crosses from one to another.

    Raises:
        ValueError: if the devices do not divide so.
    """
    devices = jax.device_count()
    if jax.process_count() > 1 and jax.local_device_count() % parts:
        raise ValueError(
            f"a target in {parts} parts on the {jax.local_device_count()} devices of a process; use a number that "
            f"divides {jax.local_device_count()}"
        )
    if parts < 1 or devices % parts:
        raise ValueError(f"a target in {parts} parts on {devices} devices; use a number that divides {devices}")
    shape, names, types = (devices // parts, parts), ("data", "model"), (AxisType.Auto, AxisType.Auto)
    if jax.process_count() > 1:
        return Mesh(np.array(jax.devices()).reshape(shape), names, axis_types=types)  # The processes' one by one.
    return jax.make_mesh(shape, names, axis_types=types)


def place(tree: Tree, mesh: Mesh | None = None) -> Tree:
    """Copy a tree to every device, as a step hands its state back; a second step would compile again otherwise."""
    mesh = mesh or Mesh(np.array(jax.local_devices()), ("data",))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def place_batch(batch: Tree, mesh: Mesh | None = None) -> Tree:
    """Split this process's rows of every ``[rows, ...]`` leaf for a step: over its devices, or its "data" of a mesh.

    Raises:
        ValueError: if the rows do not divide evenly.
    """
    if mesh is None:
        return split_devices(batch, jax.local_device_count())
    split_devices(batch, max(mesh.shape["data"] // jax.process_count(), 1))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(rows, leaf), batch)


def one_copy(tree: Tree, mesh: Mesh) -> tuple[Tree, Mesh]:
    """Return a tree on the devices of this process that share a copy of the target, without copying, and their mesh.

    For what one process computes alone.
    """
    row = next(row for row in mesh.devices if all(device.process_index == jax.process_index() for device in row))
    own = Mesh(row[None], mesh.axis_names, axis_types=mesh.axis_types)

    def take(leaf: jax.Array) -> jax.Array:
        shards = {shard.device: shard.data for shard in leaf.addressable_shards}
        assert isinstance(leaf.sharding, NamedSharding)
        sharding = NamedSharding(own, leaf.sharding.spec)
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, [shards[device] for device in row])

    return jax.tree.map(take, tree), own


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


def _accumulated(loss_fn: LossFn, accumulate: int, params: Tree, frozen: Tree, batch: Tree) -> tuple[Tree, dict]:
    """Return gradient and sums of a batch, computed in parts."""
    gradient = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
        return gradient(params, frozen, batch)

    def split(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % accumulate:
            raise ValueError(f"{leaf.shape[0]} rows to accumulate over {accumulate} parts; use a multiple of it")
        # Every part takes every ``accumulate``-th row: neighbours, which may lie on one device, go to different parts.
        return leaf.reshape(-1, accumulate, *leaf.shape[1:]).swapaxes(0, 1)

    def add(total: Tree, part: Tree) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, gradient(params, frozen, part)), None

    parts = jax.tree.map(split, batch)
    shapes = jax.eval_shape(gradient, params, frozen, jax.tree.map(lambda leaf: leaf[0], parts))
    return jax.lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), parts)[0]


def _reduce(tree: Tree, axis: str | None) -> Tree:
    """Add up over the devices of a pmapped function; a function over a mesh sees the whole batch."""
    return tree if axis is None else jax.lax.psum(tree, axis)
