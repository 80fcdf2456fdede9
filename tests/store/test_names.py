"""Names of models, and load_target, which goes from a name to params."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.store import home, load_target, names, read_config, read_hf, resolve, save_params

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"


@pytest.fixture(autouse=True)
def home_folder(tmp_path, monkeypatch):
    """A home folder of its own, and a working directory without models."""
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def refused(name, match):
    with pytest.raises(ValueError, match=match) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_home(monkeypatch, home_folder):
    assert home() == home_folder
    monkeypatch.delenv("KANGAROO_HOME")
    assert home() == Path.home() / ".cache" / "kangaroo_jax"


def test_directories_are_themselves(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve(".") == Path()


def test_converted_models_are_found_by_alias_hub_id_and_name(home_folder):
    for name in ("vicuna-7b", "lmsys--vicuna-7b-v1.3", "mine"):
        (home_folder / name).mkdir(parents=True)
    assert resolve("vicuna-7b") == home_folder / "vicuna-7b"
    assert resolve("lmsys/vicuna-7b-v1.3") == home_folder / "lmsys--vicuna-7b-v1.3"
    assert resolve("mine") == home_folder / "mine"


def test_the_embedded_model(tmp_path, monkeypatch):
    package = tmp_path / "kangaroo_jax" / "store"
    package.mkdir(parents=True)
    monkeypatch.setattr(names, "__file__", str(package / "names.py"))
    refused("joey", "embedded model 'joey' is missing from .*; install kangaroo_jax again")
    assets = tmp_path / "kangaroo_jax" / "assets" / "joey"
    shutil.copytree(FIXTURES / "gqa", assets)
    assert resolve("joey") == assets


def test_an_alias_that_is_not_converted_says_how():
    refused("vicuna-7b", "'vicuna-7b' is not in .*home yet; convert it: python -m convert.hf_to_flax vicuna-7b$")
    refused("lmsys/vicuna-7b-v1.3", "convert it: python -m convert.hf_to_flax lmsys/vicuna-7b-v1.3$")


def test_unknown_names_list_the_known(home_folder):
    (home_folder / "mine").mkdir(parents=True)
    (home_folder / ".half-xyz").mkdir()
    refused(
        "kangaru",
        "unknown model 'kangaru'; give one of joey, vicuna-7b, .*, tinyllama, smollm2, mine, an existing",
    )
    for name in ("", " ", "x" * 5000, "./joey", "../mine", "no/such/model", "~nobody-at-all"):
        refused(name, f"unknown model '{name[:99]}")


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused("model.safetensors", "'model.safetensors' is a file; give the directory that holds it")


@pytest.mark.parametrize("dtype", [None, "bfloat16", jnp.float32])
def test_load_target_reads_both_layouts(tmp_path, dtype):
    config, params = read_hf(FIXTURES / "gqa")
    save_params(tmp_path / "converted" / "params", params)
    shutil.copyfile(FIXTURES / "gqa" / "config.json", tmp_path / "converted" / "config.json")
    kind = np.dtype("float32" if dtype is None else dtype)
    for directory in (FIXTURES / "gqa", tmp_path / "converted"):
        loaded_config, loaded, where = load_target(directory, dtype)
        assert (loaded_config, where) == (config, directory)
        assert all(isinstance(leaf, jax.Array) and leaf.dtype == kind for leaf in jax.tree.leaves(loaded))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b.astype(kind)), loaded, params)


def test_load_target_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json; give the directory of a checkpoint"):
        load_target(tmp_path)
    with pytest.raises(ValueError, match="dtype is 'int4'"):
        load_target(FIXTURES / "gqa", "int4")
    assert read_config(FIXTURES / "gqa").vocab_size == 97
