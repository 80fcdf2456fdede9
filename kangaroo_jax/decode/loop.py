"""Prefill, the round, and the loop around it: all of a generation, on the device.

Plain decoding shares prefill, commit, caches and stopping with Kangaroo, so that a comparison of the two compares only
what differs: how the next tokens are found.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kangaroo_jax.decode.accept import accept_greedy
from kangaroo_jax.decode.draft import DecodeSpec, draft
from kangaroo_jax.decode.state import RUNNING, DecodeState, Weights, commit, init_stats, newest, record_round
from kangaroo_jax.decode.verify import verify
from kangaroo_jax.model import embed, init_cache, logits, run_adapter, run_layers


@partial(jax.jit, static_argnums=(0, 6))
def prefill(
    spec: DecodeSpec,
    weights: Weights,
    prompt: Int[Array, "B P"],
    prompt_length: Int[Array, " B"],
    max_new_tokens: Int[Array, " B"],
    eos_token_id: Int[Array, " E"],
    slots: int,
) -> DecodeState:
    """Run the prompts through all layers, fill all caches and commit the target's first token.

    Args:
        spec: static description.
        weights: target and adapter.
        prompt: token ids, padded on the right with anything.
        prompt_length: true length of each prompt, at least 1.
        max_new_tokens: budget of each sequence.
        eos_token_id: tokens that end a sequence.
        slots: cache slots to allocate; at least ``cache_slots(...)`` of the longest sequence.

    Returns:
        The state before the first round; a sequence may already have finished.
    """
    config, target = spec.config, weights["target"]
    batch, width = prompt.shape
    positions = jnp.broadcast_to(jnp.arange(width), prompt.shape)
    x = embed(target, prompt)
    caches = init_cache(config, batch, slots, x.dtype, config.num_hidden_layers)
    x, shallow = run_layers(config, target, x, positions, caches[: spec.exit_layer], 0, spec.exit_layer)
    adapter = None
    if spec.gamma:
        (cache,) = init_cache(config, batch, slots, x.dtype, 1)
        adapter = run_adapter(config, weights["adapter"], x, positions, cache)[1]
    x, deep = run_layers(
        config, target, x, positions, caches[spec.exit_layer :], spec.exit_layer, config.num_hidden_layers
    )
    last = jnp.take_along_axis(x, prompt_length[:, None, None] - 1, axis=1)
    first = jnp.argmax(logits(config, target, last), axis=-1).astype(jnp.int32)
    state = DecodeState(
        tokens=jnp.pad(prompt, ((0, 0), (0, slots - width))),
        length=prompt_length,
        limit=prompt_length + max_new_tokens,
        finish=jnp.full((batch,), RUNNING, jnp.int32),
        caches=(*shallow, *deep),
        adapter=adapter,
        stats=init_stats(batch, slots),
    )
    return commit(state, first, jnp.ones((batch,), jnp.int32), eos_token_id)[0]


def kangaroo_round(
    spec: DecodeSpec, weights: Weights, state: DecodeState, eta: Float[Array, ""], eos_token_id: Int[Array, " E"]
) -> DecodeState:
    """Draft, verify, accept, commit: one round of Kangaroo (paper, algorithm 1), 1 to ``gamma + 1`` tokens long."""
    drafted = draft(spec, weights, state, eta)
    positions = state.length[:, None] - 1 + jnp.arange(spec.rows)
    scores, deep = verify(spec, weights, drafted, positions, state.caches[spec.exit_layer :])
    target = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    accepted = accept_greedy(drafted.tokens, drafted.count, target)
    # Accepted drafts equal the target's choices, so the target's row is the block to commit.
    state = state.replace(caches=(*drafted.caches, *deep), adapter=drafted.adapter)
    state, committed = commit(state, target, accepted + 1, eos_token_id)
    return record_round(state, committed, drafted.count, accepted)


def plain_round(
    spec: DecodeSpec, weights: Weights, state: DecodeState, eta: Float[Array, ""], eos_token_id: Int[Array, " E"]
) -> DecodeState:
    """One step of plain greedy decoding: all layers on the newest token; commits one token."""
    del eta
    config, target = spec.config, weights["target"]
    token, position = newest(state)
    x, caches = run_layers(config, target, embed(target, token), position, state.caches, 0, config.num_hidden_layers)
    chosen = jnp.argmax(logits(config, target, x), axis=-1).astype(jnp.int32)
    state, committed = commit(state.replace(caches=caches), chosen, jnp.ones_like(state.length), eos_token_id)
    nothing = jnp.zeros_like(committed)
    return record_round(state, committed, nothing, nothing)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    spec: DecodeSpec,
    weights: Weights,
    state: DecodeState,
    eta: Float[Array, ""],
    eos_token_id: Int[Array, " E"],
    max_rounds: Int[Array, ""],
) -> DecodeState:
    """Run rounds on the device until every sequence has finished, or ``max_rounds`` are done.

    One compiled loop serves ``generate`` (no bound) and ``stream`` (a few rounds a call): the bound is traced. The
    state is donated; caches are updated in place and never copied.
    """
    one_round = kangaroo_round if spec.gamma else plain_round

    def unfinished(carry: tuple[Array, DecodeState]) -> Array:
        done, state = carry
        return (state.finish == RUNNING).any() & (done < max_rounds)

    def body(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        done, state = carry
        return done + 1, one_round(spec, weights, state, eta, eos_token_id)

    return jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), state))[1]


def bucket(size: int) -> int:
    """Return the smallest of 16, 24, 32, 48, ..., 512, 768, 1024, 1280, ... that is at least ``size``.

    Half-steps between powers of two, and multiples of 256 above 512: every step attends over all slots, so a cache
    must not be much larger than its text.
    """
    if size > 512:
        return -(-size // 256) * 256
    power = 16
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


def cache_slots(spec: DecodeSpec, prompt_width: int, longest: int) -> int:
    """Return how many cache slots a generation needs, rounded up to a bucket.

    Args:
        spec: static description; a round writes up to ``spec.rows`` slots beyond the committed length.
        prompt_width: width of the padded prompt.
        longest: tokens of the longest sequence, prompt and budget together.
    """
    return bucket(max(prompt_width, longest + spec.rows, 128))
