"""The adapter's loss: soft cross-entropy between target and draft model (paper, section 3.1).

The widest arrays of a step would be the logits, ``[B, T, V]`` twice. They never exist: both heads run over a chunk of
positions at a time, of those alone that count, and the same pass yields the gradient of the drafted hidden states. So a
step pays for three products with the head (teacher, student, gradient); recomputing a chunk in a backward pass would
make it five.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.model import (
    KangarooConfig,
    LlamaConfig,
    draft_head,
    embed,
    final_norm,
    head_kernel,
    line,
    linear,
    run_adapter,
    run_layers,
)

Sums = dict[str, jax.Array]

CHUNK, CHUNK_LOGITS = 256, 2**24
"""Positions of a chunk, and the logits of one side that it may have (64 MiB): caches favour few positions, matrix units
need some hundred."""


def distillation_sums(
    teacher: Float[Array, "B T V"], student: Float[Array, "B T V"], mask: Bool[Array, "B T"]
) -> tuple[jax.Array, Sums]:
    """Compare two sets of logits at every position that the mask keeps.

    ``loss = -sum_v softmax(teacher)_v * log softmax(student)_v``, softmax in fp32.

    Args:
        teacher: logits of the target.
        student: logits of the draft model at the same positions: both predict the same next token.
        mask: True where a position counts.

    Returns:
        The sum of the losses, which is what is differentiated, and sums over positions of ``loss``, ``top1``, ``top2``
        and ``top3`` (the target's first choice is among so many first choices of the draft model), ``acceptance``
        (``sum_v min(p_v, q_v)``: the chance that speculative sampling accepts a draft) and ``tokens`` (1 each).
    """
    teacher, student = (x.reshape(-1, x.shape[-1]).astype(jnp.float32) for x in (teacher, student))
    sums = _compare(teacher, student, *choice(teacher), mask.reshape(-1))[0]
    return sums["loss"], sums


def choice(logits: Float[Array, "R V"]) -> tuple[Float[Array, " R"], Int[Array, " R"]]:
    """Return the logarithm of the sum of all exponentials, and the first of the highest logits."""
    highest = logits.max(-1, keepdims=True)
    total = jnp.log(jnp.exp(logits - highest).sum(-1)) + highest[..., 0]
    # XLA does not vectorise argmax on a CPU.
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return total, jnp.min(jnp.where(logits == highest, index, logits.shape[-1]), axis=-1)


def target_states(
    config: LlamaConfig, layers: Iterable[int], target: Any, tokens: Int[Array, "B T"]
) -> dict[str, Float[Array, "B T D"]]:
    """Return a target's hidden states after some layers, as ``exit2`` and so on, and the last, normed, as ``final``."""
    context = line(jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), None)
    hidden, done, states = embed(target, tokens), 0, {}
    for layer in sorted({*layers, config.num_hidden_layers}):
        hidden, _ = run_layers(config, target, hidden, context, None, done, layer)
        states[f"exit{layer}"], done = hidden, layer
    return states | {"final": final_norm(config, target, hidden)}


def columns_of(target: Any, ids: Any) -> dict[str, Array]:
    """Return the columns of a target's head for some tokens, ascending, and the tokens: a target's ``columns``."""
    return {"ids": jnp.asarray(ids, jnp.int32), "kernel": head_kernel(target)[:, ids]}


