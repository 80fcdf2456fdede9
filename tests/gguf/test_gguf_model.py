"""A GGUF file as a checkpoint: config, names, order of rows, values; read as what they were written from."""

from __future__ import annotations

import numpy as np
import pytest

from kangaroo_jax.store import checkpoint_tensors, open_hf, read_config

CASES = ("llama", "tied", "llama3", "linear", "qwen2", "qwen3")


@pytest.mark.parametrize("case", CASES)
def test_config_and_values_are_those_written(tmp_path, ggufs, case):
    config = ggufs.config_of(case)
    meant = ggufs.write(tmp_path / "m.gguf", config, ggufs.random_tensors(config))
    assert read_config(tmp_path / "m.gguf") == config
    found = {tensor.name: np.asarray(tensor) for tensor in checkpoint_tensors(tmp_path / "m.gguf")}
    assert found.keys() == meant.keys()
    for name, values in meant.items():
        np.testing.assert_array_equal(found[name], values)
    open_hf(tmp_path / "m.gguf")  # All fits.
