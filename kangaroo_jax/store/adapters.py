"""Adapters on disk, in two forms: this package's own, and that of the paper's authors.

Ours is ``adapter_config.json`` and ``adapter.safetensors``. Theirs is the ``config.json`` of a Llama of one layer and
``pytorch_model.bin`` or ``model.safetensors``. Exported by ``convert.adapter``, that ``config.json`` has an object
``kangaroo``, too, with what ours says and theirs does not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kangaroo_jax.model import KangarooConfig, LlamaConfig
from kangaroo_jax.model.fields import brief
from kangaroo_jax.store.checkpoint import Placement, default_dtype, to_device
from kangaroo_jax.store.files import read_json, whole_directory, write_json
from kangaroo_jax.store.hf import StoredTensor, as_dtype, read_config, stored_tensors, weight_files, write_safetensors
from kangaroo_jax.store.mapping import ADAPTER, Params, flatten, from_flax, leaves, unflatten
from kangaroo_jax.store.names import expand
from kangaroo_jax.store.torch_zip import shown

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter.safetensors"
EXPORTED = "kangaroo"
_AGAIN = "train or download the adapter again"
_KINDS: dict[str, tuple[type, ...]] = {
    "exit_layer": (int,),
    "gamma": (int,),
    "eta": (int, float),
    "hidden_size": (int,),
    "target": (str,),
    "training": (dict,),
}
# What an adapter shares with its target; tensors of the right shape would compute something else with another value.
_SHARED = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
)
_IGNORED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
    """An adapter on disk that fits its target; its tensors are read when they are used.

    Attributes:
        draft: exit layer and default gamma and eta; where the directory does not say these two, the paper's.
        tensors: names and tensors.
        training: what is recorded about how it was trained; ``imported_from`` alone where nothing is.
    """

    draft: KangarooConfig
    tensors: tuple[tuple[str, StoredTensor], ...]
    training: dict[str, Any]


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
        write_json(staged / ADAPTER_CONFIG, adapter_record(config, draft, training))


def adapter_record(config: LlamaConfig, draft: KangarooConfig, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an adapter directory says beside its tensors: ``adapter_config.json``, or ``kangaroo`` in theirs."""
    fields = {"exit_layer": draft.exit_layer, "gamma": draft.gamma, "eta": draft.eta}
    target = {"hidden_size": config.hidden_size, "target": fingerprint(config)}
    return fields | target | {"training": dict(training)}


def load_adapter(
    directory: Path,
    config: LlamaConfig,
    dtype: Any = None,
    exit_layer: int | None = None,
    sharding: Placement = None,
) -> tuple[KangarooConfig, Params]:
    """Read an adapter directory of either form to devices.

    Args:
        directory: as for ``read_adapter``.
        config: the target it is to draft for.
        dtype: of the params; None is ``default_dtype()``.
        exit_layer: as for ``read_adapter``.
        sharding: where the params go, as for ``load_target``; their paths begin with ``adapter/``.

    Raises:
        ValueError: as ``read_adapter``, or if the tensors are not an adapter's.
    """
    stored = read_adapter(directory, config, exit_layer)
    found = leaves(config, stored.tensors, as_dtype(dtype) or default_dtype(), ADAPTER)
    params = {leaf.path: to_device(f"adapter/{leaf.path}", leaf.read(), sharding) for leaf in found}
    return stored.draft, unflatten(params)


def read_adapter(directory: Path, config: LlamaConfig, exit_layer: int | None = None) -> StoredAdapter:
    """Read what an adapter directory of either form says, and check that it is for this target.

    Args:
        directory: in the form of ``save_adapter``, or in that of the paper's authors.
        config: the target it is to draft for.
        exit_layer: the layer it was trained after; needed where the directory does not say it, as the authors' do not.

    Raises:
        ValueError: if a file is absent or damaged, the exit layer is not known or another one than ``exit_layer``, or
            the adapter was trained for another target.
    """
    directory = Path(directory)
    if exit_layer is not None and type(exit_layer) is not int:
        raise ValueError(f"exit_layer is {brief(exit_layer)}; it must be an integer")
    if (file := directory / ADAPTER_CONFIG).is_file():
        draft, training = _recorded(read_json(file, _AGAIN), str(file), config, exit_layer)
        files = [directory / ADAPTER_WEIGHTS]
    elif (directory / "config.json").is_file():
        draft, training = _read_theirs(directory, config, exit_layer)
        files = weight_files(directory)
    else:
        raise ValueError(
            f"{directory} has neither {ADAPTER_CONFIG} nor config.json; give an adapter directory, as "
            "python -m train.adapter writes it"
        )
    stored = [tensor for file in files for tensor in stored_tensors(file)]
    tensors = tuple((tensor.name, tensor) for tensor in stored if not _IGNORED.fullmatch(tensor.name))
    return StoredAdapter(draft, tensors, training)


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
    if not isinstance(adapter, str | os.PathLike) or adapter == "":
        raise ValueError(f"adapter is {adapter!r:.60}; give an adapter directory")
    path = expand(adapter)
    if not os.path.isdir(path):  # Path.is_dir raises for a name that is too long.
        raise ValueError(f"no adapter directory {os.fspath(adapter)!r:.300}; train one: python -m train.adapter")
    return path


