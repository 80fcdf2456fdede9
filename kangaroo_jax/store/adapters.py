"""Adapters on disk: two small files, which say what they are for and how they were trained."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kangaroo_jax.model import KangarooConfig, LlamaConfig
from kangaroo_jax.store.checkpoint import default_dtype
from kangaroo_jax.store.files import read_json, whole_directory, write_json
from kangaroo_jax.store.hf import as_dtype, stored_tensors, write_safetensors
from kangaroo_jax.store.mapping import ADAPTER, Params, flatten, from_flax, to_flax
from kangaroo_jax.store.names import expand

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter.safetensors"


def fingerprint(config: LlamaConfig) -> str:
    """Return a short name for what an adapter depends on in its target: everything that shapes the computation.

    Special tokens and the context length are left out; they may be edited without harm to an adapter.
    """
    ignored = ("bos_token_id", "eos_token_id", "max_position_embeddings")
    fields = flatten({name: value for name, value in config.to_hf().items() if name not in ignored})
    # 500000 and 500000.0 are the same theta.
    fields = {name: float(value) if isinstance(value, int | float) else value for name, value in fields.items()}
    return f"{config.model_type}-" + hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def save_adapter(
    directory: Path, config: LlamaConfig, draft: KangarooConfig, params: Params, training: Mapping[str, Any]
) -> None:
    """Write an adapter directory, replacing an adapter that is there; whole or not at all.

    Args:
        directory: the destination.
        config: the target's config.
        draft: exit layer and default gamma and eta.
        params: the adapter's params, float32 or bfloat16.
        training: anything JSON can hold about how it was trained.

    Raises:
        ValueError: if the params or the exit layer are not for this target, or ``directory`` holds something else.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()) and not (directory / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{directory} exists and is not an adapter; choose another destination")
    _check_draft(draft, config, str(directory))
    tensors = dict(from_flax(config, params, ADAPTER))
    with whole_directory(directory, replace=True) as staged:
        write_safetensors(staged / ADAPTER_WEIGHTS, tensors)
        fields = {"exit_layer": draft.exit_layer, "gamma": draft.gamma, "eta": draft.eta}
        target = {"hidden_size": config.hidden_size, "target": fingerprint(config)}
        write_json(staged / ADAPTER_CONFIG, fields | target | {"training": dict(training)})


def load_adapter(directory: Path, config: LlamaConfig, dtype: Any = None) -> tuple[KangarooConfig, Params]:
    """Read an adapter directory onto the default device.

    Args:
        directory: written by ``save_adapter``.
        config: the target it is to draft for.
        dtype: of the params; None is ``default_dtype()``.

    Raises:
        ValueError: if a file is absent or damaged, or the adapter was trained for another target.
    """
    directory = Path(directory)
    file = directory / ADAPTER_CONFIG
    fields = read_json(file, "give an adapter directory, as python -m train.adapter writes it")
    kinds: dict[str, tuple[type, ...]] = {
        "exit_layer": (int,),
        "gamma": (int,),
        "eta": (int, float),
        "hidden_size": (int,),
        "target": (str,),
    }
    if wrong := [name for name, kind in kinds.items() if type(fields.get(name)) not in kind]:
        raise ValueError(f"{file} has no usable {', '.join(wrong)}; train or download the adapter again")
    if fields["hidden_size"] != config.hidden_size:
        raise ValueError(
            f"{directory}: the adapter is for hidden_size {fields['hidden_size']}, the model has {config.hidden_size}; "
            "use the adapter trained for this model"
        )
    draft = KangarooConfig(fields["exit_layer"], fields["gamma"], float(fields["eta"]))
    _check_draft(draft, config, str(file))
    if fields["target"] != fingerprint(config):
        raise ValueError(
            f"{directory}: the adapter is for target {fields['target']}, the model is {fingerprint(config)}; "
            "use the adapter trained for this model"
        )
    tensors = [(tensor.name, tensor) for tensor in stored_tensors(directory / ADAPTER_WEIGHTS)]
    params = to_flax(config, tensors, as_dtype(dtype) or default_dtype(), ADAPTER)
    return draft, jax.device_put(params)


def find_adapter(directory: Path, adapter: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the adapter directory to load for a model: the one asked for, else the model's own, else None.

    Args:
        directory: the model's directory.
        adapter: an adapter directory.

    Raises:
        ValueError: if the adapter asked for does not exist.
    """
    if adapter is None:
        own = Path(directory) / "adapter"
        return own if own.is_dir() else None
    path = expand(adapter)
    if not path.is_dir():
        raise ValueError(f"no adapter directory {os.fspath(adapter)!r}; train one: python -m train.adapter")
    return path


def _check_draft(draft: KangarooConfig, config: LlamaConfig, where: str) -> None:
    layers = config.num_hidden_layers
    if not 1 <= draft.exit_layer < layers:
        raise ValueError(
            f"{where}: exit_layer is {draft.exit_layer}; a model of {layers} layers needs 1 to {layers - 1}"
        )
    if draft.gamma < 1:
        raise ValueError(f"{where}: gamma is {draft.gamma}; at least 1 token must be drafted")
    if not draft.eta >= 0:
        raise ValueError(f"{where}: eta is {draft.eta}; it must be 0 or more")
