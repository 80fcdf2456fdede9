"""Directories whose weights are torch's .bin files, and weight files of both kinds that lie about what is where."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from kangaroo_jax.store import MissingTensors, read_hf
from kangaroo_jax.store.hf import stored_tensors, weight_files, write_safetensors
from kangaroo_jax.store.torch_file import write_torch

FIXTURES = Path(__file__).parent.parent / "fixtures"
LLAMA = FIXTURES / "llama"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def as_torch(source, directory):
    """Copy a fixture with its safetensors, single or sharded, turned into .bin files."""
    shutil.copytree(source, directory)
    for file in directory.glob("*.safetensors"):
        name = file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        write_torch(directory / name, load_file(file))
        file.unlink()
    index = directory / INDEXES[0]
    if index.is_file():
        text = index.read_text().replace("model-0", "pytorch_model-0").replace(".safetensors", ".bin")
        index.unlink()
        (directory / INDEXES[1]).write_text(text)
    return directory


def refused(directory, match):
    """Reading fails with a one-line ValueError."""
    with pytest.raises(ValueError, match=match) as caught:
        read_hf(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ["mha", "gqa", "sharded"])
def test_torch_files_give_what_safetensors_give(case, tmp_path):
    config, params = read_hf(LLAMA / case)
    again, same = read_hf(as_torch(LLAMA / case, tmp_path / case))
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(same)} == {leaf.dtype for leaf in jax.tree.leaves(params)}


def test_a_tied_head_that_is_stored(tmp_path):
    directory = as_torch(LLAMA / "tied", tmp_path / "tied")
    file = directory / "pytorch_model.bin"
    tensors = {tensor.name: np.asarray(tensor) for tensor in stored_tensors(file)}
    write_torch(file, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    jax.tree.map(np.testing.assert_array_equal, read_hf(directory)[1], read_hf(LLAMA / "tied")[1])


NAMES = {
    "a base model": lambda name: name.removeprefix("model."),
    "compiled": lambda name: f"_orig_mod.{name}",
    "the head alone": lambda name: name.replace("model.embed_tokens", "lm_head"),
    "all three": lambda name: f"_orig_mod.{name.replace('model.embed_tokens', 'lm_head').removeprefix('model.')}",
}


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("named", NAMES)
def test_a_tied_checkpoint_under_other_names(named, form, tmp_path):
    directory = Path(shutil.copytree(LLAMA / "tied", tmp_path / "tied"))
    file = directory / "model.safetensors"
    tensors = {NAMES[named](name): values for name, values in load_file(file).items()}
    if form == "bin":
        file.unlink()
        write_torch(directory / "pytorch_model.bin", tensors)
    else:
        write_safetensors(file, tensors)
    config, expected = read_hf(LLAMA / "tied")
    again, found = read_hf(directory)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_two_heads_of_a_tied_config(form, tmp_path):
    directory = as_torch(LLAMA / "tied", tmp_path / "tied")
    file = directory / "pytorch_model.bin"
    tensors = {tensor.name: np.asarray(tensor) for tensor in stored_tensors(file)}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    if form == "bin":
        write_torch(file, tensors)
    else:
        write_safetensors(directory / "model.safetensors", tensors)
    refused(directory, "lm_head.weight; it differs from the embedding table, .* set tie_word_embeddings to false")
    fields = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": False}
    (directory / "config.json").write_text(json.dumps(fields))
    head = read_hf(directory)[1]["lm_head"]["kernel"]
    np.testing.assert_array_equal(head, tensors["lm_head.weight"].T)


def test_safetensors_are_preferred(tmp_path):
    directory = as_torch(LLAMA / "gqa", tmp_path / "gqa")
    shutil.copy(LLAMA / "gqa" / "model.safetensors", directory)
    assert weight_files(directory) == [directory / "model.safetensors"]
    (directory / "pytorch_model.bin").write_bytes(b"not read")
    read_hf(directory)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_nothing_of_a_file_stays_mapped_when_its_tensors_are_gone(tmp_path, kind):
    directory = as_torch(LLAMA / "gqa", tmp_path / "gqa") if kind == "bin" else LLAMA / "gqa"
    (file,) = weight_files(directory)
    tensors = stored_tensors(file)
    total = sum(np.asarray(tensor).astype(np.float32).sum() for tensor in tensors)
    assert np.isfinite(total)
    assert str(file) not in {part.path for part in psutil.Process().memory_maps()}
    mapped = np.memmap(file)
    assert mapped.size and str(file) in {part.path for part in psutil.Process().memory_maps()}


def test_tensors_of_other_dtypes_are_not_weights():
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin: float64 is float64; only float32, bfloat16, float16 are"
    ):
        stored_tensors(FIXTURES / "torch" / "pytorch_model.bin")


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_name_that_would_break_a_line(tmp_path, suffix):
    file = tmp_path / f"model.{suffix}"
    write = write_torch if suffix == "bin" else write_safetensors
    write(file, {"a\n\x1b[2Jb": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match=r"has a tensor with the name 'a\\n\\x1b\[2Jb'; get the"):
        stored_tensors(file)


def test_a_damaged_file(tmp_path):
    directory = as_torch(LLAMA / "gqa", tmp_path / "gqa")
    file = directory / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-1])
    refused(directory, "pytorch_model.bin is a zip archive without its end")


def test_a_tensor_in_no_torch_shard(tmp_path):
    directory = as_torch(LLAMA / "sharded", tmp_path / "sharded")
    index = json.loads((directory / INDEXES[1]).read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if "00003-of" not in f}
    (directory / INDEXES[1]).write_text(json.dumps(index))
    with pytest.raises(MissingTensors, match=r"tensors are missing: lm_head\.weight;"):
        read_hf(directory)


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize(
    "name", ["{above}/x", "../x", "sub/x", "sub/../x", "..", ".", "", ".x", "a\\..\\x", "x\ny", "C:x", "x.pt", "x"]
)
def test_an_index_that_names_other_places(tmp_path, name, kind):
    suffix = kind.split(".")[1]
    outside = tmp_path / f"x.{suffix}"
    directory = tmp_path / "model"
    (directory / "sub").mkdir(parents=True)
    shutil.copy(LLAMA / "gqa" / "config.json", directory)
    source = LLAMA / "gqa" / "model.safetensors"
    for file in (outside, directory / "sub" / outside.name):  # The files are there, and good.
        shutil.copy(source, file) if suffix == "safetensors" else write_torch(file, load_file(source))
    name = name.format(above=tmp_path) + (f".{suffix}" if name.endswith("x") and name != "x" else "")
    (directory / kind).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    refused(directory, f"{kind} names .*; only .{suffix} files beside it are read")


def test_a_shard_may_be_a_link_as_in_the_hubs_cache(tmp_path):
    directory = as_torch(LLAMA / "sharded", tmp_path / "snapshot")
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(directory.glob("*.bin"))):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(f"../blobs/{number}")
    jax.tree.map(np.testing.assert_array_equal, read_hf(directory)[1], read_hf(LLAMA / "sharded")[1])


def header(**tensors):
    """The beginning of a safetensors file; a tensor is its dtype, shape and offsets."""
    fields = {name: dict(zip(("dtype", "shape", "data_offsets"), item, strict=True)) for name, item in tensors.items()}
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        header(a=("F32", [2], [0, 8]), b=("F32", [2], [4, 12])) + bytes(12),
        header(a=("F32", [2], [0, 8]), b=("F32", [2], [0, 8])) + bytes(8),
        header(a=("F32", [2], [0, 8]), b=("F32", [2], [12, 20])) + bytes(20),
        header(a=("F32", [2], [8, 0])) + bytes(8),
        header(a=("F32", [2], [-8, 0])) + bytes(8),
        header(a=("F32", [3], [0, 8])) + bytes(8),
        header(a=("F32", [1 << 40, 1 << 40], [0, 8])) + bytes(8),
        header(a=("F32", [2], [0, 8])) + bytes(7),
        header(a=("F32", [2], [0, 8])) + bytes(9),
        header(a=("F33", [2], [0, 8])) + bytes(8),
        header(a=("F32", [-2], [0, 8])) + bytes(8),
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xff",
        b"",
    ],
    ids=[
        "overlap",
        "same",
        "gap",
        "backwards",
        "negative",
        "short",
        "huge",
        "cut",
        "long",
        "dtype",
        "extent",
        "bomb",
        "header",
        "list",
        "text",
        "empty",
    ],
)
def test_safetensors_that_lie(tmp_path, content):
    directory = Path(shutil.copytree(LLAMA / "gqa", tmp_path / "gqa"))
    (directory / "model.safetensors").write_bytes(content)
    refused(directory, r"model\.safetensors is not a complete safetensors file \(.*\); download or write it again")
