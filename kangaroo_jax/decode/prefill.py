"""Prefill: caches, and the prompts run through all layers piece by piece, up to the target's first token."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from kangaroo_jax.decode.drafter import DecodeSpec, Piece
from kangaroo_jax.decode.sampling import TARGET, choose
from kangaroo_jax.decode.state import RUNNING, Caches, Controls, DecodeState, Weights, commit
from kangaroo_jax.decode.stats import init_stats
from kangaroo_jax.model import embed, init_cache, line, logits, run_layers


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def allocate(spec: DecodeSpec, batch: int, slots: int, dtype: jnp.dtype) -> Caches:
    """Return zeroed caches of all layers, and what the drafter remembers at first, for a batch of sequences."""
    layers = init_cache(spec.config, batch, slots, dtype, spec.config.num_hidden_layers)
    return layers, spec.drafter.allocate(spec, batch, slots, dtype)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill(
    spec: DecodeSpec,
    chunk: int,
    weights: Weights,
    caches: Caches,
    tokens: Int[Array, "B S"],
    start: Int[Array, " B"],
    length: Int[Array, " B"],
    max_new_tokens: Int[Array, " B"],
    seed: UInt32[Array, "B 2"],
    controls: Controls,
) -> DecodeState:
    """Run the prompts through all layers, ``chunk`` positions at a time, and commit the target's first token.

    How much memory it takes depends on ``chunk``, not on the prompt: one piece of the prompt is in work at a time, and
    logits are computed once, for the last position.

    Args:
        spec: static description.
        chunk: positions run at a time; at most S.
        weights: target and adapter.
        caches: from ``allocate``, or of an earlier state; donated.
        tokens: prompts, followed by anything.
        start: positions before this one are valid in the caches already; below ``length``.
        length: length of each prompt, at least 1.
        max_new_tokens: budget of each sequence.
        seed: what each sequence's random numbers are made from.
        controls: EOS tokens, and how tokens are drawn.

    Returns:
        The state before the first round; a sequence may already have finished.
    """
    batch, slots = tokens.shape
    layers, memory, last = _run_prompt(spec, chunk, weights, caches, tokens, start, length)
    scores = logits(spec.config, weights["target"], last)[:, 0]
    chosen, _ = choose(spec.sampling(controls), scores, (seed, length, TARGET), spec.truncate)
    state = DecodeState(
        tokens=tokens,
        length=length,
        limit=length + max_new_tokens,
        finish=jnp.full((batch,), RUNNING, jnp.int32),
        seed=seed,
        caches=layers,
        drafter=spec.drafter.begin(spec, weights, memory, last),
        stats=init_stats(batch, slots, spec.rows),
    )
    return commit(state, chosen[:, None], jnp.ones((batch,), jnp.int32), controls.eos_token_id)[0]


def _run_prompt(
    spec: DecodeSpec,
    chunk: int,
    weights: Weights,
    caches: Caches,
    tokens: Int[Array, "B S"],
    start: Int[Array, " B"],
    length: Int[Array, " B"],
) -> tuple[*Caches, Float[Array, "B 1 D"]]:
    """Fill the caches from ``start`` to ``length``; return them and the last layer's state of each last position."""
    config, target = spec.config, weights["target"]
    exit_layer, depth = spec.drafter.exit_layer, config.num_hidden_layers

    def body(carry: tuple[Array, Caches, Array]) -> tuple[Array, Caches, Array]:
        done, (layers, memory), last = carry
        # A piece that would reach beyond the cache starts earlier, and writes some positions again as they are (but for
        # an adapter's of answers that it read with final states).
        at = jnp.minimum(start + done, tokens.shape[1] - chunk)
        positions = at[:, None] + jnp.arange(chunk)[None]
        piece = jnp.take_along_axis(tokens, positions, axis=1)
        context = line(positions, tokens.shape[1], jnp.clip(length - at, 0, chunk))
        x = embed(target, piece)
        x, shallow = run_layers(config, target, x, context, layers[:exit_layer], 0, exit_layer)
        memory = spec.drafter.read(spec, weights, memory, Piece(piece, positions, x))
        x, deep = run_layers(config, target, x, context, layers[exit_layer:], exit_layer, depth)
        row = length - 1 - at
        here = (row >= 0) & (row < chunk)
        found = jnp.take_along_axis(x, jnp.clip(row, 0, chunk - 1)[:, None, None], axis=1)
        return done + chunk, ((*shallow, *deep), memory), jnp.where(here[:, None, None], found, last)

    def unfinished(carry: tuple[Array, Caches, Array]) -> Array:
        return (start + carry[0] < length).any()

    embedding = target["embed_tokens"]["embedding"]
    last = jnp.zeros((tokens.shape[0], 1, config.hidden_size), embedding.dtype)
    _, (layers, memory), last = jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), caches, last))
    return layers, memory, last


def prefill_chunk(width: int, slots: int, batch: int) -> int:
    """Return how many positions a prefill runs at a time: the prompt's bucket, or less where that took much memory.

    Scores of attention take ``chunk * slots * batch`` numbers a head. That product is bounded, by 512 positions of
    4096 slots, so that memory stays the same however long the prompt is.

    Args:
        width: tokens of the longest prompt.
        slots: cache slots.
        batch: sequences.
    """
    most = 512
    while most > 16 and most * slots * batch > 512 * 4096:
        most //= 2
    return min(bucket(width), most, slots)


def cache_slots(spec: DecodeSpec, longest: int) -> int:
    """Return how many cache slots a generation needs, rounded up to a bucket.

    Args:
        spec: static description; a round writes up to ``spec.rows`` slots beyond the committed length.
        longest: tokens of the longest sequence, prompt and budget together.
    """
    return bucket(max(longest + spec.rows, 128))


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
