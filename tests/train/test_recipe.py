"""What a run does where its options are silent."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from kangaroo_jax.model import LlamaConfig
from train.adapter_options import build_parser
from train.joey import joey_config
from train.preparation import settle
from train.recipe import drafts_of, scheduled, settled
from workshop.published_shapes import SHAPES


def options(words: str, config: LlamaConfig) -> Any:
    return settled(build_parser().parse_args(words.split()), config)


def data(epoch_steps: int) -> Any:
    """All that a schedule asks of data."""
    return SimpleNamespace(epoch_steps=epoch_steps)


def test_a_published_target_gets_the_recipe_of_the_paper() -> None:
    args = options("--model vicuna-7b", SHAPES["vicuna-7b"])
    assert (args.batch_size, args.length, args.learning_rate, args.epochs) == (32, 2048, 5e-5, 10)
    assert (tuple(args.betas), args.weight_decay, args.clip_value, args.schedule) == ((0.9, 0.95), 0.01, 0.5, "linear")
    assert (args.exit_layer, args.gamma, args.eta) == ((2,), 6, 0.6)
    args = scheduled(args, data(2100))
    assert (args.steps, args.warmup) == (21000, 2000)
    assert options("--model vicuna-13b", SHAPES["vicuna-13b"]).exit_layer == (3,)


def test_joey_gets_its_own() -> None:
    args = scheduled(options("--model joey", joey_config()), data(7000))
    assert (args.batch_size, args.length, args.exit_layer, args.gamma, args.eta) == (8, 512, (2,), 7, 0.2)
    assert args.steps < 7000 and args.warmup == args.steps // 10


def test_what_is_asked_for_is_kept() -> None:
    words = "--model joey --batch-size 5 --length 77 --learning-rate 1 --gamma 2 --eta 0 --exit-layer 3 --steps 9"
    args = options(words + " --warmup 0", joey_config())
    assert (args.batch_size, args.length, args.learning_rate, args.gamma, args.eta) == (5, 77, 1, 2, 0)
    args = scheduled(args, data(7000))
    assert (args.exit_layer, args.steps, args.warmup) == ((3,), 9, 0)


@pytest.mark.parametrize("model", ["joey", "vicuna-7b"])
@pytest.mark.parametrize(("words", "steps"), [("--steps 40", 40), ("--epochs 2.5", 25), ("--epochs 0.01", 1)])
def test_steps_or_epochs_say_how_long_a_run_is(model: str, words: str, steps: int) -> None:
    args = scheduled(options(f"--model {model} {words}", joey_config()), data(10))
    assert args.steps == steps and args.warmup == steps // 10
    with pytest.raises(ValueError, match=r"--epochs is 3 and --steps is 4; pass one of them"):
        options(f"--model {model} --epochs 3 --steps 4", joey_config())


def test_a_device_computes_no_more_at_a_time_than_the_papers() -> None:
    args, config = build_parser().parse_args(["--model", "vicuna-7b"]), SHAPES["vicuna-7b"]
    assert [settled(args, config, copies).accumulate for copies in (8, 32, 4, 1)] == [1, 1, 2, 8]
    args = build_parser().parse_args(["--model", "x", "--batch-size", "6", "--length", "4000"])
    config = dataclasses.replace(config, max_position_embeddings=4096)
    assert [settled(args, config, copies).accumulate for copies in (1, 2, 6)] == [3, 3, 1]
    args.accumulate = 1
    assert settled(args, config).accumulate == 1


@pytest.mark.parametrize("epochs", ["inf", "nan", "0", "-1"])
def test_epochs_are_a_number(epochs: str) -> None:
    with pytest.raises(ValueError, match=r"--epochs is -?\w+(\.0)?; it must be above 0 and finite"):
        settle(build_parser().parse_args(["--model", "joey", f"--epochs={epochs}"]), joey_config())


def test_rows_are_no_longer_than_the_target_is_wide() -> None:
    short = dataclasses.replace(SHAPES["vicuna-7b"], max_position_embeddings=300)
    assert options("--model x", short).length == 300


def test_the_warm_up_is_shorter_than_the_run() -> None:
    args = options("--model joey --steps 5 --warmup 5", joey_config())
    with pytest.raises(ValueError, match=r"--warmup is 5; it must be from 0 to below --steps \(5\)"):
        scheduled(args, data(10))
    with pytest.raises(ValueError, match=r"--epochs is 1e\+12, that is \d+ steps; it must be 2147483647 steps at most"):
        scheduled(options("--model joey --epochs 1e12", joey_config()), data(10))


def test_every_exit_layer_is_a_draft_model() -> None:
    drafts = drafts_of(options("--model joey --exit-layers 3,1,3 --gamma 4 --eta 0.5", joey_config()))
    assert {name: (draft.exit_layer, draft.gamma, draft.eta) for name, draft in drafts.items()} == {
        "exit1": (1, 4, 0.5),
        "exit3": (3, 4, 0.5),
    }
