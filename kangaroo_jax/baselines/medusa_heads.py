"""Medusa's heads: several next tokens drafted at once from one hidden state (Cai et al. 2024, arXiv 2401.10774).

They are here to be compared with Kangaroo's adapter. Head k of K, on the target's last state x after its final norm,
drafts the token k + 1 places on, without knowing the tokens between (section 3.1.1)::

    logits_k = W2_k (x + silu(W1_k x + b_k))

One residual block, and an LM head of its own. Params are stacked where one product serves all heads::

    {"linear": {"kernel" [D, K * D], "bias" [K * D]}, "lm_head_0": {"kernel" [D, V]}, ..., "lm_head_{K - 1}": ...}

Where a vocabulary is large beside the model, heads of all of it would be a second model (SmolLM2-135M: 113 million
parameters in four LM heads). They may have columns for some tokens only, whose ids are then among the params,
``"tokens" [V]``. On disk they are ``medusa_config.json``, which has these ids, and ``medusa.safetensors``, a tensor for
each other leaf.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from kangaroo_jax.files import read_json, whole_directory, write_json
from kangaroo_jax.model import LlamaConfig, head_kernel, linear
from kangaroo_jax.store import (
    as_dtype,
    check_shapes,
    default_dtype,
    fingerprint,
    flatten,
    stored_tensors,
    to_device,
    unflatten,
    write_safetensors,
)

Params = dict[str, Any]

MEDUSA_CONFIG, MEDUSA_WEIGHTS = "medusa_config.json", "medusa.safetensors"
_AGAIN = "make the heads again (python -m train.medusa)"
TOKENS = "tokens"
MEDUSA_HEADS = 4
"""Heads of the comparison: what Spec-Bench runs and the published tree needs; 591M parameters on a 7B model."""


def count_heads(params: dict[str, Any]) -> int:
    """Return how many heads there are."""
    return sum(name.startswith("lm_head_") for name in params)


def medusa_states(params: dict[str, Any], x: Float[Array, "... D"]) -> list[Float[Array, "... D"]]:
    """Return what the LM head of each head is applied to.

    Args:
        params: the heads.
        x: the target's last states, after its final norm.
    """
    stacked = linear(x, params["linear"]["kernel"])
    stacked += jnp.broadcast_to(params["linear"]["bias"], stacked.shape)
    return [x + nn.silu(part) for part in jnp.split(stacked, count_heads(params), axis=-1)]


def medusa_logits(params: dict[str, Any], x: Float[Array, "... D"]) -> Float[Array, "K ... V"]:
    """Return every head's fp32 logits; arguments as for ``medusa_states``."""
    states = medusa_states(params, x)
    return jnp.stack([one_head(params, index, state) for index, state in enumerate(states)])


def one_head(params: dict[str, Any], index: int, state: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Return the fp32 logits of one head, counted from 0, from its entry of ``medusa_states``."""
    return linear(state, params[f"lm_head_{index}"]["kernel"], jnp.float32)


def init_medusa(
    config: LlamaConfig, heads: int, target: dict[str, Any] | None = None, tokens: np.ndarray | None = None
) -> dict[str, Any]:
    """Return fresh fp32 heads, which draft what the target says of the next token: W1 is zero, W2 its LM head.

    Args:
        config: the target's shape.
        heads: how many.
        target: the target's params; without them the LM heads are zeros.
        tokens: ids of the tokens that the LM heads have columns for; default: all.
    """
    width = config.hidden_size
    zeros = jnp.zeros((width, heads * width)), jnp.zeros(heads * width)
    params: dict[str, Any] = {"linear": dict(zip(("kernel", "bias"), zeros, strict=True))}
    for index in range(heads):
        if target is None:
            kernel = jnp.zeros((width, config.vocab_size if tokens is None else len(tokens)))
        else:  # A copy each, so that none can be donated with another.
            whole = head_kernel(target)
            kernel = jnp.array(whole if tokens is None else whole[:, tokens], jnp.float32, copy=True)
        params[f"lm_head_{index}"] = {"kernel": kernel}
    return params


def abstract_medusa(config: LlamaConfig, heads: int, tokens: np.ndarray | None = None) -> dict[str, Any]:
    """Return the heads' tree with ``jax.ShapeDtypeStruct`` leaves; nothing is allocated."""
    return jax.eval_shape(lambda: init_medusa(config, heads, tokens=tokens))


def save_medusa(
    directory: Path,
    config: LlamaConfig,
    params: Params,
    training: Mapping[str, Any],
    tokens: np.ndarray | None = None,
) -> None:
    """Write the heads of a target, replacing heads that are there; whole or not at all.

    Args:
        directory: the destination.
        config: the target's.
        params: the heads, float32 or bfloat16.
        training: anything JSON can hold about how they were trained.
        tokens: as for ``init_medusa``.

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
        TOKENS: None if tokens is None else tokens.tolist(),
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
    tokens = fields.get(TOKENS)
    if tokens is not None:
        if not isinstance(tokens, list) or not tokens or any(token not in range(config.vocab_size) for token in tokens):
            raise ValueError(f"{directory / MEDUSA_CONFIG} has no usable tokens: {tokens!r:.60}; {_AGAIN}")
        tokens = np.array(tokens, np.int32)
    tensors = stored_tensors(directory / MEDUSA_WEIGHTS) if (directory / MEDUSA_WEIGHTS).is_file() else []
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(abstract_medusa(config, heads, tokens)).items()}
    check_shapes(wanted, [(tensor.name, tensor.shape) for tensor in tensors], fix=_AGAIN)
    kind = as_dtype(dtype) or default_dtype()
    read: dict[str, jax.Array] = {
        tensor.name: to_device(tensor.name, np.asarray(tensor).astype(kind), None) for tensor in tensors
    }
    return unflatten(read) | ({} if tokens is None else {TOKENS: jnp.asarray(tokens)})
