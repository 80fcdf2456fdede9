"""The measurements of a training step: what they count, and that they run."""

from __future__ import annotations

import re

import pytest

from kangaroo_jax.model import LlamaConfig
from train.measure import main, step_flops


def test_every_matrix_product_is_counted_once() -> None:
    config = LlamaConfig(31, 8, 12, 5, 2, 1, 4)
    qkv, out, mlp = 8 * 16, 8 * 8, 3 * 8 * 12
    kept = 2 * (20 / 2) * 8  # q @ k and weights @ v of 8 columns, of each over half of 20 positions.
    layer, adapter, head = qkv + out + mlp + kept, qkv + out + kept, 8 * 31
    assert step_flops(config, 20) == 2 * (5 * layer + 3 * adapter + 3 * head)


def test_speed_is_compared_with_products(capsys: pytest.CaptureFixture[str]) -> None:
    main(["speed", "--rows", "1", "--length", "16", "--repeats", "1", "--product", "64"])
    text = capsys.readouterr().out
    for label, unit in (("step", "tokens/s"), ("matrix products", "GFLOP/s"), ("share of it", "%")):
        assert re.search(rf"^{label} +\d+ {unit}$", text, re.MULTILINE), text


def test_memory_does_not_grow_with_depth(capsys: pytest.CaptureFixture[str]) -> None:
    main(["memory", "--shape", "joey", "--rows", "1", "--length", "64", "--layers", "3", "4"])
    text = capsys.readouterr().out
    assert "grows by 0.000 GB a layer" in text and "10 layers: arguments 0." in text
