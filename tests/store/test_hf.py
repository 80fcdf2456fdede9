"""Directories in Hugging Face's layout: read, written, and refused in one line when damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kangaroo_jax.store import DuplicateTensors, MissingTensors, from_flax, mapping, read_config, read_hf, write_hf
from kangaroo_jax.store.hf import as_dtype

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def gqa(tmp_path):
    """A copy of a fixture to damage."""
    return Path(shutil.copytree(FIXTURES / "gqa", tmp_path / "gqa"))


@pytest.fixture
def sharded(tmp_path):
    """A copy of the sharded fixture to damage."""
    return Path(shutil.copytree(FIXTURES / "sharded", tmp_path / "sharded"))


def refused(directory, match):
    """Reading fails with a one-line ValueError."""
    with pytest.raises(ValueError, match=match) as caught:
        read_hf(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("case", "dtype"), [("mha", "float32"), ("gqa", "bfloat16"), ("sharded", "float16")])
def test_tensors_and_dtype_are_those_of_the_files(case, dtype):
    config, params = read_hf(FIXTURES / case)
    stored = {}
    for file in (FIXTURES / case).glob("*.safetensors"):
        stored |= load_file(file)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    written = dict(from_flax(config, params))
    assert sorted(written) == sorted(stored)
    for name, values in stored.items():
        np.testing.assert_array_equal(written[name], values)


def test_progress_sees_every_leaf():
    seen = []
    read_hf(FIXTURES / "tied", progress=lambda leaves: (seen.append(len(leaves)), leaves)[1])
    assert seen == [2 + 3 * 6]


@pytest.mark.parametrize("case", ["mha", "llama3", "tied", "sharded", "wide-heads"])
def test_written_and_read_again_is_bit_equal(case, tmp_path):
    config, params = read_hf(FIXTURES / case)
    write_hf(tmp_path / "copy", config, params)
    again, copy = read_hf(tmp_path / "copy")
    assert again == config
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["config.json", "model.safetensors"]
    jax.tree.map(np.testing.assert_array_equal, copy, params)


def test_written_in_another_dtype(tmp_path):
    config, params = read_hf(FIXTURES / "mha")
    write_hf(tmp_path, config, params, "bfloat16")
    _, narrow = read_hf(tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(ml_dtypes.bfloat16)), narrow, params)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_both_dialects_of_rope_give_one_config(gqa):
    fields = json.loads((FIXTURES / "llama3" / "config.json").read_text())
    new = fields.pop("rope_parameters")
    old = fields | {"rope_theta": new.pop("rope_theta"), "rope_scaling": new}
    (gqa / "config.json").write_text(json.dumps(old))
    assert read_config(gqa) == read_config(FIXTURES / "llama3")
    assert read_config(gqa).rope_scaling.original_max_position_embeddings == 64


def test_end_tokens_of_generation_config_win(gqa):
    (gqa / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert read_config(gqa).eos_token_id == (5, 7)
    (gqa / "generation_config.json").write_text("{}")
    assert read_config(gqa).eos_token_id == (2,)


def test_truncated_weights(gqa):
    file = gqa / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(gqa, "model.safetensors is not a complete safetensors file .*download or write it again")
    file.write_bytes(b"")
    refused(gqa, "model.safetensors is not a complete safetensors file")


def test_weights_of_a_quantised_model(gqa):
    save_file({"lm_head.weight": np.zeros((97, 48), np.int8)}, gqa / "model.safetensors")
    refused(gqa, "lm_head.weight is I8; only float32, bfloat16, float16")


def test_absent_weights(gqa):
    (gqa / "model.safetensors").unlink()
    refused(gqa, "has none of model.safetensors, .*pytorch_model.bin.*; give the directory")


def test_a_shard_that_is_not_there(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refused(sharded, "lacks model-00002-of-00003.safetensors, named in model.safetensors.index.json")


def test_an_index_that_is_damaged(sharded):
    (sharded / INDEX).write_text('{"weight_map": ')
    refused(sharded, "index.json is not JSON .*download it again")
    (sharded / INDEX).write_text('{"metadata": {}}')
    refused(sharded, "has no weight_map")
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": "x" * 5000 + ".safetensors"}}))
    refused(sharded, r"names 'x+\.\.\.'; only .safetensors files beside it")
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": "\u00e9" * 200 + ".safetensors"}}))
    refused(sharded, "lacks \u00e9+.safetensors, named in")  # 400 bytes: the system takes no such name.


def test_a_tensor_in_two_shards(sharded):
    file = sharded / "model-00003-of-00003.safetensors"
    save_file(load_file(file) | {"model.embed_tokens.weight": np.zeros((97, 48), np.float16)}, file)
    with pytest.raises(DuplicateTensors, match=r"model\.embed_tokens\.weight"):
        read_hf(sharded)


def test_a_tensor_in_no_shard(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if not f.startswith("model-00003")}
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(MissingTensors, match=r"tensors are missing: lm_head\.weight;"):
        read_hf(sharded)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "has no config.json; give the directory of a checkpoint"),
        ("{", "config.json is not JSON"),
        (b"\xff\xfe", "config.json is not JSON"),
        ("[]", "holds a JSON list, not an object"),
        ("{}", "lacks vocab_size, hidden_size"),
        ('{"model_type": "gemma2"}', "model_type = 'gemma2'; only 'llama', 'mistral', 'qwen2', 'qwen3' are supported"),
        (json.dumps(dict.fromkeys(("vocab_size", "hidden_size"), "x")), "lacks intermediate_size"),
    ],
)
def test_a_config_that_cannot_be_read(gqa, text, match):
    (gqa / "config.json").unlink()
    if text is not None:
        (gqa / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(gqa, match)


def test_a_config_value_of_the_wrong_type(gqa):
    fields = json.loads((gqa / "config.json").read_text())
    (gqa / "config.json").write_text(json.dumps(fields | {"hidden_size": "48"}))
    refused(gqa, "gqa: hidden_size is '48'; it must be an integer")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", INDEX])
def test_json_nested_too_deeply(sharded, file):
    (sharded / file).write_text('{"a":' + "[" * 200_000)
    refused(sharded, f"{file} is not JSON .maximum recursion")


def test_a_checkpoint_of_fewer_layers_than_the_config_says_is_refused_before_they_are_traced(gqa, monkeypatch):
    fields = json.loads((gqa / "config.json").read_text())
    (gqa / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 1000}))
    monkeypatch.setattr(mapping, "entries", lambda *_: pytest.fail("the layers were traced"))
    refused(gqa, r"^997 layers of the 1000 that the config has .*: model.layers.3, .* and 991 more; are config and")


def test_dtypes():
    assert as_dtype(None) is None
    assert as_dtype("bfloat16") == ml_dtypes.bfloat16
    assert as_dtype(jax.numpy.float32) == np.float32
    for other in ("int8", "float64", "bf16", object()):
        with pytest.raises(ValueError, match="it must be one of float32, bfloat16, float16"):
            as_dtype(other)
