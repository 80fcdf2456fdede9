"""bench.shapes and bench.load: a checkpoint of a shape, converted, loaded and run."""

from __future__ import annotations

import numpy as np
import pytest

from bench import load as bench_load
from bench import shapes
from convert import hf_to_flax
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import read_hf

SMALL = LlamaConfig(61, 22, 29, 3, 6, 3, 4)


def test_a_shape_is_written_converted_and_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(shapes.SHAPES, "tinyllama", SMALL)
    source, out = tmp_path / "shape", tmp_path / "out"
    assert shapes.main(["tinyllama", "--out", str(source), "--shard-gb", "0.000005"]) == 0
    assert len([*source.glob("pytorch_model-*-of-*.bin")]) > 2
    config, params = read_hf(source)
    kernel = params["layers_1"]["mlp"]["down_proj"]["kernel"]
    assert config == SMALL and kernel.dtype == np.float16 and 0.01 < kernel.std() < 0.03 and kernel.all()
    assert not np.array_equal(kernel, params["layers_2"]["mlp"]["down_proj"]["kernel"])
    assert hf_to_flax.main([str(source), "--out", str(out)]) == 0
    capsys.readouterr()
    assert bench_load.main([str(out), "--dtype", "float32", "--new-tokens", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ids = [line.split()[1:] for line in lines if line.strip().startswith("ids ")]
    assert lines[0].startswith("load ") and ids[0] == ids[1] and len(ids[0]) == 5
    assert "lossless    yes" in lines


def test_what_is_in_the_way_stays(tmp_path, capsys):
    (tmp_path / "thesis").write_text("years of work")
    assert shapes.main(["vicuna-7b", "--out", str(tmp_path / "thesis")]) == 2
    assert "thesis exists; choose another --out" in capsys.readouterr().err
    assert bench_load.main([str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit):
        shapes.main(["gpt2", "--out", str(tmp_path / "x")])
