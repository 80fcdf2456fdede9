"""Adapters on disk, in two forms: this package's own, and that of the paper's authors.

Ours is ``adapter_config.json`` and ``adapter.safetensors``. Theirs is the ``config.json`` of a Llama of one layer and
``pytorch_model.bin`` or ``model.safetensors``. Exported by ``convert.adapter``, that ``config.json`` has an object
``kangaroo``, too, with what ours says and theirs does not.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kangaroo_jax.checks import brief
from kangaroo_jax.files import read_json, whole_directory, write_json
from kangaroo_jax.model import AdapterConfig, KangarooConfig, LlamaConfig, adapter_layers
from kangaroo_jax.store.adapter_record import AGAIN, adapter_record, check_draft, read_record
from kangaroo_jax.store.checkpoint import Placement, default_dtype, to_device
from kangaroo_jax.store.hf import StoredTensor, as_dtype, read_config, stored_tensors, weight_files, write_safetensors
from kangaroo_jax.store.mapping import Params, from_flax, leaves, unflatten
from kangaroo_jax.store.names import expand
from kangaroo_jax.store.shipped import shipped_adapter
from kangaroo_jax.store.tables import adapter_table

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter.safetensors"
DRAFT_VOCABULARY = "draft_vocabulary"
"""Name of the tensor beside the weights, and of its place in the params, that holds the ids that can be drafted."""
EXPORTED = "kangaroo"
THEIR_THETA = 10000.0
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
        draft: exit layer, default gamma and eta, and what the adapter computes; where the directory does not say these
            but the first, the paper's.
        tensors: names and tensors of the weights.
        vocabulary: ids of the tokens that it can draft, ascending, ``[N]`` int32; None for all.
        training: what is recorded about how it was trained; ``imported_from`` alone where nothing is.
    """

    draft: KangarooConfig
    tensors: tuple[tuple[str, StoredTensor], ...]
    vocabulary: np.ndarray | None
    training: dict[str, Any]


def save_adapter(
    directory: Path, config: LlamaConfig, draft: KangarooConfig, params: Params, training: Mapping[str, Any]
) -> None:
    """Write an adapter directory, replacing an adapter that is there; whole or not at all.

    Args:
        directory: the destination.
        config: the target's config.
        draft: exit layer, default gamma and eta, and what the adapter computes.
        params: the adapter's params, float32 or bfloat16; with a draft vocabulary, its ids as
            ``params["draft_vocabulary"]["ids"]``, ascending.
        training: anything JSON can hold about how it was trained.

    Raises:
        ValueError: if the params or the exit layer are not for this target, or ``directory`` holds something else.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()) and not (directory / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{directory} exists and is not an adapter; choose another destination")
    check_draft(draft, config, str(directory))
    weights = {name: part for name, part in params.items() if name != DRAFT_VOCABULARY}
    tensors = dict(from_flax(adapter_layers(config, draft.adapter), weights, adapter_table(draft.adapter)))
    if (size := draft.adapter.draft_vocabulary) is not None:
        ids = np.asarray(params[DRAFT_VOCABULARY]["ids"])
        tensors[DRAFT_VOCABULARY] = _checked_ids(ids, size, config.vocab_size, str(directory))
    with whole_directory(directory, replace=True) as staged:
        write_safetensors(staged / ADAPTER_WEIGHTS, tensors)
        write_json(staged / ADAPTER_CONFIG, adapter_record(config, draft, training))


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
    table = adapter_table(stored.draft.adapter)
    layers = adapter_layers(config, stored.draft.adapter)
    found = leaves(layers, stored.tensors, as_dtype(dtype) or default_dtype(), table)
    values = {leaf.path: leaf.read() for leaf in found}
    if stored.vocabulary is not None:
        values[f"{DRAFT_VOCABULARY}/ids"] = stored.vocabulary
    return stored.draft, unflatten(
        {path: to_device(f"adapter/{path}", value, sharding) for path, value in values.items()}
    )


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
        draft, training = read_record(read_json(file, AGAIN), str(file), config, exit_layer)
        files = [directory / ADAPTER_WEIGHTS]
    elif (directory / "config.json").is_file():
        draft, training = _read_theirs(directory, config, exit_layer)
        files = weight_files(directory)
    else:
        raise ValueError(
            f"{directory} has neither {ADAPTER_CONFIG} nor config.json; give an adapter directory, as "
            "python -m train.adapter writes it"
        )
    stored = [tensor for file in files for tensor in stored_tensors(file, (DRAFT_VOCABULARY,))]
    tensors = [(tensor.name, tensor) for tensor in stored if not _IGNORED.fullmatch(tensor.name)]
    vocabulary = None
    if (size := draft.adapter.draft_vocabulary) is not None:
        ids = dict(tensors).get(DRAFT_VOCABULARY)
        if ids is None:
            raise ValueError(f"{files[0]} has no tensor {DRAFT_VOCABULARY}, which its record tells of; {AGAIN}")
        vocabulary = _checked_ids(np.asarray(ids), size, config.vocab_size, str(files[0]))
        tensors = [(name, tensor) for name, tensor in tensors if name != DRAFT_VOCABULARY]
    return StoredAdapter(draft, tuple(tensors), vocabulary, training)


def find_adapter(directory: Path, adapter: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the adapter directory to load for a model: the one asked for, its own, this package's for it, or None.

    Args:
        directory: the model's directory, or its GGUF file.
        adapter: an adapter directory.

    Raises:
        ValueError: if the adapter asked for does not exist.
    """
    if adapter is None:
        own = Path(directory) / "adapter"
        return own if own.is_dir() else shipped_adapter(directory)
    if not isinstance(adapter, str | os.PathLike) or adapter == "":
        raise ValueError(f"adapter is {adapter!r:.60}; give an adapter directory")
    path = expand(adapter)
    if not os.path.isdir(path):  # Path.is_dir raises for a name that is too long.
        raise ValueError(f"no adapter directory {os.fspath(adapter)!r:.300}; train one: python -m train.adapter")
    return path


