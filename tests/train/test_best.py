"""The best adapter on disk, and what is decoded to find it."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from kangaroo_jax.model import AdapterConfig, KangarooConfig, LlamaConfig, init_adapter
from train.batches import Conversations, Shape
from train.best import BEST, Best
from train.decoding import held_out_prompts
from train.render import Sample
from train.workspace import held


def params_of(config: LlamaConfig, seed: int) -> dict:
    return jax.device_get(init_adapter(config, jax.random.key(seed)))


def test_the_highest_compression_rate_is_kept(tmp_path: Path, tiny_config: LlamaConfig) -> None:
    best = Best(tmp_path / "best", tiny_config, KangarooConfig(1))
    assert best.read() is None
    for step, rate in ((10, 1.5), (20, 1.8), (30, 1.8), (40, 1.7)):
        best.offer(step, params_of(tiny_config, step), {"compression_rate": rate})
    found = best.read()
    assert found is not None and found[0] == 20
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(params_of(tiny_config, 20)), strict=True):
        np.testing.assert_array_equal(one, other)
    # A run that goes on from a checkpoint before it comes to it again.
    best.offer(20, params_of(tiny_config, 1), {"compression_rate": 1.1})
    found = best.read()
    assert found is not None and found[0] == 20


@pytest.mark.parametrize("other", [KangarooConfig(2), KangarooConfig(1, adapter=AdapterConfig(rope_theta=5.0))])
def test_that_of_another_draft_model_is_refused(
    other: KangarooConfig, tmp_path: Path, tiny_config: LlamaConfig
) -> None:
    Best(tmp_path / "best", tiny_config, other).offer(1, params_of(tiny_config, 0), {"compression_rate": 1.0})
    with pytest.raises(ValueError, match="best"):
        Best(tmp_path / "best", tiny_config, KangarooConfig(1)).read()


def test_that_of_a_run_without_a_checkpoint_is_not_the_next_runs(tmp_path: Path, tiny_config: LlamaConfig) -> None:
    with held(tmp_path, {"exit_layer": 2}):
        best = Best(tmp_path / BEST, tiny_config, KangarooConfig(2))
        best.offer(5, params_of(tiny_config, 0), {"compression_rate": 2.0})
    with held(tmp_path, {"exit_layer": 1}):
        assert Best(tmp_path / BEST, tiny_config, KangarooConfig(1)).read() is None
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "checkpoints" / "format.json").write_text('{"format": 2}')
    with held(tmp_path, {"exit_layer": 1}):
        best = Best(tmp_path / BEST, tiny_config, KangarooConfig(1))
        best.offer(3, params_of(tiny_config, 0), {"compression_rate": 2.0})
    with held(tmp_path, {"exit_layer": 1}):
        assert best.read() is not None


def test_prompts_are_of_all_lengths_and_as_many_as_asked_for() -> None:
    def sample(length: int) -> Sample:
        mask = np.arange(length) >= length - 3
        return Sample(np.full(length, length, np.int32), mask)

    held = Conversations([sample(length) for length in range(10, 500, 5)], Shape(32, 512))
    prompts = held_out_prompts(held.rows(8))
    assert [len(ids) for ids in prompts] == [ids[0] - 2 for ids in prompts] and len(prompts) == 8
    assert min(map(len, prompts)) < 150 and max(map(len, prompts)) > 350
    assert held_out_prompts(held.rows(8)) == prompts
    assert len(held_out_prompts(held.rows(1000))) == len(held.samples)
    assert max(map(len, held_out_prompts(held.rows(1000), longest=100))) == 100
