"""Models on disk: Hugging Face directories, Orbax checkpoints, adapters, and the names they go by."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store.adapters import find_adapter, load_adapter, save_adapter
from kangaroo_jax.store.checkpoint import (
    Placement,
    default_dtype,
    leaf_groups,
    restore_params,
    save_params,
    to_device,
)
from kangaroo_jax.store.choice import check_writable, save_choice
from kangaroo_jax.store.dialects import config_from_hf, config_to_hf
from kangaroo_jax.store.files import read_json, whole_directory, write_json
from kangaroo_jax.store.hf import (
    DTYPES,
    as_dtype,
    open_hf,
    read_config,
    read_hf,
    stored_tensors,
    write_hf,
    write_safetensors,
)
from kangaroo_jax.store.mapping import (
    DuplicateTensors,
    ExtraTensors,
    MappingError,
    MisshapenTensors,
    MissingTensors,
    Params,
    check_shapes,
    flatten,
    from_flax,
    to_flax,
    unflatten,
)
from kangaroo_jax.store.names import ALIASES, EMBEDDED, companion, home, resolve
from kangaroo_jax.store.placement import target_sharding
from kangaroo_jax.store.record import fingerprint

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
    "Placement",
    "as_dtype",
    "check_shapes",
    "check_writable",
    "companion",
    "config_from_hf",
    "config_to_hf",
    "default_dtype",
    "find_adapter",
    "fingerprint",
    "flatten",
    "from_flax",
    "home",
    "load_adapter",
    "load_target",
    "open_hf",
    "read_config",
    "read_hf",
    "read_json",
    "resolve",
    "restore_params",
    "save_adapter",
    "save_choice",
    "save_params",
    "stored_tensors",
    "target_sharding",
    "to_device",
    "to_flax",
    "unflatten",
    "whole_directory",
    "write_hf",
    "write_json",
    "write_safetensors",
]


def load_target(
    name: str | os.PathLike[str],
    dtype: Any = None,
    sharding: Placement = None,
    keep: Callable[[str, Any], Any] | None = None,
) -> tuple[LlamaConfig, Params, Path]:
    """Load a target model straight to devices: no second copy of it is made on the way.

    Args:
        name: anything ``resolve`` knows: an embedded model, a directory in Hugging Face's layout or a converted one.
        dtype: float32, bfloat16 or float16; None is ``default_dtype()``.
        sharding: where the leaves go: one ``jax.sharding.Sharding`` for all, or a function of a leaf's path
            (``"layers_0/mlp/down_proj/kernel"``) and its ``jax.ShapeDtypeStruct``; None is the default device.
        keep: takes a leaf's path and the leaf, where it goes, and returns what is kept of it, such as the leaf packed;
            a few leaves at a time wait for it. None keeps all as they are.

    Returns:
        The config, the params, and the directory they came from (where the tokenizer and the adapter are).

    Raises:
        ValueError: if the name is unknown, or the files are absent, damaged or not those of a Llama.
    """
    kind = as_dtype(dtype) or default_dtype()
    directory = resolve(name)
    if not (directory / "params").is_dir():

        def place(path: str, values: Any) -> Any:
            leaf = to_device(path, values, sharding)
            return leaf if keep is None else keep(path, leaf)

        config, params = read_hf(directory, kind, place=place)
        return config, params, directory

    config = read_config(directory)
    if keep is None:
        return config, restore_params(directory / "params", config, kind, sharding), directory
    params = {}
    for names in leaf_groups(config, kind):
        some = flatten(restore_params(directory / "params", config, kind, sharding, names))
        for path in list(some):
            some[path] = keep(path, some[path])
        params |= unflatten(some)
    return config, params, directory
