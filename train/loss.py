"""The adapter's loss: soft cross-entropy between target and draft model (paper, section 3.1).

The widest arrays of a step would be the logits, ``[B, T, V]`` twice. They never exist: both heads run over a chunk of
positions at a time, and the same pass yields the gradient of the drafted hidden states. So a step pays for three
products with the head (teacher, student, gradient); recomputing a chunk in a backward pass would make it five.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from kangaroo_jax.model import (
    KangarooConfig,
    LlamaConfig,
    RMSNorm,
    draft_head,
    embed,
    head_kernel,
    line,
    linear,
    run_adapter,
    run_layers,
)

Sums = dict[str, jax.Array]

CHUNK_LOGITS = 2**24
"""Logits of one side that a chunk may have: 64 MiB, 524 positions of a vocabulary of 32,000. Caches favour few, matrix
units need some hundred rows."""


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
    sums = _compare(teacher, student, mask)[0]
    return sums["loss"], sums


def joint_loss(
    config: LlamaConfig, drafts: Mapping[str, KangarooConfig], chunk: int | None = None
) -> Callable[[Any, Any, Any], tuple[jax.Array, Sums]]:
    """Build the loss of one or more adapters of one target, for ``train.step``.

    One forward pass of the frozen target serves all: the hidden states after the exit layers are the students' inputs,
    and the logits at the end are the teacher's. Nothing of the target is differentiated, and no activation of it is
    kept. The adapters compute in the target's dtype, as they do when they draft; their params stay as they are. Each
    one's gradient is what it would be alone.

    Args:
        config: the target's shape.
        drafts: the draft models by name.
        chunk: positions whose logits exist at a time; None for as many as have ``CHUNK_LOGITS`` logits.

    Returns:
        ``loss(adapters, target_params, batch) -> (sum of losses, sums)``: ``adapters`` maps names to params, ``batch``
        has ``tokens [rows, length]`` and ``mask [rows, length]``, True where the prediction made at that token counts.
        ``sums`` are those of ``distillation_sums``; of several adapters the means of them, and each one's own under
        ``NAME/loss`` and so on.
    """

    def loss(adapters: Any, target: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Sums]:
        target = jax.lax.stop_gradient(target)
        tokens, mask = batch["tokens"], batch["mask"]
        context = line(jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), None)
        hidden, done, early = embed(target, tokens), 0, {}
        for layer in sorted({*(draft.exit_layer for draft in drafts.values()), config.num_hidden_layers}):
            hidden, _ = run_layers(config, target, hidden, context, None, done, layer)
            early[layer], done = hidden, layer
        final = RMSNorm(config.rms_norm_eps).apply({"params": target["norm"]}, hidden)
        teacher = head_kernel(target)
        each = {}
        for name, draft in drafts.items():
            rounded = jax.tree.map(lambda leaf: leaf.astype(hidden.dtype), adapters[name])
            drafted, _ = run_adapter(config, rounded, early[draft.exit_layer], context, None, draft.adapter)
            each[name] = chunked_sums(teacher, draft_head(target, rounded), final, drafted, mask, chunk)
        total = functools.reduce(operator.add, (total for total, _ in each.values()))
        return total, _labelled({name: sums for name, (_, sums) in each.items()})

    return loss


def distillation_loss(
    config: LlamaConfig, exit_layer: int, chunk: int | None = None
) -> Callable[[Any, Any, Any], tuple[jax.Array, Sums]]:
    """Build the loss of one adapter: ``joint_loss`` as a function of its params alone."""
    joint = joint_loss(config, {"": KangarooConfig(exit_layer)}, chunk)
    return lambda adapter, target, batch: joint({"": adapter}, target, batch)


def chunked_sums(
    teacher_head: Float[Array, "D V"],
    student_head: Float[Array, "D V"],
    final: Float[Array, "B T D"],
    drafted: Float[Array, "B T D"],
    mask: Bool[Array, "B T"],
    chunk: int | None = None,
) -> tuple[jax.Array, Sums]:
    """Return ``distillation_sums(final @ teacher_head, drafted @ student_head, mask)`` without arrays ``[B, T, V]``.

    The first value is differentiable in ``drafted``, and in ``student_head`` where that is asked for; ``final`` and
    ``teacher_head`` are constants, and so are the sums.

    Args:
        teacher_head: the target's LM head.
        student_head: the head of the draft model; the target's own in Kangaroo.
        final: the target's last hidden states after the final norm.
        drafted: the adapter's output.
        mask: True where a position counts.
        chunk: positions of a chunk; None for as many as have ``CHUNK_LOGITS`` logits. Chunks are taken along T, over
            all rows, so that rows may lie on different devices.
    """
    rows, length = mask.shape
    chunk = max(1, (chunk or CHUNK_LOGITS // teacher_head.shape[1]) // rows)
    parts = -(-length // chunk)
    # As equal as can be: padded positions cost as much as others.
    return _sums(parts, teacher_head, student_head, final, drafted, mask)


def _labelled(each: Mapping[str, Sums]) -> Sums:
    """Return one flat dict of the sums of several adapters: their means, and each one's own."""
    first, *others = each.values()
    if not others:
        return first
    means = jax.tree.map(lambda *values: functools.reduce(operator.add, values) / len(values), first, *others)
    own = {f"{name}/{key}": sums[key] for name, sums in each.items() for key in first if key != "tokens"}
    return means | own | {"tokens": first["tokens"]}


