"""The optimiser of an adapter and its learning rate, as functions of options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("linear", "cosine", "constant")


def learning_rate(schedule: str, peak: float, steps: int, warmup: int) -> optax.Schedule:
    """Return the rate of every optimiser step, counted from 0: a linear rise, then the schedule's fall.

    Steps that were skipped do not count. Of 10 steps with a warm-up of 4 and a peak of 2::

        step      0    1    2    3    4    5    6    7    8    9   10
        linear    0.5  1.0  1.5  2.0  2.0  1.67 1.33 1.0  0.67 0.33 0
        cosine    0.5  1.0  1.5  2.0  2.0  1.87 1.5  1.0  0.5  0.13 0
        constant  0.5  1.0  1.5  2.0  2.0  2.0  2.0  2.0  2.0  2.0  2.0

    Args:
        schedule: one of ``SCHEDULES``.
        peak: highest rate, of the step ``warmup``.
        steps: optimiser steps of the whole run; linear and cosine end there at 0.
        warmup: steps of the rise; 0 begins at the peak.

    Raises:
        ValueError: if the schedule is unknown.
    """
    falls = {
        "linear": optax.linear_schedule(peak, 0.0, steps - warmup),
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup),
        "constant": optax.constant_schedule(peak),
    }
    if schedule not in falls:
        raise ValueError(f"schedule is {schedule!r}; it must be one of {', '.join(SCHEDULES)}")
    if warmup < 2:
        rise = optax.constant_schedule(peak)
    else:
        rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rise, falls[schedule]], [warmup])


def adapter_optimizer(
    peak: float,
    steps: int,
    warmup: int,
    *,
    kind: str = "adamw",
    schedule: str = "linear",
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.01,
    clip_value: float = 0.5,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Return AdamW or Muon on clipped gradients, in fp32; the defaults are the paper's.

    Muon (Jordan et al. 2024) makes the averaged gradient of every matrix orthogonal, as large as AdamW's update (Liu et
    al. 2025); the scales of norms are AdamW's.

    Args:
        peak: highest learning rate.
        steps: optimiser steps of the whole run.
        warmup: steps until the peak.
        kind: one of ``OPTIMIZERS``.
        schedule: how the rate falls, see ``learning_rate``.
        betas: decay of AdamW's two averages.
        weight_decay: of AdamW, for every param; of Muon, for every matrix.
        clip_value: every element of a gradient is clipped to +-this; 0 for no such clipping.
        clip_norm: gradients are scaled down together to this global norm, before the other clipping; 0 for not.
    """
    clips = [optax.clip_by_global_norm(clip_norm)] * (clip_norm > 0) + [optax.clip(clip_value)] * (clip_value > 0)
    rate = learning_rate(schedule, peak, steps, warmup)
    if kind == "adamw":
        update = optax.adamw(rate, *betas, eps=1e-8, weight_decay=weight_decay, mu_dtype=jnp.float32)
    else:
        update = optax.contrib.muon(
            rate,
            weight_decay=weight_decay,
            adam_b1=betas[0],
            adam_b2=betas[1],
            mu_dtype=jnp.float32,
            consistent_rms=0.2,
        )
    return optax.chain(*clips, update)


def each_alone(optimizer: optax.GradientTransformation, names: Iterable[str]) -> optax.GradientTransformation:
    """Return an optimiser of ``{name: params}`` that treats every one as if it were alone: a norm is not shared."""

    def labels(params: Mapping[str, Any]) -> dict[str, Any]:
        return {name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in params.items()}

    return optax.partition(dict.fromkeys(names, optimizer), labels)
