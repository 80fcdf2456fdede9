"""A GGUF file as a checkpoint: config, names, order of rows, values; read as what they were written from."""

from __future__ import annotations

import tracemalloc
import warnings

import gguf
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


def test_a_number_beyond_float32_is_read_without_a_warning(tmp_path, ggufs):
    def keys(writer):
        writer.kv_data[0]["llama.rope.freq_base"] = gguf.gguf_writer.GGUFValue(1e300, gguf.GGUFValueType.FLOAT64)

    config = ggufs.config_of()
    ggufs.write(tmp_path / "m.gguf", config, ggufs.random_tensors(config), keys=keys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_config(tmp_path / "m.gguf").rope_theta == 1e300


def test_factors_of_another_shape_are_not_read(tmp_path, ggufs):
    """1.7 bits a factor: read, they would take twenty times the file, and in float64 forty."""
    config, kind = ggufs.config_of(), gguf.GGMLQuantizationType.TQ1_0

    def keys(writer):
        writer.add_tensor("rope_freqs.weight", np.zeros((400, 54 * 64), np.uint8), raw_dtype=kind)

    ggufs.write(tmp_path / "m.gguf", config, ggufs.random_tensors(config), keys=keys)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="what is no scaling of Llama 3"):
            read_config(tmp_path / "m.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
