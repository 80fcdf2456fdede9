"""A tiny target, and a folder of text, for the tests of training."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """30 small files: enough for the hash of the path to choose among them."""
    folder = tmp_path / "text"
    for index in range(30):
        file = folder / f"part{index % 3}" / f"file{index}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"value_{index} = {line} * {index}\n" for line in range(7)))
    return folder
