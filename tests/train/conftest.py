"""A tiny target, and a folder of text, for the tests of training."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

import kangaroo_jax
from kangaroo_jax.model import LlamaConfig, init_params
from kangaroo_jax.store import write_hf
from train.byte_tokenizer import write_byte_tokenizer
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


@pytest.fixture(scope="session")
def ending_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_arrays: kangaroo_jax.Params) -> Path:
    """The tiny model, with every eleventh byte as an end token: some replies end, others reach the limit."""
    directory = tmp_path_factory.mktemp("ending") / "tiny"
    config = dataclasses.replace(tiny_arrays.config, eos_token_id=tuple(range(2, 259, 11)))
    write_hf(directory, config, jax.device_get(tiny_arrays.target), "float32")
    write_byte_tokenizer(directory, config.max_position_embeddings)
    shutil.copytree(tiny_model / "adapter", directory / "adapter")
    return directory
