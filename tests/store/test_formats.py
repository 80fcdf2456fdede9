"""Formats of converted checkpoints: fixtures/format-1 was written by kangaroo_jax 0.1.0, from fixtures/llama."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model import forward
from kangaroo_jax.store import flatten, load_target, read_hf, restore_params, save_params

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD, SOURCE = FIXTURES / "format-1" / "qwen2", FIXTURES / "llama" / "qwen2"

SPREAD = """
import sys
from pathlib import Path

import jax
import numpy as np
from kangaroo_jax.store import flatten, load_target, read_config, read_hf, target_sharding

directory, source = map(Path, sys.argv[1:])
mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
rule = target_sharding(mesh, read_config(directory))
expected = flatten(read_hf(source)[1])
for keep in (None, lambda path, leaf: leaf):
    for path, leaf in flatten(load_target(directory, "bfloat16", rule, keep)[1]).items():
        assert leaf.sharding == rule(path, leaf), path
        np.testing.assert_array_equal(np.asarray(leaf), expected[path], path)
        pieces = {str(shard.index) for shard in leaf.addressable_shards}
        assert len(pieces) == 1 + ("qkv_proj" in path or "o_proj" in path), path
"""


def refused(directory, config, *parts):
    """Reading it fails with a line that has these parts in it."""
    with pytest.raises(ValueError) as caught:
        restore_params(directory, config)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts)


def test_an_old_checkpoint_computes_what_its_original_does():
    config, params, _ = load_target(OLD, "float32")
    with np.load(SOURCE / "golden.npz") as golden:
        tokens, expected = jnp.asarray(golden["tokens"])[None], golden["logits"]
    found = jax.jit(forward, static_argnums=0)(config, params, tokens)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_old_checkpoint_is_read_as_its_original(dtype):
    config, expected = read_hf(SOURCE, dtype)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(load_target(OLD, dtype)[1]), expected)
    some = restore_params(OLD / "params", config, dtype, only=["layers_1"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(some), {"layers_1": expected["layers_1"]})


def test_what_keeps_the_leaves_of_an_old_checkpoint_gets_them_in_order():
    expected, seen = flatten(read_hf(SOURCE, "float32")[1]), []

    def keep(path, leaf):
        np.testing.assert_array_equal(leaf, expected[path])
        seen.append(path)
        return len(seen)

    kept = flatten(load_target(OLD, "float32", keep=keep)[1])
    assert sorted(seen) == sorted(expected) and [kept[path] for path in seen] == [*range(1, len(seen) + 1)]


def test_an_old_checkpoint_is_spread_over_devices():
    """Two key/value heads for two devices; 53 gates do not divide, nor do 97 tokens."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SPREAD, OLD, SOURCE], env=environment, check=True)


def test_what_is_written_says_its_format(tmp_path):
    config, params = read_hf(SOURCE)
    save_params(tmp_path / "params", params)
    record = json.loads((tmp_path / "params" / "format.json").read_text())
    assert record["format"] == 2 and len(record["sizes"]) > 5
    # 0.1.0 looks for this file, and says that the model is to be converted again.
    assert not (tmp_path / "params" / "sizes.json").exists()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restore_params(tmp_path / "params", config)), params)


def test_newer_and_damaged_records_are_refused(tmp_path):
    config, params = read_hf(SOURCE)
    save_params(tmp_path / "params", params)
    file = tmp_path / "params" / "format.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"format": 3}))
    refused(tmp_path / "params", config, "of format 3", "reads up to 2; update it, or convert the model again")
    for damaged in ({"format": 2}, {"format": "2", "sizes": {}}, {"format": 2, "sizes": []}):
        file.write_text(json.dumps(damaged))
        refused(tmp_path / "params", config, "format.json is damaged; convert the model again")
    file.unlink()
    refused(tmp_path / "params", config, "has no format.json, so it was not written to the end; convert")


def test_a_damaged_old_checkpoint_is_refused(tmp_path):
    config, _ = read_hf(SOURCE)
    shutil.copytree(OLD / "params", tmp_path / "params")
    (tmp_path / "params" / "_METADATA").write_text("{}")
    refused(tmp_path / "params", config, "_METADATA has 2 bytes instead of", "convert the model again")
