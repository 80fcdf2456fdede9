"""Models on disk: Hugging Face directories, Orbax checkpoints, adapters, and the names they go by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store.adapters import find_adapter, fingerprint, load_adapter, save_adapter
from kangaroo_jax.store.checkpoint import default_dtype, restore_params, save_params
from kangaroo_jax.store.hf import DTYPES, as_dtype, read_config, read_hf, write_hf
from kangaroo_jax.store.mapping import (
    DuplicateTensors,
    ExtraTensors,
    MappingError,
    MisshapenTensors,
    MissingTensors,
    Params,
    from_flax,
    to_flax,
)
from kangaroo_jax.store.names import ALIASES, EMBEDDED, home, resolve

__all__ = [
    "ALIASES",
    "DTYPES",
    "EMBEDDED",
    "DuplicateTensors",
    "ExtraTensors",
    "MappingError",
    "MisshapenTensors",
    "MissingTensors",
    "Params",
    "as_dtype",
    "default_dtype",
    "find_adapter",
    "fingerprint",
    "from_flax",
    "home",
    "load_adapter",
    "load_target",
    "read_config",
    "read_hf",
    "resolve",
    "restore_params",
    "save_adapter",
    "save_params",
    "to_flax",
    "write_hf",
]


def load_target(name: str | os.PathLike[str], dtype: Any = None) -> tuple[LlamaConfig, Params, Path]:
    """Load a target model onto the default device.

    Args:
        name: anything ``resolve`` knows: an embedded model, a directory in Hugging Face's layout or a converted one.
        dtype: float32, bfloat16 or float16; None is ``default_dtype()``.

    Returns:
        The config, the params, and the directory they came from (where the tokenizer and the adapter are).

    Raises:
        ValueError: if the name is unknown, or the files are absent, damaged or not those of a Llama.
    """
    kind = as_dtype(dtype) or default_dtype()
    directory = resolve(name)
    if (directory / "params").is_dir():
        config = read_config(directory)
        return config, restore_params(directory / "params", config, kind), directory
    config, params = read_hf(directory, kind)
    return config, jax.device_put(params), directory
