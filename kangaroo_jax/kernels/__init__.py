"""Native kernels for CPUs: products of a few rows at the price of one, and whole decoder layers in one call.

Optional: without the compiled library, or on another platform, everything runs on XLA. Weights decide: packed ones
(``Packed``) are multiplied here, arrays by XLA.
"""

from __future__ import annotations

from kangaroo_jax.kernels.calls import highest, layers, move, product, search, surest
from kangaroo_jax.kernels.library import CHOICES, DRAFT_WEIGHTS, describe, instruction_set, use_native, why_not
from kangaroo_jax.kernels.packed import (
    Packed,
    pack,
    pack_adapter,
    pack_leaf,
    pack_target,
    packs,
    take_columns,
    unpack,
)

__all__ = [
    "CHOICES",
    "DRAFT_WEIGHTS",
    "Packed",
    "describe",
    "highest",
    "instruction_set",
    "layers",
    "move",
    "pack",
    "pack_adapter",
    "pack_leaf",
    "pack_target",
    "packs",
    "product",
    "search",
    "surest",
    "take_columns",
    "unpack",
    "use_native",
    "why_not",
]
