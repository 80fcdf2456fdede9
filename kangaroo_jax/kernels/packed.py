"""Weights in the order in which the native kernels read them: packed once, when they are placed."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

BLOCK = 32
"""Columns of a block; ``kBlock`` of native/isa.h."""
_HEAD = 2  # ``kHead`` there.
_PACKED = {"self_attn", "mlp", "lm_head", "final_proj"}


class Packed(struct.PyTreeNode):
    """A weight matrix ``[I, O]`` as blocks of 32 columns, one after the other; what is missing is zeros.

    Attributes:
        blocks: float32 ``[ceil(O / 32), I, 32]``, bfloat16 ``[ceil(O / 32), ceil(I / 2), 32, 2]``: two rows in turn, or
            int8 ``[ceil(O / 32), 2 + ceil(I / 4), 32, 4]``: four rows in turn, behind each column's scale, in fp32, and
            -128 times its sum, in int32. A block of pairs has the first columns of 16 pairs, then the second ones, and
            there are ceil(O / 2 / 16).
        depth: I.
        columns: O.
        pairs: whether columns come in pairs: a gate of an MLP and its up.
    """

    blocks: Float[Array, "N ..."]
    depth: int = struct.field(pytree_node=False)
    columns: int = struct.field(pytree_node=False)
    pairs: bool = struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix, ``(I, O)``."""
        return self.depth, self.columns

    @property
    def size(self) -> int:
        """Weights of the matrix, without padding."""
        return self.depth * self.columns

    @property
    def dtype(self) -> jnp.dtype:
        """What the weights are stored in; arithmetic is fp32, but with int8 weights x is rounded to int8 as well."""
        return self.blocks.dtype


def pack(kernel: Float[Array, "I O"], pairs: bool = False, storage: Any = None) -> Packed:
    """Pack a weight matrix.

    Args:
        kernel: float32 or bfloat16.
        pairs: as in ``Packed``; O is even.
        storage: dtype to store; default: bfloat16 where that holds every weight exactly, as it does those of
            checkpoints published in bf16, else the matrix' own. In int8 a weight is the nearest of 255 multiples of its
            column's scale, the largest magnitude there / 127.
    """
    storage = storage or (jnp.bfloat16 if _fits_bf16(kernel) else kernel.dtype)
    depth, columns = kernel.shape
    return Packed(blocks=_arrange(kernel, pairs, jnp.dtype(storage)), depth=depth, columns=columns, pairs=pairs)