def joint_loss(
    config: LlamaConfig, drafts: Mapping[str, KangarooConfig], chunk: int | None = None, groups: int = 1
) -> Callable[[Any, Any, Any], tuple[jax.Array, Sums]]:
    """Build the loss of one or more adapters of one target, for ``train.step``.

    One forward pass of the frozen target serves all: the hidden states after the exit layers are the students' inputs,
    and the logits at the end are the teacher's. Nothing of the target is differentiated, and no activation of it is
    kept. The adapters compute in the target's dtype, as they do when they draft; their params stay as they are. Each
    one's gradient is what it would be alone.

    Args:
        config: the target's shape.
        drafts: the draft models by name.
        chunk: positions whose logits exist at a time; see ``chunked_sums``.
        groups: parts of a batch that lie on different devices of a mesh.

    Returns:
        ``loss(adapters, target_params, batch) -> (sum of losses, sums)``: ``adapters`` maps names to params, ``batch``
        has ``tokens [rows, length]`` and ``mask [rows, length]``, True where the prediction made at that token counts.
        Instead of tokens it may have what ``target_states`` makes of them, and ``total`` and ``chosen``, the ``choice``
        at every position; then only the head of the target is read. A target with ``columns`` has students that know
        these tokens alone: see ``chunked_sums``. ``sums`` are those of ``distillation_sums``; of several adapters the
        means of them, and each one's own under ``NAME/loss`` and so on.
    """
    layers = [draft.exit_layer for draft in drafts.values()]

    def loss(adapters: Any, target: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Sums]:
        target = jax.lax.stop_gradient(target)
        mask = batch["mask"]
        states = batch if "final" in batch else target_states(config, layers, target, batch["tokens"])
        context = line(jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape), None)
        columns = target.get("columns", {})
        known = {name: _grouped(states[name], groups) for name in ("final", "total", "chosen") if name in states}
        teacher = Teacher(
            **known,
            head=None if "total" in known and columns else head_kernel(target),
            columns=columns.get("kernel"),
            ids=columns.get("ids"),
        )
        each = {}
        for name, draft in drafts.items():
            hidden = states[f"exit{draft.exit_layer}"]
            rounded = jax.tree.map(lambda leaf, to=hidden.dtype: leaf.astype(to), adapters[name])
            run = functools.partial(run_adapter, config, x=hidden, context=context, cache=None, adapter=draft.adapter)
            before = None
            if draft.adapter.final_states:
                final = _after(states["final"].astype(hidden.dtype), mask)
                guessed, _ = run(jax.lax.stop_gradient(rounded), before=final)
                before = _some_guessed(final, _after(guessed, mask))
            drafted, _ = run(rounded, before=before)
            head = columns["kernel"] if columns else draft_head(target, rounded)
            each[name] = chunked_sums(teacher, head, _grouped(drafted, groups), _grouped(mask, groups), chunk)
        total = functools.reduce(operator.add, (total for total, _ in each.values()))
        return total, _labelled({name: sums for name, (_, sums) in each.items()})

    return loss


