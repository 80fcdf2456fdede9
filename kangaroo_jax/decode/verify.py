"""Verification: one forward of the deep layers over everything a round drafted."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from kangaroo_jax.decode.drafter import DecodeSpec
from kangaroo_jax.decode.state import RUNNING, DecodeState, Draft, Weights
from kangaroo_jax.model import KVCache, branch, line, logits, run_layers


def verify(
    spec: DecodeSpec, weights: Weights, state: DecodeState, draft: Draft
) -> tuple[Float[Array, "B R V"], Float[Array, "B R D"], tuple[KVCache, ...]]:
    """Run layers ``[l, N)``, final norm and LM head over the kept hidden states.

    Args:
        spec: static description.
        weights: target and adapter.
        state: the state between two rounds; of sequences that have finished nothing is used.
        draft: what drafting left; rows beyond ``count`` are computed and never used.

    Returns:
        fp32 logits of the token after each row, the last layer's states, and the caches of all layers.
    """
    root, tree = state.length - 1, draft.tree
    count = jnp.where(state.finish == RUNNING, draft.count + 1 if tree is None else tree.count, 0)
    if tree is None:
        context = line(root[:, None] + jnp.arange(spec.rows)[None], state.slots, count)
    else:
        context = branch(root, tree.depth, tree.visible, state.slots).replace(count=count)
        if spec.drafter.forks:
            context = context.replace(twins=context.positions)
    exit_layer, last, target = spec.drafter.exit_layer, spec.config.num_hidden_layers, weights["target"]
    deep = state.caches[exit_layer:]
    x, deep = run_layers(spec.config, target, draft.hidden, context, deep, exit_layer, last)
    return logits(spec.config, target, x, context.count), x, (*draft.caches, *deep)
