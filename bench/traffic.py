"""Bytes that the parts of decoding read: all their weights, and all slots of their caches, once per call.

Weights count as they are stored: packed for the native kernels, with their padding, and in bf16 where they are.
"""

from __future__ import annotations

import math
from typing import Any

import jax

import kangaroo_jax
from kangaroo_jax.model import adapter_layers, draft_head, head_kernel


def traffic(params: kangaroo_jax.Params, slots: int = 0) -> dict[str, int]:
    """Return the bytes that each part reads when it decodes one sequence.

    A step of plain decoding is a shallow pass and a verification. Of the embedding table a row is read, which is not
    counted.

    Args:
        params: target and, for all but a plain step, adapter.
        slots: cache slots; attention goes over all of them. 0 counts weights only.

    Returns:
        ``plain``; with an adapter ``shallow`` (layers before the exit), ``propose`` (adapter and head), ``draft``
        (both: a drafted token) and ``verify`` (layers behind the exit, norm and head), too.
    """
    target, config = params.target, params.config
    layers = [size(target[f"layers_{index}"]) for index in range(config.num_hidden_layers)]
    cache = 2 * slots * config.num_key_value_heads * config.head_dim * params.dtype.itemsize
    last = size(target["norm"]) + _matrix(head_kernel, target)
    parts = {"plain": sum(layers) + len(layers) * cache + last}
    if params.adapter is None or params.draft is None:
        return parts
    exit_layer, kind = params.draft.exit_layer, params.draft.adapter.made_of
    parts["shallow"] = sum(layers[:exit_layer]) + exit_layer * cache
    own = {name: part for name, part in params.adapter.items() if name not in ("lm_head", "draft_vocabulary")}
    heads = adapter_layers(config, params.draft.adapter).num_key_value_heads
    attended = cache * heads // config.num_key_value_heads * kind.cached
    parts["propose"] = size(own) + _matrix(draft_head, target, params.adapter) + attended
    parts["draft"] = parts["shallow"] + parts["propose"]
    parts["verify"] = parts["plain"] - parts["shallow"]
    return parts


def size(tree: Any) -> int:
    """Return the bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _matrix(of: Any, *trees: Any) -> int:
    """Return the bytes of a matrix that a function picks; picking may mean transposing, so it is not run."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(of, *trees)))
