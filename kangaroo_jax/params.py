"""A loaded model, as everything else takes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from kangaroo_jax.kernels import DRAFT_WEIGHTS, pack_adapter, pack_leaf, pack_target, packs, use_native, why_not
from kangaroo_jax.model import KangarooConfig, LlamaConfig, with_draft_head
from kangaroo_jax.store import (
    Placement,
    as_dtype,
    default_dtype,
    find_adapter,
    load_adapter,
    load_target,
    read_config,
    resolve,
)
from kangaroo_jax.text import Tokenizer, answers, find_tokenizer


class Params(struct.PyTreeNode):
    """A loaded model: a pytree whose leaves are the weights; everything else is static.

    Attributes:
        target: params of the Llama decoder.
        adapter: params of the adapter, or None when the model has none (plain decoding only).
        config: shape of the target.
        draft: exit layer and default gamma and eta, or None without an adapter.
        tokenizer: turns text into ids and back; without tokenizer files, only ids go in and out.
        name: what it was loaded as, for messages.
    """

    target: Any
    adapter: Any
    config: LlamaConfig = struct.field(pytree_node=False)
    draft: KangarooConfig | None = struct.field(pytree_node=False)
    tokenizer: Tokenizer = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)

    @property
    def dtype(self) -> Any:
        """What is computed in, and what caches are stored in: the NumPy dtype of the weights that no kernel packs."""
        return self.target["embed_tokens"]["embedding"].dtype

    @property
    def kernels(self) -> str:
        """What multiplies: ``"native"`` kernels, or ``"xla"``."""
        return "native" if packs(self.target) else "xla"

    @property
    def draft_weights(self) -> str | None:
        """How what only drafts is packed: ``"int8"`` or, as it is, ``"full"``; None where nothing of it is packed."""
        if self.adapter is None or not packs(self.adapter):
            return None
        return "int8" if packs(self.adapter, jnp.int8) else "full"

    @property
    def chats(self) -> bool:
        """Whether it answers messages: its template ends an answer with a token that ends its texts."""
        return answers(self.tokenizer, self.name, self.config.eos_token_id)


def check_params(params: Any) -> None:
    """Raise ValueError if this is not what ``load`` returns."""
    if not isinstance(params, Params):
        raise ValueError(f"params is {params!r:.60}; pass what kangaroo_jax.load returns")


def load(
    name: str | Path = "joey",
    *,
    adapter: str | Path | None = None,
    exit_layer: int | None = None,
    dtype: Any = None,
    sharding: Placement = None,
    kernels: str = "auto",
    draft_weights: str = "auto",
) -> Params:
    """Load a model and its adapter straight to devices: on the way no second copy of the model is made.

    Args:
        name: ``"joey"`` (the embedded model), a directory written by ``convert.hf_to_flax``, a Hugging Face directory,
            a GGUF file, ``"smollm2"`` (a package's file), or an alias such as ``"vicuna-7b"`` once it is converted.
        adapter: an adapter directory, of this package or of the paper's authors; default: the one that lies in the
            model's directory, or else in this package for SmolLM2-135M-Instruct, whatever file it comes from.
        exit_layer: the layer the adapter was trained after; needed only where its directory does not say it, as the
            authors' own do not.
        dtype: dtype of the weights and of the arithmetic; default fp32 on a CPU, bf16 elsewhere.
        sharding: where the weights go: one ``jax.sharding.Sharding`` for all, or a function of a weight's path (such as
            ``"layers_0/mlp/down_proj/kernel"`` or ``"adapter/norm/scale"``) and its ``jax.ShapeDtypeStruct`` that
            returns one; default: all to the default device.
        kernels: ``"native"``: the weights are packed for the package's own CPU kernels, and kept in bf16 where that
            holds them exactly; ``"xla"``: they stay arrays; default: native on a CPU where the kernels were built, and
            no ``sharding`` is given.
        draft_weights: how native kernels read the matrices of an adapter that attends, and the LM head's columns that
            it drafts with: ``"int8"``, a scale for each column; or ``"full"``, in their own dtype. Other tokens may be
            drafted then, no others are accepted. Default: int8 for a model in bf16, where native kernels are used.

    Raises:
        ValueError: if the name is unknown, a file is missing or damaged, the adapter belongs to another model or
            another exit layer, or native kernels, or weights that need them, are asked for and cannot be used.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"name is {name!r:.60}; pass a model's name or directory")
    native = use_native(kernels, as_dtype(dtype) or default_dtype(), sharding is not None)
    drafts = _draft_weights(draft_weights, as_dtype(dtype) or default_dtype(), native)
    # The adapter goes first: what is wrong with it is said before minutes are spent on the target.
    directory = resolve(name)
    draft, adapter_params = None, None
    if (path := find_adapter(directory, adapter)) is not None:
        draft, adapter_params = load_adapter(path, read_config(directory), dtype, exit_layer, sharding)
    elif exit_layer is not None:
        raise ValueError(
            f"exit_layer is {exit_layer!r:.60}, but {name} has no adapter; give one: load(..., adapter=DIR)"
        )
    config, target, _ = load_target(name, dtype, sharding, pack_leaf if native else None)
    if native:
        target = pack_target(target)
    adapter_params = adapter_params and _placed(target, adapter_params, native, drafts)
    return Params(target, adapter_params, config, draft, find_tokenizer(directory, config.vocab_size), str(name))


def with_adapter(params: Params, directory: str | Path, exit_layer: int | None = None) -> Params:
    """Return a model with another adapter, in the target's dtype and for the same kernels; the target is shared.

    On the devices of a target that is spread over several, each has the whole adapter.

    Args:
        params: from ``load``.
        directory: the adapter's.
        exit_layer: as for ``load``.

    Raises:
        ValueError: if there is no adapter there, or it belongs to another model or another exit layer.
    """
    path = find_adapter(Path(), directory)
    assert path is not None
    placed = getattr(params.target["norm"]["scale"], "sharding", None)  # A target may be NumPy's.
    if isinstance(placed, NamedSharding):
        placed = NamedSharding(placed.mesh, PartitionSpec())
    draft, adapter = load_adapter(path, params.config, params.dtype.name, exit_layer, placed)
    native = params.kernels == "native"
    drafts = params.draft_weights or _draft_weights("auto", params.dtype, native)
    return params.replace(draft=draft, adapter=_placed(params.target, adapter, native, drafts))


def _draft_weights(wanted: str, dtype: Any, native: bool) -> str:
    """Return ``"int8"`` or ``"full"``, as ``load`` says it."""
    if wanted not in DRAFT_WEIGHTS:
        raise ValueError(f"draft_weights is {wanted!r:.60}; pass one of {', '.join(DRAFT_WEIGHTS)}")
    if wanted == "int8" and not native:
        raise ValueError(
            f"draft_weights is int8, which only the native kernels read, and {why_not() or 'they are not used'}; "
            "pass full, or leave it out"
        )
    return ("int8" if native and dtype == jnp.bfloat16 else "full") if wanted == "auto" else wanted


def _placed(target: Any, adapter: Any, native: bool, drafts: str) -> Any:
    """Return an adapter's params as decoding reads them, with its draft head, packed where the target is."""
    whole = with_draft_head(target, adapter)
    return pack_adapter(whole, jnp.int8 if drafts == "int8" else None) if native else whole
