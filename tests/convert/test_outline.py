"""A dry run says what a conversion does, refuses what it refuses, and reads no element."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from convert.outline import collapsed, outline, rows
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import DuplicateTensors, ExtraTensors, MisshapenTensors, MissingTensors, read_config, read_hf
from kangaroo_jax.store.hf import StoredTensor, stored_tensors, weight_files
from kangaroo_jax.store.mapping import entries, flatten, to_flax

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"
# No two extents are equal, so that a swapped axis cannot go unnoticed.
GQA = LlamaConfig(31, 23, 29, 5, 6, 3, 2)
TIED = LlamaConfig(31, 23, 29, 2, 5, 5, 4, tie_word_embeddings=True)
QWEN2 = dataclasses.replace(GQA, model_type="qwen2")
VICUNA = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128)


class Refuser:
    """The reader of a file that must not be read."""

    def get_tensor(self, name):
        raise AssertionError(f"{name} was read")


def stored(config, dtype="float16", **other):
    """Tensors of a model in two files; ``other`` has dtypes of some, by the number of the layer as ``layer_3``."""
    found = []
    for number, (name, entry) in enumerate(entries(config).items()):
        kind = next((value for key, value in other.items() if f".{key.removeprefix('layer_')}." in name), dtype)
        found.append(one(name, entry.shape, kind, f"part-{number % 2}.safetensors"))
    return found


def one(name, shape, dtype="float16", file="part-0.safetensors"):
    return StoredTensor(Path(file), name, shape, np.dtype(dtype), Refuser())


def totals(text):
    """The lines below the table."""
    return dict(line.split(maxsplit=1) for line in text.replace("bytes ", "bytes_").split("\n\n")[1].splitlines())


def test_nothing_is_read():
    tensors = stored(GQA)
    assert "model.norm.weight" in outline(GQA, tensors, "bfloat16")
    with pytest.raises(AssertionError, match="was read"):
        to_flax(GQA, [(tensor.name, tensor) for tensor in tensors])


@pytest.mark.parametrize("config", [GQA, TIED, QWEN2], ids=["gqa", "tied", "qwen2"])
def test_the_rows_say_what_a_conversion_does(config):
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=entry.shape).astype(np.float16) for name, entry in entries(config).items()}
    expected = flatten(to_flax(config, values, "bfloat16"))
    found = rows(config, stored(config), "bfloat16")
    assert sorted(row.name for row in found) == sorted(values)
    for row in found:
        block = expected[row.path]
        if row.columns:
            start, stop, every = row.columns
            block = block.reshape(*block.shape[:-1], -1, every)[..., start:stop].reshape(*block.shape[:-1], -1)
        np.testing.assert_array_equal(block.T if row.transposed else block, values[row.name].astype(ml_dtypes.bfloat16))
        assert (row.shape, row.dtype, row.result) == (values[row.name].shape, "float16", block.dtype.name)
    assert sum(row.bytes_written for row in found) == sum(leaf.nbytes for leaf in expected.values())


@pytest.mark.parametrize("case", ["mha", "sharded", "tied", "qwen3"])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_totals_are_those_of_a_conversion(case, dtype):
    files = weight_files(FIXTURES / case)
    tensors = [tensor for file in files for tensor in stored_tensors(file)]
    said = totals(outline(read_config(FIXTURES / case), tensors, dtype))
    leaves = jax.tree.leaves(read_hf(FIXTURES / case, dtype)[1])
    assert said["parameters"] == f"{sum(leaf.size for leaf in leaves):,}"
    assert said["bytes_written"] == f"{sum(leaf.nbytes for leaf in leaves):,}"
    assert said["bytes_read"] == f"{sum(np.asarray(tensor).nbytes for tensor in tensors):,}"
    assert said["tensors"] == f"{len(tensors)} in {len(files)} file{'s' if len(files) > 1 else ''}"


def test_the_layers_of_a_large_model_are_one():
    text = outline(VICUNA, stored(VICUNA), "bfloat16")
    lines = text.splitlines()
    assert len(lines) == 1 + 12 + 1 + 5
    assert (
        "model.layers.0-31.self_attn.k_proj.weight          float16 4096x4096   "
        "layers_0-31/self_attn/qkv_proj/kernel [128:256 of every 384]  4096x4096    32 x 33,554,432"
    ) in lines
    assert totals(text) == {
        "tensors": "291 in 2 files",
        "parameters": "6,738,415,616",
        "bytes_read": "13,476,831,232",
        "bytes_written": "13,476,831,232",
        "largest": "model.embed_tokens.weight, 262,144,000 bytes",
    }
    assert len(outline(VICUNA, stored(VICUNA), full=True).splitlines()) == 1 + 291 + 1 + 5


def test_only_layers_that_are_alike_are_merged():
    found = collapsed(rows(GQA, stored(GQA, layer_3="float32")))
    downs = [(row.name, row.count, row.dtype) for row in found if "down_proj" in row.name]
    assert downs == [
        ("model.layers.0-2,4.mlp.down_proj.weight", 4, "float16"),
        ("model.layers.3.mlp.down_proj.weight", 1, "float32"),
    ]
    assert sum(row.count for row in found) == len(entries(GQA))
    assert {row.result for row in found} == {"float32"}


def test_what_is_left_out_is_said():
    more = [one(f"model.layers.{i}.self_attn.rotary_emb.inv_freq", (2,), "float32") for i in range(2)]
    lines = outline(TIED, [*stored(TIED), *more, one("lm_head.weight", (31, 23))]).splitlines()
    assert [line for line in lines if line.startswith("left out: ")] == [
        "left out: model.layers.0-1.self_attn.rotary_emb.inv_freq, which the model computes itself",
        "left out: lm_head.weight, tied to the embedding table; "
        "a conversion compares the two and refuses one that differs",
    ]
    assert totals("\n".join(lines))["tensors"].startswith("20 in")


def test_other_names_are_read_and_a_head_that_is_the_table_is_not_left_out():
    other = [
        dataclasses.replace(
            item, name=f"_orig_mod.{item.name.replace('model.embed_tokens', 'lm_head').removeprefix('model.')}"
        )
        for item in stored(TIED)
    ]
    assert outline(TIED, other) == outline(TIED, stored(TIED))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda tensors: tensors[1:], MissingTensors),
        (lambda tensors: [*tensors, one("model.extra", (1,))], ExtraTensors),
        (lambda tensors: [*tensors, tensors[3]], DuplicateTensors),
        (lambda tensors: [*tensors[:-1], dataclasses.replace(tensors[-1], shape=(23, 31))], MisshapenTensors),
    ],
    ids=["missing", "extra", "duplicate", "misshapen"],
)
def test_what_a_conversion_refuses_is_refused(change, error):
    with pytest.raises(error):
        outline(GQA, change(stored(GQA)))


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype is 'int4'; it must be one of"):
        outline(GQA, stored(GQA), "int4")
