"""Verification: one forward of the deep layers over everything a round drafted."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.decode.drafter import Draft
from kangaroo_jax.decode.spec import DecodeSpec
from kangaroo_jax.decode.state import Weights
from kangaroo_jax.model import KVCache, logits, run_layers


def verify(
    spec: DecodeSpec,
    weights: Weights,
    draft: Draft,
    positions: Int[Array, "B R"],
    caches: tuple[KVCache, ...],
    running: Bool[Array, " B"],
) -> tuple[Float[Array, "B R V"], Float[Array, "B R D"], tuple[KVCache, ...]]:
    """Run layers ``[l, N)``, final norm and LM head over the kept hidden states.

    Args:
        spec: static description.
        weights: target and adapter.
        draft: what drafting left; rows beyond ``count`` are computed and never used.
        positions: R consecutive positions, from that of the newest committed token on; of a tree, its rows' positions.
        caches: the deep layers' caches.
        running: sequences that have not finished; of the others nothing is used.

    Returns:
        fp32 logits of the token after each position, the last layer's states, and the deep caches.
    """
    last = spec.config.num_hidden_layers
    tree = None if draft.tree is None else draft.tree.visible
    count = jnp.where(running, draft.count + 1, 0) if draft.tree is None else None
    target = weights["target"]
    x, caches = run_layers(spec.config, target, draft.hidden, positions, caches, spec.exit_layer, last, tree, count)
    return logits(spec.config, target, x, count), x, caches
