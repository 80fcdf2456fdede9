"""The adapter's loss: soft cross-entropy between target and draft model (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kangaroo_jax.model import LlamaConfig, embed, head, logits, run_adapter, run_layers

Sums = dict[str, jax.Array]


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
        The sum of the losses, which is what is differentiated, and sums over positions of ``loss``, ``top1`` (the two
        argmax agree), ``acceptance`` (``sum_v min(p_v, q_v)``: the chance that speculative sampling accepts a draft)
        and ``tokens`` (1 each).
    """
    teacher, student = teacher.astype(jnp.float32), student.astype(jnp.float32)
    p, log_q = jax.nn.softmax(teacher), jax.nn.log_softmax(student)
    each = {
        "loss": -jnp.sum(p * log_q, axis=-1),
        "top1": (teacher.argmax(-1) == student.argmax(-1)).astype(jnp.float32),
        "acceptance": jnp.minimum(p, jnp.exp(log_q)).sum(-1),
        "tokens": jnp.ones(mask.shape, jnp.float32),
    }
    sums = {name: jnp.sum(value, where=mask) for name, value in each.items()}
    return sums["loss"], sums


def distillation_loss(config: LlamaConfig, exit_layer: int) -> Callable[[Any, Any, Any], tuple[jax.Array, Sums]]:
    """Build the adapter's loss for ``train.step``.

    One forward pass of the frozen target gives both sides: the hidden state after the exit layer is the student's
    input, and the logits at the end are the teacher's. Nothing of the target is differentiated.

    Args:
        config: the target's shape.
        exit_layer: number of target layers below the adapter, l in the paper.

    Returns:
        ``loss(adapter_params, target_params, batch) -> (sum of losses, sums)``; ``batch`` has ``tokens [rows, length]``
        and ``mask [rows, length]``, True where the prediction made at that token counts.
    """

    def loss(adapter: Any, target: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Sums]:
        tokens = batch["tokens"]
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        early, _ = run_layers(config, target, embed(target, tokens), positions, None, 0, exit_layer)
        late, _ = run_layers(config, target, early, positions, None, exit_layer, config.num_hidden_layers)
        teacher = logits(config, target, late)
        drafted, _ = run_adapter(config, adapter, jax.lax.stop_gradient(early), positions, None)
        return distillation_sums(jax.lax.stop_gradient(teacher), head(target, drafted), batch["mask"])

    return loss
