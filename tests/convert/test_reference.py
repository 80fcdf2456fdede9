"""References stored by users are read as they are, or refused in one line; without torch both ways out are named."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.reference import read_reference, transformers_logits, transformers_reference
from kangaroo_jax.store import read_config

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"
VOCAB = 7


def arrays(shape=(2, 5), **other):
    rng = np.random.default_rng(0)
    usual = {"tokens": rng.integers(VOCAB, size=shape), "logits": rng.normal(size=(*shape, VOCAB)).astype(np.float32)}
    return usual | other


def written(file, found):
    np.savez(file, **found) if file.suffix == ".npz" else save_file(found, file)
    return file


def refused(file, match):
    with pytest.raises(ValueError, match=match) as caught:
        read_reference(file, VOCAB)
    assert "\n" not in str(caught.value) and file.name in str(caught.value)


@pytest.mark.parametrize("case", ["mha", "tied"])
def test_the_goldens_of_this_repository_are_references(case):
    file = FIXTURES / case / "golden.npz"
    found = read_reference(file, 97)
    with np.load(file) as golden:
        np.testing.assert_array_equal(found.tokens, golden["tokens"][None])
        np.testing.assert_array_equal(found.logits, golden["logits"][None])
    assert (found.name, found.dtype) == (str(file), "float32")


@pytest.mark.parametrize("name", ["stored.npz", "stored.safetensors"])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 5)])
@pytest.mark.parametrize("ids", ["tokens", "input_ids"])
def test_both_formats_with_batch_and_without(name, shape, ids, tmp_path):
    expected = arrays(shape)
    found = {ids: expected["tokens"], "logits": expected["logits"], "attention": np.ones(3, np.float32)}
    read = read_reference(written(tmp_path / name, found), VOCAB)
    np.testing.assert_array_equal(read.tokens, expected["tokens"].reshape(-1, 5))
    np.testing.assert_array_equal(read.logits, expected["logits"].reshape(-1, 5, VOCAB))
    assert read.logits.dtype == np.float32


@pytest.mark.parametrize(
    ("stored", "said"), [(np.float64, "float32"), (np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16")]
)
def test_the_dtype_of_the_logits_is_remembered_if_it_is_coarse(stored, said, tmp_path):
    logits = arrays()["logits"].astype(stored)
    read = read_reference(written(tmp_path / "a.safetensors", arrays(logits=logits)), VOCAB)
    assert read.dtype == said and read.logits.dtype == np.float32
    np.testing.assert_array_equal(read.logits, logits.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tokens": np.zeros((2, 4), int)}, r"tokens is \[2, 4\] and logits are \[2, 5, 7\]; a reference has"),
        ({"tokens": np.zeros(10, int)}, r"tokens is \[10\] and logits are \[2, 5, 7\]"),
        ({"tokens": np.int64(3), "logits": np.zeros(VOCAB)}, r"tokens is \[\] and logits are \[7\]"),
        ({"tokens": np.zeros((2, 5))}, "tokens is float64; token ids are whole numbers"),
        ({"tokens": np.full((2, 5), 7)}, "tokens has id 7; ids of this model go from 0 to 6"),
        ({"tokens": np.full((2, 5), -1)}, "tokens has id -1; ids of this model"),
        ({"tokens": np.zeros((2, 0), int), "logits": np.zeros((2, 0, VOCAB))}, "give at least one position"),
        ({"logits": np.zeros((2, 5, 8))}, "logits are for a vocabulary of 8, the model has 7"),
        ({"logits": np.zeros((2, 5, VOCAB), int)}, "logits are int64; they must be float32"),
        ({"logits": np.full((2, 5, VOCAB), np.nan)}, "logits are not all finite"),
        ({"logits": np.full((2, 5, VOCAB), np.inf)}, "logits are not all finite"),
    ],
)
def test_arrays_that_cannot_be_a_reference(change, match, tmp_path):
    refused(written(tmp_path / "a.npz", arrays(**change)), match)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_arrays_that_are_not_there(name, tmp_path):
    refused(written(tmp_path / name, {"logits": arrays()["logits"]}), "lacks tokens or input_ids; a reference has")
    refused(written(tmp_path / name, {"x": np.zeros(3)}), "lacks tokens or input_ids and logits; a reference has")


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_damaged_files(name, tmp_path):
    file = written(tmp_path / name, arrays())
    whole = file.read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:60] + b"\xff" * 40 + whole[100:]):
        file.write_bytes(damaged)
        refused(file, "not a readable")


def test_pickles_are_not_loaded(tmp_path):
    written(tmp_path / "a.npz", arrays(tokens=np.array([{"an": "object"}])))
    refused(tmp_path / "a.npz", "not a readable .npz file")


def test_no_file_and_files_of_other_kinds(tmp_path):
    refused(tmp_path / "absent.npz", "no file .*give a .npz or .safetensors file")
    (tmp_path / "a.pt").write_bytes(b"")
    refused(tmp_path / "a.pt", "is a .pt file; give a .npz or .safetensors file")
    np.save(tmp_path / "b.npy", np.zeros(3))
    refused((tmp_path / "b.npy").rename(tmp_path / "b.npz"), "not a readable .npz file")


def test_without_torch_both_ways_out_are_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(ValueError, match=r"torch is not installed.*pip install torch\), or give a file with token ids"):
        transformers_logits(FIXTURES / "mha", np.zeros((1, 3), np.int32))


@pytest.mark.parametrize(("limit", "bos", "length"), [(512, 3, 320), (101, 3, 101), (512, None, 320), (512, 97, 320)])
def test_the_sequences_fit_the_model_and_start_as_prompts_do(monkeypatch, limit, bos, length):
    monkeypatch.setattr("convert.reference.transformers_logits", lambda source, tokens, dtype: tokens)
    config = dataclasses.replace(read_config(FIXTURES / "mha"), max_position_embeddings=limit, bos_token_id=bos)
    tokens = transformers_reference(FIXTURES / "mha", config, "float32").tokens
    assert tokens.shape == (2, length) and tokens.min() >= 0 and tokens.max() < 97
    assert (tokens[:, 0] == 3).all() == (bos == 3)
    assert len(np.unique(tokens)) > 80 and (tokens[0] != tokens[1]).any()