def check_kind(draft: KangarooConfig, where: str) -> None:
    """Raise ValueError if an adapter is none that the authors' form holds; ``where`` it stands is for the message."""
    theirs = AdapterConfig(rope_theta=draft.adapter.rope_theta)
    if dataclasses.replace(draft.adapter, draft_vocabulary=None) != theirs:
        heads = draft.adapter.num_key_value_heads
        what = f"with {heads} key/value heads" if heads else f"of kind {draft.adapter.kind!r}"
        what = "that reads final states" if draft.adapter.final_states else what
        raise ValueError(
            f"{where} is of an adapter {what}; the authors' form holds 'kangaroo' alone, with its target's heads: "
            f"give it in the form of {ADAPTER_CONFIG}"
        )


def _checked_ids(ids: np.ndarray, size: int, tokens: int, where: str) -> np.ndarray:
    """Return the ids of a draft vocabulary as int32.

    Raises:
        ValueError: if they are not ``size`` different ones of ``tokens``, ascending.
    """
    good = ids.shape == (size,) and ids.dtype.kind in "iu" and (ids[1:] > ids[:-1]).all()
    if not good or ids[0] < 0 or ids[-1] >= tokens:
        raise ValueError(f"{where} has no usable {DRAFT_VOCABULARY}: {size} ascending ids below {tokens}; {AGAIN}")
    return ids.astype(np.int32)


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
    fields = read_json(file, AGAIN)
    if EXPORTED in fields:
        if not isinstance(fields[EXPORTED], dict):
            raise ValueError(f"{file} has no usable {EXPORTED}; {AGAIN}")
        draft, training = read_record(fields[EXPORTED], f"{file}, {EXPORTED},", config, exit_layer)
        check_kind(draft, str(file))
        if draft.adapter.draft_vocabulary is not None:
            raise ValueError(f"{file} tells of a draft vocabulary, which the authors' form does not hold; {AGAIN}")
        return draft, training
    if exit_layer is None and theirs.num_hidden_layers > 1:
        raise ValueError(f"{file} is of a model of {theirs.num_hidden_layers} layers; give an adapter directory")
    if exit_layer is None:
        raise ValueError(
            f"{file} does not say after which layer the adapter was trained; pass exit_layer=, or --exit-layer on a "
            "command line (of the authors' adapters: 2 for 7B, 3 for 13B)"
        )
    # Their attention has this base, unscaled, whatever the target's is.
    own = (config.rope_theta, config.rope_scaling) != (THEIR_THETA, None)
    draft = KangarooConfig(exit_layer, adapter=AdapterConfig(rope_theta=THEIR_THETA if own else None))
    check_draft(draft, config, str(directory))
    return draft, {"imported_from": directory.resolve().name}