def _after(values: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
    """Return the values of the position before each; zeros in a prompt, as while decoding.

    That is where nothing counts, and of text that counts from its first token the first quarter.
    """
    known = mask & (~mask[:, :1] | (jnp.arange(mask.shape[1]) >= mask.shape[1] // 4))
    return jnp.pad(jnp.where(known[:, :, None], values, 0)[:, :-1], ((0, 0), (1, 0), (0, 0)))


def _some_guessed(known: Float[Array, "B T D"], guessed: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Return final states of which about every second one is what the adapter takes for it while it drafts.

    Which ones, depends on the position alone: so the loss is a function of the data, in whatever batch a row is.
    """
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(known.shape[1]))
    return jnp.where(jax.vmap(jax.random.bernoulli)(keys)[None, :, None], guessed, known)


def distillation_loss(
    config: LlamaConfig, exit_layer: int, chunk: int | None = None
) -> Callable[[Any, Any, Any], tuple[jax.Array, Sums]]:
    """Build the loss of one adapter: ``joint_loss`` as a function of its params alone."""
    joint = joint_loss(config, {"": KangarooConfig(exit_layer)}, chunk)
    return lambda adapter, target, batch: joint({"": adapter}, target, batch)


class Teacher(NamedTuple):
    """The frozen side of the loss.

    Attributes:
        final: the target's last hidden states after the final norm.
        total: at every position the ``choice`` among the whole vocabulary, where it is known already.
        chosen: likewise.
        head: the LM head; not read where the choice is known and there are columns.
        columns: the columns of the head that students have, or None where they have all.
        ids: the tokens of these columns, sorted.
    """

    final: Float[Array, "B T D"]
    total: Float[Array, "B T"] | None = None
    chosen: Int[Array, "B T"] | None = None
    head: Float[Array, "D V"] | None = None
    columns: Float[Array, "D N"] | None = None
    ids: Int[Array, " N"] | None = None


def chunked_sums(
    teacher: Teacher,
    student_head: Float[Array, "D N"],
    drafted: Float[Array, "B T D"],
    mask: Bool[Array, "B T"],
    chunk: int | None = None,
) -> tuple[jax.Array, Sums]:
    """Return ``distillation_sums(final @ head, drafted @ student_head, mask)`` without arrays ``[B, T, V]``.

    The first value is differentiable in ``drafted``, and in ``student_head`` where that is asked for; the teacher is
    constant, and so are the sums. Only positions that count are computed.

    Where students have some columns of the head, the teacher's ``p`` stay probabilities among the whole vocabulary. The
    loss is ``-sum p_v log q_v`` over the columns (so a position weighs as much as they are likely), the acceptance
    ``sum min(p_v, q_v)`` over them, and a first choice of the teacher that is not among them is missed.

    Args:
        teacher: the target's side.
        student_head: the head of the draft model; in Kangaroo the target's own, or its columns.
        drafted: the adapter's output.
        mask: True where a position counts.
        chunk: positions of a chunk; None for ``CHUNK``, or as many as have ``CHUNK_LOGITS`` logits. Chunks are taken
            along T, over all rows, so that rows may lie on different devices.
    """
    rows, length = mask.shape
    widest = student_head if teacher.head is None else teacher.head
    chunk = min(max(1, (chunk or min(CHUNK, CHUNK_LOGITS // widest.shape[1])) // rows), length)
    return _sums(chunk, teacher, student_head, drafted, mask)


def _grouped(x: Array, groups: int) -> Array:
    """Make the rows of each device one, of all their positions."""
    return x.reshape(groups, -1, *x.shape[2:])


def _labelled(each: Mapping[str, Sums]) -> Sums:
    """Return one flat dict of the sums of several adapters: their means, and each one's own."""
    first, *others = each.values()
    if not others:
        return first
    means = jax.tree.map(lambda *values: functools.reduce(operator.add, values) / len(values), first, *others)
    own = {f"{name}/{key}": sums[key] for name, sums in each.items() for key in first if key != "tokens"}
    return means | own | {"tokens": first["tokens"]}


def _compare(
    teacher: Float[Array, "R N"],
    student: Float[Array, "R N"],
    total: Float[Array, " R"],
    chosen: Int[Array, " R"],
    mask: Bool[Array, " R"],
) -> tuple[Sums, Float[Array, "R N"]]:
    """Return the sums over positions, and the gradient of the loss with respect to the student's logits.

    Positions are one axis: XLA:CPU makes the sum of ``p * student`` of three axes 30 times slower.

    Args:
        teacher: fp32 logits of the student's columns.
        student: likewise.
        total: makes probabilities of the teacher's logits.
        chosen: its first choice among the columns, or -1.
        mask: True where a position counts.
    """
    student = student - student.max(-1, keepdims=True)
    exp_q = jnp.exp(student)
    total_q = exp_q.sum(-1, keepdims=True)
    p, q = jnp.exp(teacher - total[..., None]), exp_q / total_q
    known = p.sum(-1, keepdims=True)
    index = jax.lax.broadcasted_iota(jnp.int32, student.shape, student.ndim - 1)
    value = jnp.max(student, axis=-1, keepdims=True, where=index == chosen[..., None], initial=-jnp.inf)
    rank = jnp.sum(student > value, axis=-1)
    each = {
        "loss": known[..., 0] * jnp.log(total_q[..., 0]) - jnp.sum(p * student, axis=-1),
        **{f"top{k}": (rank < k).astype(jnp.float32) for k in (1, 2, 3)},
        "acceptance": jnp.minimum(p, q).sum(-1),
        "tokens": jnp.ones(mask.shape, jnp.float32),
    }
    return {name: jnp.sum(value, where=mask) for name, value in each.items()}, (known * q - p) * mask[..., None]


def _teach(teacher: Teacher) -> tuple[Array, Array, Array]:
    """Return the teacher's logits of the student's columns, their total, and its choice as a column, or -1."""
    total, chosen, whole = teacher.total, teacher.chosen, None
    if teacher.head is not None:
        whole = linear(teacher.final, teacher.head, jnp.float32)
        if total is None:
            total, chosen = choice(whole)
    assert total is not None and chosen is not None
    if teacher.columns is None or teacher.ids is None:
        assert whole is not None
        return whole, total, chosen
    column = jnp.searchsorted(teacher.ids, chosen).astype(jnp.int32)
    known = teacher.ids[jnp.minimum(column, len(teacher.ids) - 1)] == chosen
    return linear(teacher.final, teacher.columns, jnp.float32), total, jnp.where(known, column, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(chunk: int, teacher: Teacher, head: Array, drafted: Array, mask: Array) -> tuple[jax.Array, Sums]:
    sums = _run(chunk, teacher, head, drafted, mask, None)[0]
    return sums["loss"], sums


def _sums_forward(chunk: int, *arguments: Any) -> tuple[tuple[jax.Array, Sums], tuple[Array | None, ...]]:
    teacher, head, drafted, mask = jax.tree.map(lambda argument: argument.value, arguments)
    sums, *slopes = _run(chunk, teacher, head, drafted, mask, arguments[1].perturbed)
    return (sums["loss"], sums), tuple(slopes)


def _sums_backward(chunk: int, kept: tuple[Array, Array | None], slopes: tuple[Any, Any]) -> tuple[Any, ...]:
    slope, (of_drafted, of_head) = slopes[0], kept
    if isinstance(slope, SymbolicZero):
        return None, None, None, None
    return None, of_head if of_head is None else slope * of_head, (slope * of_drafted).astype(of_drafted.dtype), None


_sums.defvjp(_sums_forward, _sums_backward, symbolic_zeros=True)


def _run(
    chunk: int, teacher: Teacher, head: Array, drafted: Array, mask: Array, learns: bool | None
) -> tuple[Sums, Array | None, Array | None]:
    """Return the sums, and the gradients of drafted states and, if it ``learns``, of the head; None is no gradient.

    The positions that count come first; there are as many turns as they fill, of the row that has the most::

        mask   . x . x x    order  1 3 4|0 2     two turns of 3
               x x x . x           0 1 2|4 3
    """
    rows, length = mask.shape
    turns = -(-length // chunk)
    order = jnp.argsort(~mask, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, turns * chunk - length)))
    count = mask.sum(1)
    none = jnp.zeros((rows, turns * chunk, drafted.shape[2]), drafted.dtype), jnp.zeros(head.shape, jnp.float32)
    slopes = (none[0], none[1] if learns else None) if learns is not None else (None, None)
    back = head.T

    def turn(index: jax.Array, carry: tuple[Sums, Any, Any]) -> tuple[Sums, Any, Any]:
        sums, of_drafted, of_head = carry
        at = jax.lax.dynamic_slice_in_dim(order, index * chunk, chunk, 1)

        def pick(x: Array) -> Array:
            taken = jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)
            return taken.reshape(-1, *x.shape[2:])

        known = {name: pick(x) for name in ("final", "total", "chosen") if (x := getattr(teacher, name)) is not None}
        counts = index * chunk + jnp.arange(chunk) < count[:, None]
        x = pick(drafted)
        logits, total, chosen = _teach(teacher._replace(**known))
        new, slope = _compare(logits, linear(x, head, jnp.float32), total, chosen, counts.reshape(-1))
        if of_drafted is not None:
            slope = slope.astype(drafted.dtype)
            add = linear(slope, back, jnp.float32).astype(drafted.dtype).reshape(rows, chunk, -1)
            of_drafted = jax.lax.dynamic_update_slice_in_dim(of_drafted, add, index * chunk, 1)
        if of_head is not None:
            of_head += linear(x.T, slope, jnp.float32)
        return jax.tree.map(jnp.add, sums, new), of_drafted, of_head

    sums, of_drafted, of_head = jax.lax.fori_loop(0, -(-jnp.max(count) // chunk), turn, (_no_sums(), *slopes))
    if of_drafted is not None:
        place = jnp.where(mask, jnp.cumsum(mask, axis=1) - 1, turns * chunk)
        of_drafted = jnp.take_along_axis(of_drafted, place[..., None], axis=1, mode="fill", fill_value=0)
    return sums, of_drafted, of_head if of_head is None else of_head.astype(head.dtype)


def _no_sums() -> Sums:
    return {name: jnp.zeros((), jnp.float32) for name in ("loss", "top1", "top2", "top3", "acceptance", "tokens")}
