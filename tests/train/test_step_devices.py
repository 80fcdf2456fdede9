"""One run on 1, 2 and 8 devices, and with the target spread over 4 of them: the same losses."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.full

PROGRAM = """
import json
import sys

import jax
import numpy as np

from kangaroo_jax.model import LlamaConfig, init_adapter, init_params
from kangaroo_jax.store.placement import target_sharding
from train.loss import distillation_loss
from train.optimizer import adapter_optimizer
from train.step import init_state, make_eval_step, make_train_step, place, place_batch, target_mesh

# 2 of 8 heads are keys and the vocabulary is odd: neither divides into 4 parts, the rest does.
config = LlamaConfig(53, 24, 28, 3, 8, 2, 4)
params = jax.tree.map(lambda x: x * 8 if x.ndim == 2 else x, init_params(config, jax.random.key(0)))
mesh = target_mesh(4) if sys.argv[1] == "mesh" else None
if mesh:
    rule = target_sharding(mesh, config)
    names = lambda path: "/".join(key.key for key in path)
    target = jax.tree_util.tree_map_with_path(lambda path, x: jax.device_put(x, rule(names(path), x)), params)
else:
    target = place(params)
optimizer = adapter_optimizer(3e-3, 50, 5)
loss = distillation_loss(config, 1, chunk=32)
step, evaluate = make_train_step(loss, optimizer, mesh=mesh), make_eval_step(loss, mesh)
state = place(init_state(init_adapter(config, jax.random.key(1)), optimizer), mesh)


def batch(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 53, (8, 13)).astype(np.int32)
    return place_batch({"tokens": tokens, "mask": rng.random((8, 13)) < np.linspace(0.1, 0.9, 8)[:, None]}, mesh)


losses = []
for seed in range(50):
    placed = batch(seed)
    if seed == 0:
        state, means = step(state, target, placed)
    else:
        with jax.transfer_guard_device_to_device("disallow"):  # The target stays where it is.
            state, means = step(state, target, placed)
    losses.append(float(means["loss"]))
held = {name: float(value) for name, value in evaluate(state.params, target, batch(99)).items()}
try:
    with jax.transfer_guard_device_to_device("disallow"):
        step(state, params, batch(0))
    copied = "allowed"
except Exception:
    copied = "refused"
kernel = target["layers_2"]["mlp"]["gate_up_proj"]["kernel"]
share = kernel.addressable_shards[0].data.nbytes / kernel.nbytes
print(json.dumps({"losses": losses, "held": held, "share": share, "devices": jax.device_count(), "copied": copied}))
"""


ALL = [
    ("2", 2, 1.0),
    ("8", 8, 1.0),
    ("mesh", 8, 0.25),
]


@functools.cache
def run(name: str, devices: int) -> dict[str, Any]:
    """Return what the program prints."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, name]
    root, environment = Path(__file__).parents[2], os.environ | flags
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("name", "devices", "share"), ALL)
def test_losses_are_those_of_one_device(name: str, devices: int, share: float) -> None:
    one, several = run("1", 1), run(name, devices)
    assert (several["devices"], several["share"]) == (devices, share)
    assert len(one["losses"]) == 50 and one["losses"][0] - one["losses"][-1] > 0.1
    assert several["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert several["held"] == pytest.approx(one["held"], rel=1e-5)


@pytest.mark.parametrize(("name", "devices", "share"), ALL)
def test_a_placed_target_is_not_copied_to_a_device_again(name: str, devices: int, share: float) -> None:
    """All but the first step ran under a guard that refuses such copies, as it refused those of an unplaced target."""
    assert run(name, devices)["copied"] == "refused"
