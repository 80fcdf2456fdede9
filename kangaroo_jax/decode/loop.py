"""The round, and the loop around it: all of a generation after the prefill, on the device.

Plain decoding shares prefill, commit, caches and stopping with Kangaroo, so that a comparison of the two compares only
what differs: how the next tokens are found.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from kangaroo_jax.decode.drafter import DecodeSpec, Verified
from kangaroo_jax.decode.likely import first_choices
from kangaroo_jax.decode.sampling import TARGET, choose
from kangaroo_jax.decode.state import RUNNING, Controls, DecodeState, Weights, commit, newest
from kangaroo_jax.decode.stats import record_round
from kangaroo_jax.decode.tree import accept_tree
from kangaroo_jax.decode.verify import verify
from kangaroo_jax.kernels import move, packs
from kangaroo_jax.model import KVCache, embed, keep_path, line, logits, run_layers


def speculative_round(spec: DecodeSpec, weights: Weights, state: DecodeState, controls: Controls) -> DecodeState:
    """Draft, verify, accept, commit: one round, 1 to ``gamma + 1`` tokens long (Kangaroo: paper, algorithm 1)."""
    drafted = spec.drafter.draft(spec, weights, state, controls)
    tree, root = drafted.tree, state.length - 1
    scores, hidden, caches = verify(spec, weights, state, drafted)
    tokens = jnp.pad(drafted.tokens, ((0, 0), (1, spec.rows - 1 - drafted.tokens.shape[1])))
    tokens = tokens.at[:, 0].set(newest(state)[0][:, 0])
    target = first_choices(weights, scores, drafted.count + 1 if tree is None else tree.count)
    path = jnp.broadcast_to(jnp.arange(spec.gamma + 1), (len(root), spec.gamma + 1))
    if tree is not None:
        assert not spec.sample, "trees are verified greedily"
        accepted, path = accept_tree(tokens[:, 1:], tree, target, spec.gamma)
        block = jnp.take_along_axis(target, path, axis=1)
        if packs(weights["target"]):
            moved = move([(cache.k, cache.v) for cache in caches], root, path)
            caches = tuple(KVCache(*pair) for pair in moved)
        else:
            caches = tuple(keep_path(cache, root, path) for cache in caches)
    elif spec.sample:
        assert drafted.drawn is not None
        drawing = (controls.sampling, spec.truncate, state.seed, state.length)
        accepted, follows = spec.drafter.accept(drafted.tokens, drafted.count, drafted.drawn, scores, *drawing)
        block = jnp.pad(drafted.tokens, ((0, 0), (0, spec.rows - spec.gamma)))
        block = jnp.where(jnp.arange(spec.rows)[None] == accepted[:, None], follows[:, None], block)
    else:
        # Accepted drafts equal the target's choices, so the target's row is the block to commit.
        block = target
        accepted = spec.drafter.agree(drafted.tokens, drafted.count, block)
    # What a round's budget cuts off is not accepted: the tuner goes on behind it.
    within = jnp.clip(accepted, 0, jnp.maximum(state.limit - state.length - 1, 0))
    found = Verified(tokens, hidden, target, path, within, state.length)
    state = state.replace(caches=caches, drafter=spec.drafter.learn(spec, weights, drafted, found))
    state, committed = commit(state, block, accepted + 1, controls.eos_token_id)
    return state.replace(stats=record_round(state.stats, committed, drafted.count, accepted, drafted.confidence))


def plain_round(spec: DecodeSpec, weights: Weights, state: DecodeState, controls: Controls) -> DecodeState:
    """One step of plain decoding: all layers on the newest token; commits one token."""
    config, target = spec.config, weights["target"]
    token, position = newest(state)
    context = line(position, state.slots, (state.finish == RUNNING).astype(jnp.int32))
    x, caches = run_layers(config, target, embed(target, token), context, state.caches, 0, config.num_hidden_layers)
    scores = logits(config, target, x, context.count)
    if spec.sample:
        key = (state.seed, state.length, TARGET)
        chosen, _ = choose(spec.sampling(controls), scores[:, 0], key, spec.truncate)
    else:
        chosen = first_choices(weights, scores)[:, 0]
    state = state.replace(caches=caches)
    state, committed = commit(state, chosen[:, None], jnp.ones_like(state.length), controls.eos_token_id)
    nothing = jnp.zeros_like(committed)
    unsure = jnp.zeros((len(nothing), spec.rows))
    return state.replace(stats=record_round(state.stats, committed, nothing, nothing, unsure))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    spec: DecodeSpec, weights: Weights, state: DecodeState, controls: Controls, max_rounds: Int[Array, ""]
) -> DecodeState:
    """Run rounds on the device until every sequence has finished, or ``max_rounds`` are done.

    One compiled loop serves ``generate`` and ``stream``: the bound is traced. The state is donated; caches are updated
    in place and never copied.
    """
    one_round = speculative_round if spec.gamma else plain_round

    def unfinished(carry: tuple[Array, DecodeState]) -> Array:
        done, state = carry
        return (state.finish == RUNNING).any() & (done < max_rounds)

    def body(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        done, state = carry
        return done + 1, one_round(spec, weights, state, controls)

    return jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), state))[1]