def _read_theirs(directory: Path, config: LlamaConfig, exit_layer: int | None) -> tuple[KangarooConfig, dict[str, Any]]:
    """Return the draft model and training of an adapter in the authors' form."""
    file = directory / "config.json"
    theirs = read_config(directory)
    if theirs != theirs.plain:
        window = "" if theirs.sliding_window is None else " and a sliding window"
        raise ValueError(
            f"{file} has model_type {theirs.model_type}{window}; an adapter is plain Llama attention, of model_type "
            "llama: give another adapter"
        )
    if other := [name for name in _SHARED if getattr(theirs, name) != getattr(config, name)]:
        details = ", ".join(f"{name} {getattr(theirs, name)} instead of {getattr(config, name)}" for name in other)
        raise ValueError(f"{file} has {details}; use the adapter trained for this target")
    fields = read_json(file, _AGAIN)
    if EXPORTED in fields:
        if not isinstance(fields[EXPORTED], dict):
            raise ValueError(f"{file} has no usable {EXPORTED}; {_AGAIN}")
        return _recorded(fields[EXPORTED], f"{file}, {EXPORTED},", config, exit_layer)
    if exit_layer is None and theirs.num_hidden_layers > 1:
        raise ValueError(f"{file} is of a model of {theirs.num_hidden_layers} layers; give an adapter directory")
    if exit_layer is None:
        raise ValueError(
            f"{file} does not say after which layer the adapter was trained; pass exit_layer=, or --exit-layer on a "
            "command line (of the authors' adapters: 2 for 7B, 3 for 13B)"
        )
    draft = KangarooConfig(exit_layer)
    _check_draft(draft, config, str(directory))
    return draft, {"imported_from": directory.resolve().name}


def _recorded(
    fields: Mapping[str, Any], where: str, config: LlamaConfig, exit_layer: int | None
) -> tuple[KangarooConfig, dict[str, Any]]:
    """Return the draft model and training that an ``adapter_record`` holds; ``where`` it was found is for messages."""
    fields = {"training": {}} | dict(fields)
    if wrong := [name for name, kinds in _KINDS.items() if type(fields.get(name)) not in kinds]:
        raise ValueError(f"{where} has no usable {', '.join(wrong)}; {_AGAIN}")
    if fields["hidden_size"] != config.hidden_size:
        raise ValueError(
            f"{where}: the adapter is for hidden_size {brief(fields['hidden_size'])}, the model has "
            f"{config.hidden_size}; use the adapter trained for this model"
        )
    draft = KangarooConfig(fields["exit_layer"], fields["gamma"], fields["eta"])
    if exit_layer not in (None, draft.exit_layer):
        raise ValueError(
            f"{where}: the adapter was trained for exit_layer {brief(draft.exit_layer)}, and exit_layer "
            f"{brief(exit_layer)} is asked for; leave that out, or give another adapter"
        )
    _check_draft(draft, config, where)
    if fields["target"] != fingerprint(config):
        raise ValueError(
            f"{where}: the adapter is for target {shown(fields['target'])[1:-1]}, the model is {fingerprint(config)}; "
            "use the adapter trained for this model"
        )
    return dataclasses.replace(draft, eta=float(draft.eta)), fields["training"]


def _check_draft(draft: KangarooConfig, config: LlamaConfig, where: str) -> None:
    layers = config.num_hidden_layers
    if not 1 <= draft.exit_layer < layers:
        raise ValueError(
            f"{where}: exit_layer is {brief(draft.exit_layer)}; a model of {layers} layers needs 1 to {layers - 1}"
        )
    if draft.gamma < 1:
        raise ValueError(f"{where}: gamma is {brief(draft.gamma)}; at least 1 token must be drafted")
    if draft.gamma > config.max_position_embeddings:
        raise ValueError(
            f"{where}: gamma is {brief(draft.gamma)}; it must be at most the model's context, "
            f"{config.max_position_embeddings} tokens"
        )
    if not 0 <= draft.eta <= sys.float_info.max:  # JSON's integers have no bound.
        raise ValueError(f"{where}: eta is {brief(draft.eta)}; it must be 0 or more, and finite")
