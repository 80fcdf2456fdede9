"""Adapters that lie in this package for models that do not, and how such a model is known."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store.adapter_record import fingerprint
from kangaroo_jax.store.checkpoint import restore_params
from kangaroo_jax.store.hf import checkpoint_tensors, read_config
from kangaroo_jax.store.mapping import flatten
from kangaroo_jax.store.names import assets

# Folders in assets: the target's fingerprint, and the digest of three of its norms.
_SHIPPED = {
    "smollm2": ("llama-909968a8f6ec10b0", "d793c03848f83ecd1706186f2ffd2b3052e4d48675b505a5ec8b7693603db3f5"),
}
_FIRST = re.compile(r".*layers[._]0[./](input|post_attention)_layernorm[./].*")
_LAST = re.compile(r"(.*\.)?norm[./].*")


def shipped_adapter(model: Path) -> Path | None:
    """Return the directory of the adapter in this package that is for a model, or None.

    A model is known by its shape and by its norms, of which files of every quantisation have all bits: those of the
    first layer and the final one. Trained further it has others, unless a LoRA left them alone; the adapter's drafts
    may be poorer then, and texts are the same.

    Args:
        model: its directory, as Hugging Face has it or converted, or its GGUF file; what is no model has no adapter.
    """
    try:
        config = read_config(model)
        for name, (shape, norms) in _SHIPPED.items():
            directory = assets() / name
            if directory.is_dir() and shape == fingerprint(config) and norms == _digest(model, config):
                return directory
    except ValueError:  # Whoever loads the model says what is wrong with it.
        pass
    return None


def _digest(model: Path, config: LlamaConfig) -> str:
    if (model / "params").is_dir():
        found = flatten(restore_params(model / "params", config, "float32", only=("norm", "layers_0")))
    else:
        found = {tensor.name: tensor for tensor in checkpoint_tensors(model)}
    digest = hashlib.sha256()
    for name in sorted(name for name in found if _FIRST.fullmatch(name) or _LAST.fullmatch(name)):
        digest.update(np.asarray(found[name], "<f4").tobytes())
    return digest.hexdigest()
