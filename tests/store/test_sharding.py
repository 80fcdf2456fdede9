"""load(..., sharding=): weights spread over several devices give the ids that one device gives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax
import kangaroo_jax
from jax.sharding import NamedSharding, PartitionSpec

mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


def tensor_parallel(path, leaf):
    if "qkv_proj" in path or "gate_up_proj" in path:
        return NamedSharding(mesh, PartitionSpec(None, "model"))
    if "o_proj" in path or "down_proj" in path:
        return NamedSharding(mesh, PartitionSpec("model", None))
    return NamedSharding(mesh, PartitionSpec())


prompts = ["def fib(n):", "import os\\n"]
for sharding in (None, tensor_parallel):
    params = kangaroo_jax.load("joey", dtype="float32", sharding=sharding)
    modules = params.target["layers_3"]["mlp"]["down_proj"], params.adapter["self_attn"]["o_proj"]
    kernel, drafting = jax.tree.leaves(modules)  # Packed on one device, if the native kernels were built.
    pieces = [leaf.addressable_shards[0].data.nbytes / leaf.nbytes for leaf in (kernel, drafting)]
    ids = [out.token_ids for out in kangaroo_jax.generate(params, prompts, max_new_tokens=24)]
    print([len(leaf.sharding.device_set) for leaf in (kernel, drafting)], pieces, ids, sep=";")
three = jax.make_mesh((3,), ("model",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:3])
try:
    kangaroo_jax.load("joey", sharding=lambda path, leaf: NamedSharding(three, PartitionSpec("model")))
except ValueError as error:
    print(error)
"""


@pytest.mark.full
def test_spread_over_devices_ids_are_the_same(tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "KANGAROO_HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    *lines, uneven = done.stdout.splitlines()
    one, parts = (line.split(";") for line in lines)
    assert one[:2] == ["[1, 1]", "[1.0, 1.0]"] and parts[:2] == ["[4, 4]", "[0.25, 0.25]"]
    # What JAX says about it, in brackets, is different from version to version.
    assert uneven.startswith("sharding of adapter/input_layernorm/scale, (320,), does not divide it (")
    assert one[2] == parts[2] and len(one[2]) > 100