def unpack(packed: Packed) -> Float[Array, "I O"]:
    """Return the matrix that was packed, in the dtype it is stored in; of int8 what it stands for, in fp32."""
    blocks, depth = packed.blocks, packed.depth
    if packed.dtype == jnp.int8:
        scales = jax.lax.bitcast_convert_type(blocks[:, :1], jnp.float32)
        blocks = blocks[:, _HEAD:] * scales[..., None]
    if blocks.ndim == 4:
        blocks = blocks.transpose(0, 1, 3, 2).reshape(len(blocks), -1, BLOCK)[:, :depth]
    each = 1 + packed.pairs
    parts = blocks.reshape(-1, depth, each, BLOCK // each).transpose(1, 0, 3, 2)
    return parts.reshape(depth, -1)[:, : packed.columns]


def take_columns(kernel: Float[Array, "I O"] | Packed, columns: Int[Array, " N"]) -> Float[Array, "I N"]:
    """Return some columns of a weight matrix, in the order given; the matrix is not unpacked for it.

    Args:
        kernel: the matrix; packed, its columns do not come in pairs, and it is not in int8.
        columns: which.
    """
    if not isinstance(kernel, Packed):
        return kernel[:, columns]
    assert not kernel.pairs and kernel.dtype != jnp.int8
    taken = kernel.blocks[columns // BLOCK, :, columns % BLOCK]  # [N, I], or [N, I / 2, 2].
    return taken.reshape(len(columns), -1)[:, : kernel.depth].T


@jax.jit
def _fits(kernel: Float[Array, "I O"]) -> Array:
    # As bits: a subnormal counts, though a CPU would compare it as zero.
    return (jax.lax.bitcast_convert_type(kernel, jnp.uint32) & 0xFFFF == 0).all()


def _fits_bf16(kernel: Float[Array, "I O"]) -> bool:
    return kernel.dtype == jnp.bfloat16 or bool(_fits(kernel))


@partial(jax.jit, static_argnums=(1, 2))
def _arrange(kernel: Float[Array, "I O"], pairs: bool, storage: jnp.dtype) -> Float[Array, "N ..."]:
    if storage == jnp.int8:
        blocks = _in_blocks(kernel.astype(jnp.float32), pairs)
        scales = jnp.abs(blocks).max(1, keepdims=True) / 127
        blocks = jnp.round(blocks / jnp.where(scales > 0, scales, 1)).astype(jnp.int8)
        sums = -128 * blocks.astype(jnp.int32).sum(1, keepdims=True)
        head = [jax.lax.bitcast_convert_type(line, jnp.int8) for line in (scales, sums)]
        return jnp.concatenate([*head, _in_turn(blocks, 4)], axis=1)
    blocks = _in_blocks(kernel.astype(storage), pairs)
    return _in_turn(blocks, 2) if storage == jnp.bfloat16 else blocks


def _in_blocks(kernel: Float[Array, "I O"], pairs: bool) -> Float[Array, "N I 32"]:
    each = 1 + pairs
    padded = jnp.pad(kernel, ((0, 0), (0, -kernel.shape[1] % BLOCK)))
    return padded.reshape(len(kernel), -1, BLOCK // each, each).transpose(1, 0, 3, 2).reshape(-1, len(kernel), BLOCK)


def _in_turn(blocks: Float[Array, "N I 32"], rows: int) -> Float[Array, "N L 32 rows"]:
    padded = jnp.pad(blocks, ((0, 0), (0, -blocks.shape[1] % rows), (0, 0)))
    return padded.reshape(len(blocks), -1, rows, BLOCK).transpose(0, 1, 3, 2)


def packs(tree: Any, storage: Any = None) -> bool:
    """Return whether there are packed weights in a tree, of any dtype or of this one."""
    leaves = jax.tree.leaves(tree, is_leaf=_is_packed)
    return any(_is_packed(leaf) and storage in (None, leaf.dtype) for leaf in leaves)


def pack_leaf(path: str, leaf: Any, storage: Any = None) -> Any:
    """Return a leaf of a target's params packed, if it is a matrix of a layer or the LM head's, and else as it is.

    Args:
        path: its place, such as ``"layers_0/mlp/down_proj/kernel"``.
        leaf: the array.
        storage: as for ``pack``.
    """
    parts = path.split("/")
    if parts[-1] != "kernel" or _is_packed(leaf) or not _PACKED & set(parts):
        return leaf
    return pack(leaf, "gate_up_proj" in parts, storage)


def pack_target(params: dict[str, Any], storage: Any = None) -> dict[str, Any]:
    """Return a target's params with all matrices packed that a product reads.

    Layer by layer, ``params`` gives its arrays away: a model is never held twice. The embedding table stays as it is,
    since tokens look up its rows; where it is the LM head too, the packed head is a second copy of it.
    """
    packed = {name: _pack_tree({name: params.pop(name)}, storage)[name] for name in list(params)}
    if "lm_head" not in packed:
        packed["lm_head"] = {"kernel": pack(packed["embed_tokens"]["embedding"].T, storage=storage)}
    return packed


def pack_adapter(params: dict[str, Any], storage: Any = None) -> dict[str, Any]:
    """Return an adapter's params packed; those of kinds without attention stay as they are.

    A draft head is packed with them: see ``with_draft_head``.
    """
    return _pack_tree(params, storage) if "self_attn" in params else params


def _is_packed(leaf: Any) -> bool:
    return isinstance(leaf, Packed)


def _pack_tree(tree: dict[str, Any], storage: Any) -> dict[str, Any]:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: pack_leaf("/".join(key.key for key in path), leaf, storage), tree, is_leaf=_is_packed
    )
