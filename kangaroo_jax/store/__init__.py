"""Models on disk: Hugging Face directories, GGUF files, Orbax checkpoints, adapters, and the names they go by."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store.adapter_record import adapter_record, check_draft, fingerprint
from kangaroo_jax.store.adapters import (
    ADAPTER_CONFIG,
    EXPORTED,
    StoredAdapter,
    check_kind,
    find_adapter,
    load_adapter,
    read_adapter,
    save_adapter,
)
from kangaroo_jax.store.checkpoint import (
    FORMAT,
    ParamsWriter,
    Placement,
    default_dtype,
    leaf_groups,
    restore_params,
    save_params,
    to_device,
)
from kangaroo_jax.store.choice import check_writable, save_choice
from kangaroo_jax.store.dialects import config_from_hf, config_to_hf
from kangaroo_jax.store.failures import await_orbax, quiet_orbax, system_error
from kangaroo_jax.store.hf import (
    DTYPES,
    INDEX,
    SINGLE,
    TORCH_INDEX,
    TORCH_SINGLE,
    StoredTensor,
    as_dtype,
    checkpoint_tensors,
    open_hf,
    read_config,
    read_hf,
    stored_tensors,
    weight_files,
    write_hf,
    write_safetensors,
)
from kangaroo_jax.store.mapping import (
    WRAPPERS,
    DuplicateTensors,
    Entry,
    ExtraTensors,
    Leaf,
    MappingError,
    MisshapenTensors,
    MissingTensors,
    Params,
    Shape,
    canonical,
    check_shapes,
    common_dtype,
    entries,
    flatten,
    from_flax,
    matched,
    to_flax,
    unflatten,
)
from kangaroo_jax.store.names import (
    ALIASES,
    EMBEDDED,
    companion,
    converted,
    embedded,
    expand,
    home,
    installing,
    packaged,
    resolve,
)
from kangaroo_jax.store.placement import target_sharding
from kangaroo_jax.store.tables import ADAPTER
from kangaroo_jax.store.torch_file import write_torch

__all__ = [
    "ADAPTER",
    "ADAPTER_CONFIG",
    "ALIASES",
    "DTYPES",
    "EMBEDDED",
    "EXPORTED",
    "FORMAT",
    "INDEX",
    "SINGLE",
    "TORCH_INDEX",
    "TORCH_SINGLE",
    "WRAPPERS",
    "DuplicateTensors",
    "Entry",
    "ExtraTensors",
    "Leaf",
    "MappingError",
    "MisshapenTensors",
    "MissingTensors",
    "Params",
    "ParamsWriter",
    "Placement",
    "Shape",
    "StoredAdapter",
    "StoredTensor",
    "adapter_record",
    "as_dtype",
    "await_orbax",
    "canonical",
    "check_draft",
    "check_kind",
    "check_shapes",
    "check_writable",
    "checkpoint_tensors",
    "common_dtype",
    "companion",
    "config_from_hf",
    "config_to_hf",
    "converted",
    "default_dtype",
    "embedded",
    "entries",
    "expand",
    "find_adapter",
    "fingerprint",
    "flatten",
    "from_flax",
    "home",
    "installing",
    "load_adapter",
    "load_target",
    "matched",
    "open_hf",
    "packaged",
    "quiet_orbax",
    "read_adapter",
    "read_config",
    "read_hf",
    "resolve",
    "restore_params",
    "save_adapter",
    "save_choice",
    "save_params",
    "stored_tensors",
    "system_error",
    "target_sharding",
    "to_device",
    "to_flax",
    "unflatten",
    "weight_files",
    "write_hf",
    "write_safetensors",
    "write_torch",
]


def load_target(
    name: str | os.PathLike[str],
    dtype: Any = None,
    sharding: Placement = None,
    keep: Callable[[str, Any], Any] | None = None,
) -> tuple[LlamaConfig, Params, Path]:
    """Load a target model straight to devices: no second copy of it is made on the way.

    Args:
        name: anything ``resolve`` knows: an embedded model, a directory in Hugging Face's layout or a converted one, a
            GGUF file.
        dtype: float32, bfloat16 or float16; None is ``default_dtype()``.
        sharding: where the leaves go: one ``jax.sharding.Sharding`` for all, or a function of a leaf's path
            (``"layers_0/mlp/down_proj/kernel"``) and its ``jax.ShapeDtypeStruct``; None is the default device.
        keep: takes a leaf's path and the leaf, where it goes, and returns what is kept of it, such as the leaf packed;
            a few leaves at a time wait for it. None keeps all as they are.

    Returns:
        The config, the params, and the directory or GGUF file they came from, where the tokenizer is.

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
