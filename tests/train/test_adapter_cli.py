"""``python -m train.adapter`` from a directory on disk to an adapter that loads, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import train.training_loop
from kangaroo_jax.model import KangarooConfig, LlamaConfig, init_adapter
from kangaroo_jax.store import load_adapter, save_adapter, write_hf
from train.adapter import main
from train.adapter_options import build_parser, make_optimizer
from train.byte_tokenizer import write_byte_tokenizer

Refusal = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path, tiny_config: LlamaConfig, tiny_params: dict) -> Path:
    """A Hugging Face directory of the tiny target."""
    directory = tmp_path / "tiny"
    write_hf(directory, tiny_config, tiny_params, "float32")
    write_byte_tokenizer(directory)
    return directory


@pytest.fixture
def command(model: Path, text_folder: Path) -> list[str]:
    """A run of six steps."""
    numbers = "--exit-layer 1 --steps 6 --warmup 1 --batch-size 3 --length 31 --learning-rate 0.003 --eval-every 3"
    return ["--model", str(model), "--data", str(text_folder), *numbers.split()]


def adapter_of(model: Path, config: LlamaConfig) -> tuple[KangarooConfig, list[np.ndarray], dict[str, Any]]:
    draft, params = load_adapter(model / "adapter", config, "float32")
    record = json.loads((model / "adapter" / "adapter_config.json").read_text())
    return draft, [np.array(leaf) for leaf in jax.tree.leaves(params)], record["training"]


def test_a_run_ends_in_an_adapter_that_loads(
    model: Path, command: list[str], tiny_config: LlamaConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command, "--gamma", "5", "--eta", "0.3"])
    draft, leaves, record = adapter_of(model, tiny_config)
    assert draft == KangarooConfig(exit_layer=1, gamma=5, eta=0.3)
    start = jax.tree.leaves(init_adapter(tiny_config, jax.random.key(0)))
    assert all(np.abs(leaf - np.asarray(old)).max() > 1e-4 for leaf, old in zip(leaves, start, strict=True))
    assert record["steps"] == 6 and record["tokens"] == 6 * 3 * 31
    assert record["model"] == model.name and record["data"] == ["text"] and record["seed"] == 0
    for name in ("loss", "top1", "acceptance"):
        assert record[name] >= 0 and record[f"held_out_{name}"] >= 0
    assert f"written to {model / 'adapter'}" in capsys.readouterr().out
    # Done already: the same command writes the same adapter again, and trains nothing.
    shutil.rmtree(model / "adapter")
    main([*command, "--gamma", "5", "--eta", "0.3"])
    assert all((a == b).all() for a, b in zip(leaves, adapter_of(model, tiny_config)[1], strict=True))


def test_a_stopped_run_resumes_to_the_same_adapter(
    model: Path,
    command: list[str],
    tiny_config: LlamaConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([*command, "--out", str(model.parent / "whole")])
    real = train.training_loop.place_batch
    calls = []

    def stopping(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(train.training_loop, "place_batch", stopping)
    assert main(command) == 130
    monkeypatch.undo()
    assert not (model / "adapter").exists()
    assert "the same command goes on" in capsys.readouterr().err
    assert (model / "adapter-training" / "checkpoints" / "4").is_dir()
    main(command)
    _, parts, record = adapter_of(model, tiny_config)
    whole = jax.tree.leaves(load_adapter(model.parent / "whole", tiny_config, "float32")[1])
    assert all((a == np.asarray(b)).all() for a, b in zip(parts, whole, strict=True))
    assert record["steps"] == 6


def test_another_run_is_not_resumed(
    refusal: Refusal, model: Path, command: list[str], tiny_config: LlamaConfig, tiny_params: dict
) -> None:
    main(command)
    training = str(model / "adapter-training")
    message = refusal(main, [*command, "--exit-layer", "2"])
    assert training in message and "exit_layer 1, not 2" in message and "another --out" in message
    assert "learning_rate 0.003, not 0.1" in refusal(main, [*command, "--learning-rate", "0.1"])
    (model / "adapter-training" / "checkpoints" / "format.json").unlink()  # As 0.1.0 left it.
    assert "has states of format 1" in refusal(main, [*command, "--learning-rate", "0.1"])
    (model / "adapter-training" / "checkpoints" / "format.json").write_text('{"format": 2}')
    # Other weights of the same shape.
    write_hf(model, tiny_config, jax.tree.map(lambda x: x * 1.5, tiny_params), "float32")
    assert "target_weights" in refusal(main, command)
    wider = dataclasses.replace(tiny_config, rope_theta=500.0)
    write_hf(model, wider, tiny_params, "float32")
    assert "holds a run with target " in refusal(main, command)


@pytest.mark.full
def test_a_warm_start_begins_with_the_given_adapter(
    refusal: Refusal, model: Path, command: list[str], tiny_config: LlamaConfig
) -> None:
    given = init_adapter(tiny_config, jax.random.key(77))
    warm = model.parent / "warm"
    save_adapter(warm, tiny_config, KangarooConfig(1), given, {})
    main([*command, "--init-adapter", str(warm), "--steps", "1", "--warmup", "0", "--learning-rate", "1e-9"])
    _, leaves, _ = adapter_of(model, tiny_config)
    for leaf, expected in zip(leaves, jax.tree.leaves(given), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-7)
    out = ["--out", str(model.parent / "other")]
    message = refusal(main, [*command, *out, "--init-adapter", str(warm), "--exit-layer", "2"])
    assert "trained for exit_layer 1, and exit_layer 2 is asked for" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--exit-layer 3", "--exit-layer is 3; the target has 3 layers"),
        ("--exit-layer 0", "--exit-layer is 0; it must be at least 1"),
        ("--final-states --mask upstream", "--mask upstream is two tokens late"),
        ("--length 68", "--length is 68; the target has 67 positions"),
        ("--length 1", "--length is 1; it must be at least 2"),
        ("--steps 0 --warmup 0", "--steps is 0"),
        ("--steps 3000000000", "--steps is 3000000000; it must be from 1 to 2147483647"),
        ("--warmup 6", "--warmup is 6; it must be from 0 to below --steps (6)"),
        ("--batch-size 0", "--batch-size is 0"),
        ("--learning-rate -1", "--learning-rate is -1.0; it must be above 0"),
        ("--betas 0.9 1", "--betas is [0.9, 1.0]"),
        ("--clip-value -1", "--clip-value is -1.0; it must be at least 0"),
        ("--clip-norm -1", "--clip-norm is -1.0; it must be at least 0"),
        ("--accumulate 0", "--accumulate is 0; it must be at least 1"),
        ("--accumulate 2", "--accumulate is 2; it must be a divisor of the 3 windows of a copy of the target"),
        ("--shard-target 3", "--shard-target is 3; it must be a divisor of the 1 devices"),
        ("--max-skipped 0", "--max-skipped is 0; it must be at least 1"),
        ("--eta -0.1", "--eta is -0.1"),
        ("--gamma 0", "--gamma is 0"),
        ("--gamma 70", "gamma is 70; it must be at most the model's context"),
        ("--eta inf", "eta is inf; it must be 0 or more, and finite"),
        ("--seed 99999999999999999999", "--seed is 99999999999999999999; it must be from 0 to 2147483647"),
        ("--model nobody", "unknown model 'nobody'"),
        ("--data missing.txt", "--data missing.txt does not exist"),
        ("--data-rows 0", "--data-rows is 0; it must be at least 1"),
        ("--show-mask -1", "--show-mask is -1; it must be at least 0"),
        ("--chat-template missing", "missing"),
        ("--init-adapter missing", "missing"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    refusal: Refusal, options: str, message: str, model: Path, command: list[str]
) -> None:
    assert message in refusal(main, [*command, *options.split()])
    assert not (model / "adapter").exists() and not (model / "adapter-training").exists()


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """40 short conversations, and a row that is none."""
    rows = [
        {"conversations": [{"from": "human", "value": f"{index}?"}, {"from": "gpt", "value": f"{index}!"}]}
        for index in range(40)
    ]
    file = tmp_path / "chats.json"
    file.write_text(json.dumps([*rows, {"conversations": []}]))
    return file


@pytest.mark.full
def test_an_adapter_is_trained_on_conversations(
    refusal: Refusal,
    model: Path,
    command: list[str],
    chats: Path,
    tiny_config: LlamaConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([*command, "--data", str(chats)])
    assert f"1 of 41 rows left out: 1 x conversations is empty ({chats}:41)" in capsys.readouterr().out
    record = adapter_of(model, tiny_config)[2]
    assert record["data"] == ["chats.json"] and record["mask"] == "reply" and record["held_out_loss"] > 0
    assert 17 * 24 < record["tokens"] < 18 * 26  # Six steps of three rows of 24 to 26 tokens, a few of them empty.
    assert "holds a run with mask 'reply', not 'upstream'" in refusal(
        main, [*command, "--data", str(chats), "--mask", "upstream"]
    )


def test_show_mask_prints_rows_and_trains_nothing(
    model: Path, command: list[str], chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command, "--data", str(chats), "--show-mask", "2"])
    printed = capsys.readouterr().out
    assert printed.count("Assistant: [[") == 2 and printed.count("<1>User: ") == 2
    assert "1 of 41 rows left out" in printed and not (model / "adapter-training").exists()
    template = chats.with_name("other.jinja")
    template.write_text("{% for m in messages %}({{ m['content'] }}){% endfor %}")
    main([*command, "--data", str(chats), "--show-mask", "1", "--chat-template", str(template), "--data-rows", "9"])
    printed = capsys.readouterr().out
    assert "?)[[(" in printed and "0 of 9 rows left out" in printed


def test_data_and_a_free_destination_are_needed(
    refusal: Refusal, model: Path, command: list[str], text_folder: Path
) -> None:
    assert "--data is missing" in refusal(main, ["--model", str(model), "--length", "31"])
    assert "holds something else than an adapter" in refusal(main, [*command, "--out", str(text_folder)])


def test_the_rate_rises_then_falls_to_zero() -> None:
    """AdamW's first update of a parameter is the learning rate: seen through gradients of 1."""
    options = "--steps 10 --warmup 4 --learning-rate 2 --weight-decay 0 --betas 0 0"
    args = build_parser().parse_args(["--model", "x", *options.split()])
    optimizer = make_optimizer(args)
    params = {"w": np.float32(0)}
    state, rates = optimizer.init(params), []
    for _ in range(11):
        updates, state = optimizer.update({"w": np.float32(100)}, state, params)
        rates.append(-float(updates["w"]))
    assert rates == pytest.approx([0.5, 1, 1.5, 2, 2, 5 / 3, 4 / 3, 1, 2 / 3, 1 / 3, 0], abs=1e-5)


def test_options_choose_schedule_and_clipping() -> None:
    options = "--steps 10 --warmup 0 --learning-rate 2 --weight-decay 0 --betas 0 0 --schedule cosine --clip-norm 1"
    optimizer = make_optimizer(build_parser().parse_args(["--model", "x", *options.split(), "--clip-value", "0"]))
    params = {"w": np.float32(0), "v": np.float32(0)}
    state, rates = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update({"w": np.float32(30), "v": np.float32(40)}, state, params)
        rates.append(-float(updates["w"]))
    averages = next(leaf.mu for leaf in state[-1] if hasattr(leaf, "mu"))
    assert rates == pytest.approx([1 + np.cos(np.pi * step / 10) for step in range(6)], abs=1e-5)
    assert {name: float(value) for name, value in averages.items()} == pytest.approx({"w": 0.6, "v": 0.8})
