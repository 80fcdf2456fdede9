"""Logits to hold a converted model against: a file the user stored, or what transformers computes from the source."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import safe_open

from kangaroo_jax.files import first_line
from kangaroo_jax.gguf import is_gguf
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import DTYPES, WRAPPERS

SEQUENCES, POSITIONS = 2, 320  # Long enough for a mistake in RoPE to show.
_TOKENS, _LOGITS = ("tokens", "input_ids"), "logits"
_FORM = "a reference has tokens [B, T] (or input_ids) and logits [B, T, V], or both without the B"


@dataclasses.dataclass(frozen=True)
class Reference:
    """Token ids and the logits that belong to them.

    Attributes:
        tokens: sequences that start at position 0.
        logits: of every position.
        name: where they come from, for messages.
        dtype: what the logits were stored in, "float32" when computed here.
    """

    tokens: Int[np.ndarray, "B T"]
    logits: Float[np.ndarray, "B T V"]
    name: str
    dtype: str = "float32"


def read_reference(file: Path, vocab_size: int) -> Reference:
    """Read a reference stored by the user.

    Args:
        file: ``.npz`` or ``.safetensors`` with ``tokens`` (or ``input_ids``) ``[B, T]`` and ``logits`` ``[B, T, V]``,
            or one sequence without the B; other arrays in it are left alone.
        vocab_size: of the model it is a reference for.

    Raises:
        ValueError: if the file is unreadable, lacks an array, or an array cannot be what its name says.
    """
    arrays = _read_arrays(file)
    if missing := [" or ".join(names) for names in (_TOKENS, (_LOGITS,)) if not arrays.keys() & {*names}]:
        raise ValueError(f"{file} lacks {' and '.join(missing)}; {_FORM}")
    name = next(name for name in _TOKENS if name in arrays)
    tokens, logits = arrays[name], arrays[_LOGITS]
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{file}: {name} is {tokens.dtype.name}; token ids are whole numbers")
    if (dtype := logits.dtype.name) not in (*DTYPES, "float64"):
        raise ValueError(f"{file}: logits are {dtype}; they must be float32, or another floating-point type")
    if tokens.ndim not in (1, 2) or logits.ndim != tokens.ndim + 1 or logits.shape[:-1] != tokens.shape:
        raise ValueError(f"{file}: {name} is {list(tokens.shape)} and logits are {list(logits.shape)}; {_FORM}")
    if not tokens.size:
        raise ValueError(f"{file}: {name} is {list(tokens.shape)}; give at least one position")
    if logits.shape[-1] != vocab_size:
        raise ValueError(
            f"{file}: logits are for a vocabulary of {logits.shape[-1]}, the model has {vocab_size}; "
            "give the reference of this model"
        )
    if (outside := tokens[(tokens < 0) | (tokens >= vocab_size)]).size:
        raise ValueError(f"{file}: {name} has id {outside[0]}; ids of this model go from 0 to {vocab_size - 1}")
    logits = logits.astype(np.float32).reshape(-1, tokens.shape[-1], vocab_size)
    if not np.isfinite(logits).all():
        raise ValueError(f"{file}: logits are not all finite; compute them again, in float32")
    tokens = tokens.astype(np.int32).reshape(-1, tokens.shape[-1])
    return Reference(tokens, logits, str(file), "float32" if dtype == "float64" else dtype)


def transformers_reference(source: Path, config: LlamaConfig, dtype: str) -> Reference:
    """Compute a reference on random sequences, the same ones for every model of a vocabulary.

    Args:
        source: a checkpoint in Hugging Face's layout.
        config: its config.
        dtype: what the weights are rounded to first; the arithmetic is fp32.

    Raises:
        ValueError: if torch is not installed, or transformers cannot load the checkpoint.
    """
    length = min(POSITIONS, config.max_position_embeddings)
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(SEQUENCES, length), dtype=np.int32)
    if config.bos_token_id is not None and config.bos_token_id < config.vocab_size:
        tokens[:, 0] = config.bos_token_id  # Models look at it from everywhere; without it they are beside themselves.
    return Reference(tokens, transformers_logits(source, tokens, dtype), "transformers")


def transformers_logits(
    source: Path, tokens: Int[np.ndarray, "B T"], dtype: str = "float32"
) -> Float[np.ndarray, "B T V"]:
    """Return the fp32 logits of transformers' own model.

    In fp32 a model of 7B would need 27 GB. The weights are therefore kept in ``dtype``, and those of one matrix at a
    time are widened while it is used.

    Args:
        source: a checkpoint in Hugging Face's layout.
        tokens: sequences that start at position 0.
        dtype: what the weights are kept in; values that it does not hold are rounded.

    Raises:
        ValueError: if torch is not installed, or transformers cannot load the checkpoint.
    """
    require_torch()
    import transformers  # Not at the top: it is slow to import, and only this needs it.

    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    place, options = source, dict[str, Any](key_mapping={WRAPPERS: ""})
    if is_gguf(source):
        place, options = source.parent, {"gguf_file": source.name}
    try:
        model = load(place, dtype=dtype, attn_implementation="eager", local_files_only=True, **options)
    except Exception as error:  # Those of transformers, torch and safetensors have no common base.
        raise ValueError(
            f"{source}: transformers could not load it ({type(error).__name__}: {first_line(error)}); either repair "
            "it, or give a file with token ids and their logits"
        ) from error
    model.eval().requires_grad_(False)
    if dtype != "float32":
        _widen_in_use(model)
    batch = transformers.BatchEncoding({"input_ids": tokens.astype(np.int64)}, tensor_type="pt")
    return model(**batch, use_cache=False).logits.numpy().astype(np.float32, copy=False)


def require_torch() -> None:
    """Raise ValueError if torch is not installed; the message says both ways out."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            "torch is not installed, without which transformers computes nothing; either install it (pip install "
            "torch), or give a file with token ids and their logits"
        )


def _widen_in_use(model: Any) -> None:
    """Make every module of a torch model fp32 while it runs, and what it was after that."""
    kept: dict[Any, list[Any]] = {}

    def widen(module: Any, inputs: Any) -> None:
        kept[module] = [weight.data for weight in module.parameters(recurse=False)]
        module.float()

    def put_back(module: Any, inputs: Any, output: Any) -> None:
        for weight, data in zip(module.parameters(recurse=False), kept.pop(module), strict=True):
            weight.data = data

    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(widen)
            module.register_forward_hook(put_back)


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return those arrays of a file that a reference consists of."""
    names = (*_TOKENS, _LOGITS)
    if not file.is_file():
        raise ValueError(f"no file {str(file)!r}; give a .npz or .safetensors file with token ids and their logits")
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in names if name in stored}
        if file.suffix == ".safetensors":
            with safe_open(file, framework="np") as opened:
                return {name: opened.get_tensor(name) for name in names if name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # Those of NumPy, zipfile, zlib and safetensors have no common base.
        said = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{file} is not a readable {file.suffix} file ({said}); store it again") from error
    raise ValueError(f"{file} is a {file.suffix or 'nameless'} file; give a .npz or .safetensors file")
