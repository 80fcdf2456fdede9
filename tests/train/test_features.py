"""Features of a data set: stored once, resumed, refused for other data, and the same loss from them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import train.features
from kangaroo_jax.model import KangarooConfig, LlamaConfig, head_kernel, init_adapter
from train.batches import Batch, Conversations, Shape, Windows
from train.corpus import BOS, EOS, TokenTexts
from train.data import Data
from train.features import with_features
from train.loss import columns_of, joint_loss
from train.render import Sample
from train.rows import BadRows

DRAFTS = {"1": KangarooConfig(1), "2": KangarooConfig(2)}


def sample(size: int, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    mask = rng.random(size) < 0.5
    mask[size // 2] = True
    return Sample(rng.integers(3, 259, size).astype(np.int32), mask)


@pytest.fixture
def data() -> Data:
    sizes = np.random.default_rng(1).integers(5, 67, 23)
    sides = [[sample(int(size), at) for at, size in enumerate(sizes[part])] for part in (slice(19), slice(19, None))]
    training, held = (Conversations(side, Shape(3, 67)) for side in sides)
    return Data(training, held, BadRows(), "digest")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two rows of features at a time; the list has the tokens of each that were computed."""
    monkeypatch.setattr(train.features, "IN_CACHE", 2 * 67)
    made, real = [], train.features._computed

    def counting(*args: Any) -> Any:
        compute = real(*args)
        return lambda tokens, mask: (made.append(tokens.size), compute(tokens, mask))[1]

    monkeypatch.setattr(train.features, "_computed", counting)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.bin")}


@pytest.mark.parametrize("columns", [None, 61])
def test_the_loss_of_stored_features_is_that_of_tokens(
    columns: int | None, tmp_path: Path, data: Data, tiny_config: LlamaConfig, tiny_params: dict
) -> None:
    stored = with_features(tmp_path, data, tiny_config, tiny_params, [1, 2])
    own: dict[str, Any] = {}
    if columns is not None:
        own = {"columns": columns_of(tiny_params, np.sort(np.random.default_rng(2).permutation(259)[:columns]))}
    frozen = own or {"lm_head": {"kernel": head_kernel(tiny_params)}}
    adapters = {name: init_adapter(tiny_config, jax.random.key(int(name))) for name in DRAFTS}
    gradient = jax.jit(jax.grad(joint_loss(tiny_config, DRAFTS), has_aux=True))

    def equal(tokens: Batch, states: Batch) -> None:
        assert "tokens" not in states and (tokens["mask"] == states["mask"]).all()
        one, other = gradient(adapters, tiny_params | own, tokens), gradient(adapters, frozen, states)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)

    for step, (tokens, states) in enumerate(zip(data.batches(0), stored.batches(0), strict=False)):
        equal(tokens, states)
        if step == 7:  # Beyond an epoch, with empty rows.
            break
    for tokens, states in zip(data.held_out_batches(), stored.held_out_batches(), strict=True):
        equal(tokens, states)


def test_a_killed_run_goes_on_and_a_second_one_computes_nothing(
    tmp_path: Path, data: Data, tiny_config: LlamaConfig, tiny_params: dict, small_batches: list[int]
) -> None:
    with_features(tmp_path / "whole", data, tiny_config, tiny_params, [1, 2])
    batches, whole = len(small_batches), contents(tmp_path / "whole")
    assert batches > 8 and set(whole) == {"exit1.bin", "exit2.bin", "final.bin", "total.bin", "chosen.bin"}
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name, file in whole.items():  # As if killed while the files of a batch were written one after the other.
        (tmp_path / "killed" / name).write_bytes(file[: len(file) // (2 if name == "final.bin" else 3) + 1])
    small_batches.clear()
    with_features(tmp_path / "killed", data, tiny_config, tiny_params, [1, 2])
    assert 0 < len(small_batches) < batches and contents(tmp_path / "killed") == whole
    small_batches.clear()
    again = with_features(tmp_path / "killed", data, tiny_config, tiny_params, [2])  # One of the layers will do.
    assert not small_batches and set(next(again.batches(0))) == {"mask", "exit2", "final", "total", "chosen"}


def test_other_features_are_refused(tmp_path: Path, data: Data, tiny_config: LlamaConfig, tiny_params: dict) -> None:
    with_features(tmp_path / "a", data, tiny_config, tiny_params, [1])
    other = dataclasses.replace(data, held_out=Conversations([sample(9, 77)], data.held_out.shape))
    half = jax.tree.map(lambda x: x.astype("bfloat16"), tiny_params)
    for what, layers, wanted, params in (
        ("exit_layers [1], not [1, 2]", [1, 2], data, tiny_params),
        ("text", [1], other, tiny_params),
        ("target_weights", [1], data, jax.tree.map(lambda x: x * 2, tiny_params)),
        ("dtype 'float32', not 'bfloat16'", [1], data, half),
    ):
        with pytest.raises(ValueError) as error:
            with_features(tmp_path / "a", wanted, tiny_config, params, layers)
        assert f"holds features with {what}" in str(error.value) and "--store-features" in str(error.value)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letters.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds something else than features"):
        with_features(tmp_path / "b", data, tiny_config, tiny_params, [1])
    text = Windows(TokenTexts([np.arange(3, 99, dtype=np.int32)], BOS, EOS, np.array([13])), data.training.shape)
    with pytest.raises(ValueError, match="is for conversations"):
        with_features(tmp_path / "c", dataclasses.replace(data, training=text), tiny_config, tiny_params, [1])


def test_a_disk_without_room_is_refused_before_anything_is_computed(
    tmp_path: Path,
    data: Data,
    tiny_config: LlamaConfig,
    tiny_params: dict,
    small_batches: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {True: 20 * 4 + 8, False: 20 * 4}  # Of a position of this target in fp32.
    samples = [*data.training.samples, *data.held_out.samples]
    needed = sum(int(s.mask.sum()) * sizes[True] + len(s.mask) * sizes[False] for s in samples)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(ValueError, match=r"needs 0.0\d\d GB, and 0.0\d\d GB are free there"):
        with_features(tmp_path, data, tiny_config, tiny_params, [1])
    tokens = sum(len(s.tokens) for s in samples)
    assert not small_batches and f"GB, {needed / tokens:,.0f} bytes a token" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    with_features(tmp_path, data, tiny_config, tiny_params, [1])
    assert sum(map(len, contents(tmp_path).values())) == needed
