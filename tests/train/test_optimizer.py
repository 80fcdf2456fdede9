"""Learning rates and clipping, as numbers."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.optimizer import adapter_optimizer, each_alone, learning_rate

RISE = [0.5, 1.0, 1.5, 2.0]
RATES = {
    "linear": [*RISE, *(2 * (10 - step) / 6 for step in range(4, 11)), 0],
    "cosine": [*RISE, *(1 + math.cos(math.pi * (step - 4) / 6) for step in range(4, 11)), 0],
    "constant": [*RISE, *[2.0] * 8],
}


@pytest.mark.parametrize("schedule", RATES)
def test_rates_rise_then_fall_as_named(schedule: str) -> None:
    rate = learning_rate(schedule, 2.0, 10, 4)
    assert [float(rate(jnp.int32(step))) for step in range(12)] == pytest.approx(RATES[schedule], abs=1e-6)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_a_warm_up_the_peak_comes_first(warmup: int) -> None:
    rate = learning_rate("linear", 2.0, 5, warmup)
    assert float(rate(0)) == float(rate(warmup)) == 2.0
    assert float(rate(5)) == 0.0


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule is 'step'; it must be one of linear, cosine, constant"):
        learning_rate("step", 1.0, 5, 0)


def first_update(gradient: list[float], **options: Any) -> np.ndarray:
    """Return the first update at a rate of 1, and the average of gradients behind it, of weights of 3."""
    optimizer = adapter_optimizer(1.0, 10, 0, schedule="constant", **options)
    params = {"w": jnp.full(len(gradient), 3.0)}
    updates, state = optimizer.update({"w": jnp.asarray(gradient)}, optimizer.init(params), params)
    average = next(leaf.mu["w"] for leaf in state[-1] if hasattr(leaf, "mu"))
    return np.stack([np.asarray(updates["w"]), np.asarray(average)])


def test_gradients_are_clipped_by_value_as_in_the_paper() -> None:
    # The average of the first step is a tenth of what AdamW was given.
    np.testing.assert_allclose(first_update([2.0, -0.1, -9.0])[1], [0.05, -0.01, -0.05], rtol=1e-5)


def test_a_norm_scales_all_gradients_together() -> None:
    np.testing.assert_allclose(first_update([3.0, -4.0], clip_norm=1.0, clip_value=0)[1], [0.06, -0.08], rtol=1e-5)
    np.testing.assert_allclose(first_update([3.0, -4.0], clip_norm=1.0)[1], [0.05, -0.05], rtol=1e-5)
    np.testing.assert_allclose(first_update([3.0, -4.0], clip_value=0)[1], [0.3, -0.4], rtol=1e-5)


def test_weights_decay_by_the_rate_times_the_decay() -> None:
    np.testing.assert_allclose(first_update([0.0, 0.0])[0], [-0.03, -0.03], rtol=1e-5)
    np.testing.assert_allclose(first_update([0.0, 0.0], weight_decay=0.5)[0], [-1.5, -1.5], rtol=1e-5)


def test_muon_makes_the_updates_of_matrices_orthogonal() -> None:
    rng = np.random.default_rng(0)
    params = {"alone": {"w": jnp.ones((7, 13)), "scale": jnp.ones(5)}}
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    optimizer = each_alone(adapter_optimizer(1.0, 10, 0, kind="muon", schedule="constant", weight_decay=0.5), ["alone"])
    update = optimizer.update(gradient, optimizer.init(params), params)[0]["alone"]
    sizes = np.linalg.svd(np.asarray(update["w"]) + 0.5, compute_uv=False) / (0.2 * np.sqrt(13))
    assert ((sizes > 0.6) & (sizes < 1.3)).all()  # As near to 1 as its polynomial brings them.
    assert np.ptp(np.abs(update["scale"])) < 1e-3  # AdamW's first step, without decay.
