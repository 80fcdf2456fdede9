"""``python -m train.adapter --shard-target``: the adapter of a run in which every device has the whole target."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import load_adapter, write_hf
from train.byte_tokenizer import write_byte_tokenizer

PROGRAM = """
import sys

import jax

from train.adapter import main

model, text, out = sys.argv[1:]
numbers = "--dtype float32 --exit-layer 1 --steps 6 --warmup 1 --batch-size 8 --length 31 --learning-rate 0.003"
command = ["--model", model, "--data", text, *numbers.split()]
assert main([*command, "--out", out + "/whole"]) == 0
assert main([*command, "--out", out + "/split", "--shard-target", "2", "--accumulate", "2"]) == 0
assert jax.device_count() == 4
"""


@pytest.mark.full
def test_a_split_target_trains_the_same_adapter(
    tmp_path: Path, text_folder: Path, tiny_config: LlamaConfig, tiny_params: dict
) -> None:
    model = tmp_path / "tiny"
    write_hf(model, tiny_config, tiny_params, "float32")
    write_byte_tokenizer(model)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, model, text_folder, tmp_path]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env=environment)
    whole, split = (
        jax.tree.leaves(load_adapter(tmp_path / name, tiny_config, "float32")[1]) for name in ("whole", "split")
    )
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5)
