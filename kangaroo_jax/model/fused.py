"""Where the parts of fused weights are: a split of their columns over devices cuts heads, never half a gate.

Columns go by groups, and a group has its share of every part. Two key/value heads of three query heads each; four
columns of an MLP::

    qkv_proj      q0 q1 q2 k0 v0 | q3 q4 q5 k1 v1      a head is hd columns
    gate_up_proj  g0 u0 | g1 u1 | g2 u2 | g3 u3

Gates and ups are no axis of their own: one of two elements would be padded to a full row of lanes on a TPU.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from kangaroo_jax.model.config import LlamaConfig


class Columns(NamedTuple):
    """Of every so many columns of a leaf those from ``start`` to ``stop``."""

    start: int
    stop: int
    every: int


@dataclasses.dataclass(frozen=True)
class Fused:
    """The columns of a fused kernel or bias.

    Attributes:
        groups: how many equal groups there are, one after the other; devices share whole ones.
        parts: names of the parts, in order.
        widths: columns that each of them has in a group.
    """

    groups: int
    parts: tuple[str, ...]
    widths: tuple[int, ...]

    def columns(self, part: str) -> Columns:
        """Return which columns a part has; in a row, they are in the part's own order."""
        index = self.parts.index(part)
        start = sum(self.widths[:index])
        return Columns(start, start + self.widths[index], sum(self.widths))

    def from_blocks(self, leaf: Shaped[Array, "*X O"]) -> Shaped[Array, "*X O"]:
        """Return a leaf in this order that has its parts as whole blocks, q | k | v or gate | up."""
        pieces, at = [], 0
        for width in self.widths:
            block = leaf[..., at : (at := at + self.groups * width)]
            pieces.append(block.reshape(*leaf.shape[:-1], self.groups, width))
        return jnp.concatenate(pieces, axis=-1).reshape(leaf.shape)


def fused_parts(config: LlamaConfig) -> dict[str, Fused]:
    """Return what is fused in a layer, by the name of the module."""
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return {
        "qkv_proj": Fused(kv_heads, ("q", "k", "v"), (heads // kv_heads * width, width, width)),
        "gate_up_proj": Fused(config.intermediate_size, ("gate", "up"), (1, 1)),
    }


def fused_at(config: LlamaConfig, path: str) -> Fused | None:
    """Return what is fused in a leaf, by its path such as ``"layers_0/mlp/gate_up_proj/kernel"``; None: nothing."""
    return next((found for name, found in fused_parts(config).items() if name in path.split("/")), None)
