"""Medusa-1: heads that each draft one of the next tokens from the target's last state, in a line or in a tree."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import kangaroo_jax
from bench.methods.base import Method, Ready, count_parameters
from bench.methods.medusa_tree import PUBLISHED, Paths, line, published
from kangaroo_jax import decode as dec
from kangaroo_jax.baselines import count_heads, load_medusa, medusa_logits
from kangaroo_jax.checks import integer
from kangaroo_jax.kernels import pack
from kangaroo_jax.model import final_norm
from kangaroo_jax.store import companion, expand

PAPER = "Cai et al. 2024, arXiv 2401.10774"
MAKE = "python -m train.medusa --model MODEL"
NODES = len(PUBLISHED.split())


@dataclasses.dataclass(frozen=True)
class Medusa(dec.Drafter):
    """Drafts with all heads at once; remembers the last layer's state from which the newest token came.

    Head k of 1 to K drafts the token k places after the newest one::

        position   n - 1        n        n + 1     n + 2
        state      remembered   -        -         -
        token                   newest   head 1    head 2

    Attributes:
        tree: which choices of which heads are verified together; of width 1 it is a line.
    """

    tree: Paths

    @property
    def confident(self) -> bool:
        """Return whether it is a line, of each head's top-1 probability."""
        return self.tree.width == 1

    def rows(self, gamma: int) -> int:
        """Return the rows of a verification, a multiple of 8: the newest token, and the nodes of the tree."""
        return super().rows(len(self.tree.paths))

    def allocate(self, spec: dec.DecodeSpec, batch: int, slots: int, dtype: jnp.dtype) -> Float[Array, "B 1 D"]:
        """Return a state of zeros."""
        return jnp.zeros((batch, 1, spec.config.hidden_size), dtype)

    def begin(
        self, spec: dec.DecodeSpec, weights: dec.Weights, memory: Array, last: Float[Array, "B 1 D"]
    ) -> Float[Array, "B 1 D"]:
        """Remember the state at the prompt's end."""
        return last

    def learn(
        self, spec: dec.DecodeSpec, weights: dec.Weights, draft: dec.Draft, verified: dec.Verified
    ) -> Float[Array, "B 1 D"]:
        """Remember the state at the last accepted token."""
        row = jnp.take_along_axis(verified.path, verified.accepted[:, None], axis=1)
        return jnp.take_along_axis(verified.hidden, row[:, :, None], axis=1)

    def draft(
        self, spec: dec.DecodeSpec, weights: dec.Weights, state: dec.DecodeState, controls: dec.Controls
    ) -> dec.Draft:
        """Draft ``gamma`` tokens in a line, or the tree."""
        normed = final_norm(spec.config, weights["target"], state.drafter)
        shares = jax.nn.softmax(medusa_logits(weights["drafter"], normed)[:, :, 0], axis=-1)
        sure, tokens = jax.lax.top_k(shares, self.tree.width)  # [K, B, width]
        if "tokens" in weights["drafter"]:
            tokens = weights["drafter"]["tokens"][tokens]
        head, rank, batch = self.tree.depth() - 1, self.tree.rank(), len(state.length)
        tokens, sure = tokens[head, :, rank].T, sure[head, :, rank].T
        count = jnp.full((batch,), len(head), jnp.int32)
        if self.tree.width == 1:
            return dec.token_draft(spec, weights, state, tokens, count, state.drafter, confidence=sure)
        rows = self._rows(batch, spec)
        return dec.token_draft(spec, weights, state, tokens, count, state.drafter, rows, sure)

    def _rows(self, batch: int, spec: dec.DecodeSpec) -> dec.Tree:
        """Return how the rows hang together; those beyond the tree are no candidates."""
        spare = (1, spec.rows - 1 - len(self.tree.paths))
        parent, depth = (np.pad(part, spare).astype(np.int32) for part in (self.tree.parent(), self.tree.depth()))
        rows = jnp.broadcast_to(parent, (batch, spec.rows)), jnp.broadcast_to(depth, (batch, spec.rows))
        return dec.tree_of(*rows, rows[1] > 0, spec.gamma)


def medusa(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return Medusa in a line: the first choice of each head.

    Raises:
        ValueError: if the model has no heads, or they are another model's.
    """
    heads = _heads(params, "medusa", settings["directory"])
    used = {"heads": count_heads(heads)}
    return _ready("medusa", params, heads, Medusa(line(count_heads(heads))), used)


def medusa_in_a_tree(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return Medusa with its static tree, or the first nodes of it.

    Raises:
        ValueError: if the model has no heads, too few for the tree, or another model's, or there are no such nodes.
    """
    nodes = integer("nodes", settings["nodes"], 1, NODES)
    heads, tree = _heads(params, "medusa-tree", settings["directory"]), published(nodes)
    if (there := count_heads(heads)) < tree.deepest:
        raise ValueError(f"medusa-tree: {nodes} nodes need {tree.deepest} heads, the model has {there}; lower nodes")
    if params.config.vocab_size < tree.width:
        raise ValueError(f"medusa-tree: {nodes} nodes need {tree.width} tokens; use a model with a larger vocabulary")
    used = {"heads": there, "nodes": nodes}
    return _ready("medusa-tree", params, heads, Medusa(tree), used)


def _heads(params: kangaroo_jax.Params, name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, str | os.PathLike | None):
        raise ValueError(f"{name}: directory is {given!r:.60}; give the directory of Medusa heads")
    directory = companion(params.name, "medusa") if given is None else expand(given)
    if not Path(directory).is_dir():
        raise ValueError(f"{name}: no Medusa heads in {directory}; make them: {MAKE.replace('MODEL', params.name)}")
    heads = load_medusa(directory, params.config, params.dtype)
    if params.kernels == "xla":
        return heads
    # All that reads much memory is multiplied by the same kernels as the target, and stored as Kangaroo's adapter.
    storage = jnp.int8 if params.draft_weights == "int8" else None
    return {
        name: {**part, "kernel": pack(part["kernel"], storage=storage)} if isinstance(part, dict) else part
        for name, part in heads.items()
    }


def _ready(name: str, params: kangaroo_jax.Params, heads: Any, drafter: Medusa, used: Mapping[str, Any]) -> Ready:
    spec = dec.DecodeSpec(params.config, drafter, drafter.tree.deepest)
    return Ready(name, params, spec, 0.0, heads, count_parameters(heads), used)


METHODS = (
    Method(
        "medusa",
        "each of four heads drafts one of the next tokens, in a line",
        PAPER,
        {"directory": None},
        medusa,
        MAKE,
        "medusa",
    ),
    Method(
        "medusa-tree",
        "the same with several choices of each head, in the published static tree of 63 nodes",
        PAPER,
        {"directory": None, "nodes": NODES},
        medusa_in_a_tree,
        MAKE,
        "medusa",
        [{"nodes": nodes} for nodes in (2, 3, 5, 7, 10, 15)],
    ),
)