def _compare(teacher: Array, student: Array, mask: Array) -> tuple[Sums, Array]:
    """Return the sums over positions, and the gradient of the loss with respect to the student's logits."""
    teacher, student = teacher.astype(jnp.float32), student.astype(jnp.float32)
    teacher = teacher - teacher.max(-1, keepdims=True)
    student = student - student.max(-1, keepdims=True)
    exp_p, exp_q = jnp.exp(teacher), jnp.exp(student)
    total_q = exp_q.sum(-1, keepdims=True)
    p, q = exp_p / exp_p.sum(-1, keepdims=True), exp_q / total_q
    # The student's logit of the target's first choice, without an index: XLA does not vectorise argmax on a CPU.
    chosen = jnp.max(student, axis=-1, keepdims=True, where=teacher == 0, initial=-jnp.inf)
    rank = jnp.sum(student > chosen, axis=-1)
    each = {
        "loss": jnp.log(total_q[..., 0]) - jnp.sum(p * student, axis=-1),
        **{f"top{k}": (rank < k).astype(jnp.float32) for k in (1, 2, 3)},
        "acceptance": jnp.minimum(p, q).sum(-1),
        "tokens": jnp.ones(mask.shape, jnp.float32),
    }
    return {name: jnp.sum(value, where=mask) for name, value in each.items()}, (q - p) * mask[..., None]


def _split(x: Array, parts: int) -> Array:
    """Cut ``[B, T, ...]`` along T into ``[parts, B, T / parts, ...]``, padded with zeros at the end."""
    size = -(-x.shape[1] // parts)
    x = jnp.pad(x, [(0, 0), (0, size * parts - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], parts, size, *x.shape[2:]), 1, 0)


def _join(x: Array, length: int) -> Array:
    """Invert ``_split``."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(
    parts: int, teacher_head: Array, student_head: Array, final: Array, drafted: Array, mask: Array
) -> tuple[jax.Array, Sums]:
    def chunk_sums(total: Sums, part: tuple[Array, Array, Array]) -> tuple[Sums, None]:
        teacher, student = linear(part[0], teacher_head, jnp.float32), linear(part[1], student_head, jnp.float32)
        return jax.tree.map(jnp.add, total, _compare(teacher, student, part[2])[0]), None

    sums, _ = _scan(chunk_sums, _no_sums(), parts, (final, drafted, mask))
    return sums["loss"], sums


def _sums_forward(parts: int, *arguments: Any) -> tuple[tuple[jax.Array, Sums], tuple[Array, Array | None]]:
    teacher_head, student_head, final, drafted, mask = (argument.value for argument in arguments)
    own = arguments[1].perturbed

    def chunk_sums(total: tuple[Sums, Array | None], part: tuple[Array, Array, Array]) -> tuple[Any, Array]:
        teacher, student = linear(part[0], teacher_head, jnp.float32), linear(part[1], student_head, jnp.float32)
        sums, slope = _compare(teacher, student, part[2])
        slope = slope.astype(drafted.dtype)
        new = (sums, _outer(part[1], slope)) if own else (sums, None)
        return jax.tree.map(jnp.add, total, new), linear(slope, student_head.T, jnp.float32).astype(drafted.dtype)

    none = jnp.zeros(student_head.shape, jnp.float32) if own else None
    (sums, of_head), of_drafted = _scan(chunk_sums, (_no_sums(), none), parts, (final, drafted, mask))
    of_drafted = of_drafted if parts == 1 else _join(of_drafted, drafted.shape[1])
    return (sums["loss"], sums), (of_drafted, of_head if of_head is None else of_head.astype(student_head.dtype))


def _sums_backward(parts: int, kept: tuple[Array, Array | None], slopes: tuple[Any, Any]) -> tuple[Any, ...]:
    of_drafted, of_head = kept
    slope = slopes[0]
    if isinstance(slope, SymbolicZero):
        return None, None, None, None, None
    return (
        None,
        of_head if of_head is None else slope * of_head,
        None,
        (slope * of_drafted).astype(of_drafted.dtype),
        None,
    )


_sums.defvjp(_sums_forward, _sums_backward, symbolic_zeros=True)


def _scan(body: Callable[..., Any], start: Any, parts: int, arrays: tuple[Array, ...]) -> Any:
    """Run ``lax.scan`` over chunks of ``[B, T, ...]`` arrays; one chunk needs no loop."""
    if parts == 1:
        return body(start, arrays)
    return jax.lax.scan(body, start, tuple(_split(array, parts) for array in arrays))


def _no_sums() -> Sums:
    return dict.fromkeys(("loss", "top1", "top2", "top3", "acceptance", "tokens"), jnp.zeros((), jnp.float32))


def _outer(x: Array, slope: Array) -> Array:
    """Return the gradient of a head: the sum over positions of outer products, in fp32."""
    return linear(x.reshape(-1, x.shape[-1]).T, slope.reshape(-1, slope.shape[-1]), jnp.float32)
