"""Orbax checkpoints: written whole, read back bit-equal, refused in one line when damaged or another's."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import shutil
import signal

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kangaroo_jax.model import LlamaConfig, init_params
from kangaroo_jax.store import ExtraTensors, MisshapenTensors, MissingTensors, restore_params, save_params

CONFIG = LlamaConfig(31, 22, 29, 3, 6, 3, 4)


@pytest.fixture(scope="module")
def params():
    return jax.device_get(init_params(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    """A checkpoint not to be damaged."""
    directory = tmp_path_factory.mktemp("store") / "params"
    save_params(directory, params)
    return directory


def refused(call, match):
    """The call fails with a one-line ValueError."""
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_params_come_back(saved, params, dtype):
    restored = restore_params(saved, CONFIG, dtype)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(kind)), jax.device_get(restored), params)


def test_a_checkpoint_is_not_overwritten(saved, params):
    refused(lambda: save_params(saved, params), "exists; remove it or choose another")


def test_a_save_that_fails_leaves_nothing(tmp_path, params, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_params(tmp_path / "params", params)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_orbax_writes_leaves_nothing_and_says_nothing(tmp_path, params, monkeypatch, capfd):
    save = ocp.StandardCheckpointer.save

    def pressed_twice(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        save(self, *args, **kwargs)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", pressed_twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        save_params(tmp_path / "params", params)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err == ""


def test_params_are_saved_from_another_thread_too(tmp_path, params):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(save_params, tmp_path / "params", params).result()
    restored = jax.device_get(restore_params(tmp_path / "params", CONFIG))
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_damaged_checkpoints_are_refused_in_silence(saved, tmp_path, capfd):
    files = [path.relative_to(saved) for path in sorted(saved.rglob("*")) if path.is_file()]
    assert len(files) > 5
    for number, name in enumerate(files):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(saved, copy)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
        refused(lambda copy=copy: restore_params(copy, CONFIG), r"copy\d.*; convert the model again")
        (copy / name).unlink()
        refused(lambda copy=copy: restore_params(copy, CONFIG), r"copy\d.*; convert the model again")
    assert capfd.readouterr().err == ""


def test_an_unreadable_checkpoint_of_the_right_size_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    file = tmp_path / "copy" / "_METADATA"
    file.write_bytes(b"x" * file.stat().st_size)
    refused(lambda: restore_params(tmp_path / "copy", CONFIG), "not a readable checkpoint; convert the model again")


def test_an_absent_checkpoint_is_refused(tmp_path):
    refused(lambda: restore_params(tmp_path / "params", CONFIG), "params does not exist; convert")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_hidden_layers": 4}, MissingTensors),
        ({"num_hidden_layers": 2}, ExtraTensors),
        ({"tie_word_embeddings": True}, ExtraTensors),
        ({"intermediate_size": 31}, MisshapenTensors),
    ],
)
def test_the_checkpoint_of_another_config_is_refused(saved, changes, error):
    with pytest.raises(error, match=r"belongs to another config\.json; convert the model again"):
        restore_params(saved, dataclasses.replace(CONFIG, **changes))
