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
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.experimental import v1

from kangaroo_jax.model import LlamaConfig, init_params
from kangaroo_jax.store import (
    ExtraTensors,
    MisshapenTensors,
    MissingTensors,
    checkpoint,
    restore_params,
    save_params,
)
from kangaroo_jax.store.checkpoint import ParamsWriter
from kangaroo_jax.store.mapping import flatten

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

    monkeypatch.setattr(v1.partial, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_params(tmp_path / "params", params)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_orbax_writes_leaves_nothing_and_says_nothing(tmp_path, params, monkeypatch, capfd):
    save = v1.partial.save

    def pressed_twice(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        save(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(v1.partial, "save", pressed_twice)
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


def test_orbax_reads_it_without_this_package(saved, params):
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(saved)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), params)


def test_some_pieces_are_read_alone(saved, params):
    restored = restore_params(saved, CONFIG, only=["layers_1", "norm"])
    assert sorted(restored) == ["layers_1", "norm"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), {name: params[name] for name in restored})


def test_leaves_go_where_they_are_told(saved):
    mesh = jax.make_mesh((1,), ("model",))
    columns, whole = NamedSharding(mesh, PartitionSpec(None, "model")), NamedSharding(mesh, PartitionSpec())
    restored = flatten(restore_params(saved, CONFIG, sharding=lambda path, leaf: columns if leaf.ndim == 2 else whole))
    assert {leaf.sharding for leaf in restored.values()} == {columns, whole}
    assert all((leaf.sharding == columns) == (leaf.ndim == 2) for leaf in restored.values())
    assert {leaf.sharding for leaf in jax.tree.leaves(restore_params(saved, CONFIG, sharding=whole))} == {whole}


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        ("cpu", "sharding of embed_tokens/embedding is 'cpu'; pass a jax.sharding.Sharding, or a function"),
        (lambda path, leaf: None, "sharding of embed_tokens/embedding is None; pass"),
        (PartitionSpec(), r"is P\(\); pass"),
    ],
)
def test_what_is_no_sharding_is_refused(saved, sharding, message):
    refused(lambda: restore_params(saved, CONFIG, sharding=sharding), message)


def test_a_damaged_journal_is_no_journal(tmp_path, params, one_by_one):
    first = ParamsWriter(tmp_path / "parts")
    first.add("norm/scale", params["norm"]["scale"])
    (tmp_path / "parts" / "saved.jsonl").write_text("not json\n")
    assert ParamsWriter(tmp_path / "parts").saved == set() and [*(tmp_path / "parts").iterdir()] == []


@pytest.fixture
def one_by_one(monkeypatch):
    """Write every leaf at once; return what was handed to Orbax, in order."""
    written = []
    save = v1.partial.save

    def recorded(path, state):
        written.extend(flatten(state))
        save(path, state)

    monkeypatch.setattr(checkpoint, "BATCH_BYTES", 1)
    monkeypatch.setattr(v1.partial, "save", recorded)
    return written


def test_a_second_writer_goes_on_with_the_first_ones_leaves(tmp_path, params, one_by_one):
    leaves = flatten(params)
    first = ParamsWriter(tmp_path / "parts")
    for path in [*leaves][:5]:
        first.add(path, leaves[path])
    half = (
        next((tmp_path / "parts").glob("params*")) / "params.partial_save.pending_7_half"
    )  # What it was at when killed.
    half.mkdir()
    journal = tmp_path / "parts" / "saved.jsonl"
    journal.write_text(journal.read_text() + '{"leaves": ["nor')
    second = ParamsWriter(tmp_path / "parts")
    assert second.saved == set([*leaves][:5]) and not half.exists()
    second.add([*leaves][5], leaves[[*leaves][5]])
    third = ParamsWriter(tmp_path / "parts")  # The line that was cut short has not spoilt the next one.
    assert third.saved == set([*leaves][:6])
    for path in [*leaves][6:]:
        third.add(path, leaves[path])
    third.finish(tmp_path / "params")
    assert sorted(one_by_one) == sorted(leaves)
    assert [item.name for item in tmp_path.iterdir()] == ["params"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restore_params(tmp_path / "params", CONFIG)), params)


@pytest.mark.parametrize("damage", ["stopped while finishing", "a part is gone"])
def test_a_writer_begins_anew_where_the_parts_are_not_whole(tmp_path, params, one_by_one, monkeypatch, damage):
    leaves = flatten(params)
    first = ParamsWriter(tmp_path / "parts")
    for path in [*leaves][:3]:
        first.add(path, leaves[path])
    if damage == "a part is gone":
        shutil.rmtree(next((tmp_path / "parts").glob("params*")))
    else:
        with monkeypatch.context() as patched, pytest.raises(OSError, match="cut"):
            patched.setattr(v1.partial, "finalize", lambda path: (_ for _ in ()).throw(OSError("cut")))
            first.finish(tmp_path / "params")
    second = ParamsWriter(tmp_path / "parts")
    assert second.saved == set() and [*(tmp_path / "parts").glob("params*")] == []
