"""A tiny target, and a folder of text, for the tests of training."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import jax
import pytest

from kangaroo_jax.model import LlamaConfig, init_params
from train.corpus import VOCAB_SIZE


@pytest.fixture(scope="session")
def tiny_config() -> LlamaConfig:
    """Three layers, grouped-query attention, joey's vocabulary."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=20,
        intermediate_size=29,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        max_position_embeddings=67,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config: LlamaConfig) -> dict:
    """Random weights, larger than the initialisation's, so that predictions differ from each other."""
    params = init_params(tiny_config, jax.random.key(5))
    return jax.tree.map(lambda x: x * 8 if x.ndim == 2 else x, params)


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """Return a function that runs a command, which must be refused, and returns the one line that it prints."""

    def refused(main: Callable[[list[str]], int], argv: list[str]) -> str:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            assert main(argv) == 1
        (message,) = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
        assert said.getvalue().endswith(f"{message}\n") and "Traceback" not in said.getvalue()
        return message

    return refused
