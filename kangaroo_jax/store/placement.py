"""Where the weights of a target go when one device cannot hold them: matrices split over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from kangaroo_jax.model import LlamaConfig, fused_at

# The axis of each weight that is split: products by columns are followed by products by rows, so that what lies
# between them stays split. Embedding table and head are split over the vocabulary.
_SPLIT_AXIS = {
    "qkv_proj/kernel": 1,
    "qkv_proj/bias": 0,
    "o_proj/kernel": 0,
    "gate_up_proj/kernel": 1,
    "down_proj/kernel": 0,
    "embed_tokens/embedding": 0,
    "lm_head/kernel": 1,
}


def target_sharding(
    mesh: Mesh | AbstractMesh, config: LlamaConfig, axis: str = "model"
) -> Callable[[str, jax.ShapeDtypeStruct], NamedSharding]:
    """Return the rule by which a target is split over one axis of a mesh, as ``load(..., sharding=)`` takes it.

    Norms, and weights whose size the devices of the axis do not divide, are copied to every device; so is everything
    over the other axes of the mesh. What is fused is split between its groups only: a device has whole heads, with the
    queries of each, and gates with their ups. Of an adapter with other heads or another width it is copied.

    Args:
        mesh: the devices; its axes are of type ``Auto``.
        config: the target's shape.
        axis: the axis to split over.

    Raises:
        ValueError: if the mesh has no such axis.
    """
    if axis not in mesh.shape:
        raise ValueError(f"axis is {axis!r}; the mesh has {', '.join(map(repr, mesh.shape))}")

    def rule(path: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        split, fused = _SPLIT_AXIS.get("/".join(path.split("/")[-2:])), fused_at(config, path)
        other = split is not None and fused and leaf.shape[split] != fused.groups * sum(fused.widths)
        if split is None or other or (fused.groups if fused else leaf.shape[split]) % mesh.shape[axis]:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * split, axis))

    return rule
