"""Several adapters in one run: each is what it would have been alone, and all share the target's forward pass."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import kangaroo_jax
from kangaroo_jax.model import KangarooConfig, LlamaConfig, init_adapter
from kangaroo_jax.store import load_adapter, write_hf
from train.adapter import main
from train.byte_tokenizer import write_byte_tokenizer
from train.evaluation import figures_of
from train.loss import distillation_loss, joint_loss
from train.optimizer import adapter_optimizer, each_alone
from train.preparation import check_vacant
from train.run_log import read_log
from train.step import init_state, make_train_step, place, place_batch

DRAFTS = {"a": KangarooConfig(2), "b": KangarooConfig(1)}


def batch_of(config: LlamaConfig, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, (4, 11)).astype(np.int32)
    return {"tokens": tokens, "mask": rng.random(tokens.shape) < 0.8}


def adapters_of(config: LlamaConfig) -> dict:
    return {name: init_adapter(config, jax.random.key(seed)) for seed, name in enumerate(DRAFTS)}


def test_sums_and_gradients_are_those_of_each_alone(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    batch, adapters = batch_of(tiny_config, 0), adapters_of(tiny_config)
    gradient = jax.jit(jax.grad(joint_loss(tiny_config, DRAFTS), has_aux=True))
    slopes, sums = gradient(adapters, tiny_params, batch)
    alone = {}
    for name, draft in DRAFTS.items():
        loss = distillation_loss(tiny_config, draft.exit_layer)
        slope, alone[name] = jax.jit(jax.grad(loss, has_aux=True))(adapters[name], tiny_params, batch)
        for one, other in zip(jax.tree.leaves(slopes[name]), jax.tree.leaves(slope), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    for key in ("loss", "top1", "acceptance"):
        for name in DRAFTS:
            assert float(sums[f"{name}/{key}"]) == pytest.approx(float(alone[name][key]), rel=1e-5)
        assert float(sums[key]) == pytest.approx(sum(float(each[key]) for each in alone.values()) / 2, rel=1e-5)
    assert float(sums["tokens"]) == batch["mask"].sum() and "a/tokens" not in sums


def test_the_target_runs_once_for_all(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    """The program, gradient included, has one product with every layer's last matrix."""
    batch, adapters = batch_of(tiny_config, 0), adapters_of(tiny_config)
    gradient = jax.jit(jax.grad(joint_loss(tiny_config, DRAFTS), has_aux=True))
    program = gradient.lower(adapters, tiny_params, batch).as_text()
    positions, wide, width = 4 * 11, tiny_config.intermediate_size, tiny_config.hidden_size
    down = f"(tensor<{positions}x{wide}xf32>, tensor<{wide}x{width}xf32>)"
    assert program.count(down) == tiny_config.num_hidden_layers


def test_clipping_by_norm_is_not_shared(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    alone = adapter_optimizer(0.01, 100, 0, clip_norm=1e-3)
    joint = each_alone(alone, DRAFTS)
    step = make_train_step(joint_loss(tiny_config, DRAFTS), joint)
    together = place(init_state(adapters_of(tiny_config), joint))
    singles = {name: place(init_state(params, alone)) for name, params in adapters_of(tiny_config).items()}
    steps = {
        name: make_train_step(distillation_loss(tiny_config, draft.exit_layer), alone) for name, draft in DRAFTS.items()
    }
    target = place(tiny_params)
    for seed in range(3):
        batch = place_batch(batch_of(tiny_config, seed))
        together, _ = step(together, target, batch)
        singles = {name: steps[name](state, target, batch)[0] for name, state in singles.items()}
    for name in DRAFTS:
        assert (
            optax.tree.norm(
                jax.tree.map(np.subtract, *map(jax.device_get, (together.params[name], singles[name].params)))
            )
            < 1e-4
        )


@pytest.mark.full
def test_one_run_writes_an_adapter_for_every_exit_layer(
    tmp_path: Path, text_folder: Path, tiny_config: LlamaConfig, tiny_params: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tiny"
    write_hf(model, tiny_config, tiny_params, "float32")
    write_byte_tokenizer(model)
    numbers = (
        "--steps 4 --batch-size 3 --length 31 --learning-rate 0.01 --eval-every 2 --decode-every 2 --dtype float32"
    )
    command = ["--model", str(model), "--data", str(text_folder), *numbers.split(), "--decode-prompts", "2"]
    both, one = model / "adapters", tmp_path / "one"
    main([*command, "--exit-layers", "1,2", "--adapter", "own-head,linear"])
    printed = capsys.readouterr().out
    assert f"written to {both / 'exit1-linear'}" in printed and "4 adapters of" in printed
    main([*command, "--exit-layer", "2", "--adapter", "own-head", "--out", str(one)])
    assert load_adapter(both / "exit1-linear", tiny_config)[0].adapter.kind == "linear"
    draft, joint = load_adapter(both / "exit2-own-head", tiny_config, "float32")
    _, alone = load_adapter(one, tiny_config, "float32")
    assert draft.exit_layer == 2 and draft.adapter.kind == "own-head"
    for a, b in zip(jax.tree.leaves(joint), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    records = [
        json.loads((folder / "adapter_config.json").read_text())["training"]
        for folder in (both / "exit2-own-head", one)
    ]
    for key in ("held_out_loss", "held_out_acceptance", "compression_rate"):
        assert records[0][key] == pytest.approx(records[1][key], rel=1e-3), key
    assert [(record["exit_layer"], record["adapter"]) for record in records] == [(2, "own-head")] * 2
    names = {"exit1-linear/compression_rate", "exit2-own-head/ctar_1", "learning_rate"}
    assert names <= set(read_log(model / "adapters-training" / "log.jsonl"))
    assert main([*command, "--exit-layer", "2", "--out", str(both)]) == 1
    assert "holds something else than an adapter" in capsys.readouterr().err
    assert kangaroo_jax.load(model).adapter is None  # Several are nobody's default.


def test_the_folder_of_several_holds_nothing_else(tmp_path: Path) -> None:
    check_vacant(tmp_path / "new", ["exit1", "exit2"])
    (tmp_path / "exit1").mkdir()
    (tmp_path / ".exit2-left-by-a-kill").mkdir()
    check_vacant(tmp_path, ["exit1", "exit2"])
    (tmp_path / "exit3").mkdir()
    with pytest.raises(ValueError, match="holds something else than the adapters exit1, exit2; pass another folder"):
        check_vacant(tmp_path, ["exit1", "exit2"])
    with pytest.raises(ValueError, match="holds something else than an adapter"):
        check_vacant(tmp_path, ["exit1"])


def test_figures_of_one_adapter_are_told_apart() -> None:
    figures = {"loss": 3.0, "exit1/loss": 2.0, "exit12/loss": 4.0}
    assert figures_of("exit1", figures, several=True) == {"loss": 2.0}
    assert figures_of("exit1", {"loss": 3.0}, several=False) == {"loss": 3.0}
