"""Fused weights go by groups: what a device has of them is whole heads, and gates with their ups."""

from __future__ import annotations

import numpy as np
import pytest

from kangaroo_jax.model import LlamaConfig, abstract_params, fused_at, fused_parts
from kangaroo_jax.store import flatten

CONFIG = LlamaConfig(31, 23, 5, 1, 6, 2, 2)


def test_columns_go_by_groups() -> None:
    """Column by column: three query heads of two columns, their key, their value; a gate, its up."""
    attention, mlp = fused_parts(CONFIG)["qkv_proj"], fused_parts(CONFIG)["gate_up_proj"]
    blocks = np.array([*range(0, 12), *range(20, 24), *range(30, 34)])  # q, k, v of all heads, one after the other.
    expected = [0, 1, 2, 3, 4, 5, 20, 21, 30, 31, 6, 7, 8, 9, 10, 11, 22, 23, 32, 33]
    assert attention.from_blocks(blocks).tolist() == expected
    assert mlp.from_blocks(np.array([0, 1, 2, 3, 4, 10, 11, 12, 13, 14])).tolist() == [
        0,
        10,
        1,
        11,
        2,
        12,
        3,
        13,
        4,
        14,
    ]
    assert attention.from_blocks(np.stack([blocks, -blocks]))[1].tolist() == [-value for value in expected]


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (6, 6), (5, 1)])
def test_the_parts_are_all_columns_once(heads: int, kv_heads: int) -> None:
    config = LlamaConfig(31, 23, 5, 1, heads, kv_heads, 2)
    for name, columns in {"qkv_proj": 2 * (heads + 2 * kv_heads), "gate_up_proj": 10}.items():
        fused = fused_parts(config)[name]
        parts = []
        for start, stop, every in map(fused.columns, fused.parts):
            parts.append(np.arange(columns).reshape(-1, every)[:, start:stop].reshape(-1))
        assert sorted(np.concatenate(parts)) == list(range(columns))
        moved = np.asarray(fused.from_blocks(np.arange(columns)))
        np.testing.assert_array_equal(np.concatenate([moved[part] for part in parts]), np.arange(columns))


def test_a_leaf_is_known_by_its_path() -> None:
    paths = flatten(abstract_params(CONFIG))
    known = [path for path in paths if fused_at(CONFIG, path)]
    assert known == ["layers_0/mlp/gate_up_proj/kernel", "layers_0/self_attn/qkv_proj/kernel"]
