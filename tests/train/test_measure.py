"""The measurements of a training step: what they count, and that they run."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kangaroo_jax.model import LlamaConfig, abstract_adapter, abstract_params
from train.loss import distillation_loss
from train.measure import main, step_flops
from train.optimizer import adapter_optimizer
from train.step import init_state, make_train_step


def test_every_matrix_product_is_counted_once() -> None:
    config = LlamaConfig(31, 8, 12, 5, 2, 1, 4)
    qkv, out, mlp = 8 * 16, 8 * 8, 3 * 8 * 12
    kept = 2 * (20 / 2) * 8  # q @ k and weights @ v of 8 columns, of each over half of 20 positions.
    layer, adapter, head = qkv + out + mlp + kept, qkv + out + kept, 8 * 31
    assert step_flops(config, 20) == 2 * (5 * layer + 3 * adapter + 3 * head)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_xla_counts_the_same_operations(kv_heads: int) -> None:
    """XLA adds what is no product, and the half of attention that the mask takes away: little, where rows are short."""
    config, rows, length = LlamaConfig(512, 256, 704, 4, 4, kv_heads, 64), 2, 64
    optimizer = adapter_optimizer(1e-4, 1000, 100)
    state = jax.eval_shape(lambda adapter: init_state(adapter, optimizer), abstract_adapter(config))
    kinds = {"tokens": jnp.int32, "mask": jnp.bool_}
    batch = {name: jax.ShapeDtypeStruct((1, rows, length), kind) for name, kind in kinds.items()}
    step: Any = make_train_step(distillation_loss(config, 2), optimizer)  # In one chunk: a loop's body counts once.
    counted = step.lower(state, abstract_params(config), batch).compile().cost_analysis()["flops"]
    assert 1 <= counted / (rows * length) / step_flops(config, length) < 1.07


@pytest.mark.full
def test_speed_is_compared_with_products(capsys: pytest.CaptureFixture[str]) -> None:
    main(["speed", "--rows", "1", "--length", "16", "--repeats", "1", "--product", "64"])
    text = capsys.readouterr().out
    for label, unit in (("step", "tokens/s"), ("matrix products", "GFLOP/s"), ("share of it", "%")):
        assert re.search(rf"^{label} +\d+ {unit}$", text, re.MULTILINE), text


def test_memory_does_not_grow_with_depth(capsys: pytest.CaptureFixture[str]) -> None:
    main(["memory", "--shape", "joey", "--rows", "1", "--length", "64", "--layers", "3", "4"])
    text = capsys.readouterr().out
    assert "grows by 0.000 GB a layer" in text and "10 layers: arguments 0." in text
