"""Medusa's heads on disk: ``medusa_config.json`` and ``medusa.safetensors``, one tensor for each leaf."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kangaroo_jax.model import LlamaConfig, abstract_medusa, count_heads
from kangaroo_jax.store.checkpoint import default_dtype, to_device
from kangaroo_jax.store.files import read_json, whole_directory, write_json
from kangaroo_jax.store.hf import as_dtype, stored_tensors, write_safetensors
from kangaroo_jax.store.mapping import Params, check_shapes, flatten, unflatten
from kangaroo_jax.store.record import fingerprint

MEDUSA_CONFIG, MEDUSA_WEIGHTS = "medusa_config.json", "medusa.safetensors"
_AGAIN = "make the heads again (python -m train.medusa)"


def save_medusa(directory: Path, config: LlamaConfig, params: Params, training: Mapping[str, Any]) -> None:
    """Write the heads of a target, replacing heads that are there; whole or not at all.

    Args:
        directory: the destination.
        config: the target's.
        params: the heads, float32 or bfloat16.
        training: anything JSON can hold about how they were trained.

    Raises:
        ValueError: if ``directory`` holds something else.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()) and not (directory / MEDUSA_CONFIG).is_file():
        raise ValueError(f"{directory} exists and holds no Medusa heads; choose another destination")
    record = {
        "heads": count_heads(params),
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "target": fingerprint(config),
        "training": dict(training),
    }
    with whole_directory(directory, replace=True) as staged:
        write_safetensors(staged / MEDUSA_WEIGHTS, {path: np.asarray(leaf) for path, leaf in flatten(params).items()})
        write_json(staged / MEDUSA_CONFIG, record)


def load_medusa(directory: Path, config: LlamaConfig, dtype: Any = None) -> Params:
    """Read the heads of a target to the default device.

    Args:
        directory: written by ``save_medusa``.
        config: the target's.
        dtype: of the params; None is ``default_dtype()``.

    Raises:
        ValueError: if a file is absent or damaged, or the heads are another target's.
    """
    directory = Path(directory)
    fields = read_json(directory / MEDUSA_CONFIG, _AGAIN)
    for name, own in (("hidden_size", config.hidden_size), ("vocab_size", config.vocab_size)):
        if fields.get(name) != own:
            raise ValueError(
                f"{directory} has Medusa heads for {name} {fields.get(name)!r:.60}, the model has {own}; use the heads "
                "made for this model"
            )
    if fields.get("target") != fingerprint(config):
        raise ValueError(
            f"{directory} has Medusa heads for target {fields.get('target')!r:.60}, the model is "
            f"{fingerprint(config)}; use the heads made for this model"
        )
    heads = fields.get("heads")
    if type(heads) is not int or not 1 <= heads <= 64:
        raise ValueError(f"{directory / MEDUSA_CONFIG} has no usable heads: {heads!r:.60}; {_AGAIN}")
    tensors = stored_tensors(directory / MEDUSA_WEIGHTS) if (directory / MEDUSA_WEIGHTS).is_file() else []
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(abstract_medusa(config, heads)).items()}
    check_shapes(wanted, [(tensor.name, tensor.shape) for tensor in tensors], fix=_AGAIN)
    kind = as_dtype(dtype) or default_dtype()
    read: dict[str, jax.Array] = {
        tensor.name: to_device(tensor.name, np.asarray(tensor).astype(kind), None) for tensor in tensors
    }
    return unflatten(read)
