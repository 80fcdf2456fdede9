"""Counters of what happened in every round; nothing decides by them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Shaped


class DecodeStats(struct.PyTreeNode):
    """What happened in every round of every sequence; the prefill and its token are not a round.

    Attributes:
        rounds: verify rounds done (steps, in plain decoding), ``[B]``.
        accept_lengths: tokens committed in round r (s_r), ``[B, S]``; zero beyond ``rounds``, as all that follow.
        draft_lengths: tokens drafted in round r, ``[B, S]``.
        accepted_drafts: drafted tokens the target accepted in round r, also those beyond the text's end, ``[B, S]``.
        confidence: confidence of the tokens drafted in round r, ``[B, S, R]``; valid up to ``draft_lengths``.
    """

    rounds: Int[Array, " B"]
    accept_lengths: Int[Array, "B S"]
    draft_lengths: Int[Array, "B S"]
    accepted_drafts: Int[Array, "B S"]
    confidence: Float[Array, "B S R"]


def init_stats(batch: int, slots: int, rows: int) -> DecodeStats:
    """Return zeroed counters."""
    # Separate buffers: a donated argument must not appear twice.
    return DecodeStats(
        rounds=jnp.zeros((batch,), jnp.int32),
        accept_lengths=jnp.zeros((batch, slots), jnp.int32),
        draft_lengths=jnp.zeros((batch, slots), jnp.int32),
        accepted_drafts=jnp.zeros((batch, slots), jnp.int32),
        confidence=jnp.zeros((batch, slots, rows), jnp.float32),
    )


def record_round(
    stats: DecodeStats,
    committed: Int[Array, " B"],
    drafted: Int[Array, " B"],
    accepted: Int[Array, " B"],
    confidence: Float[Array, "B R"],
) -> DecodeStats:
    """Count one round for every sequence that committed something in it."""
    took_part = (committed > 0).astype(jnp.int32)

    def note(buffer: Array, value: Array) -> Array:
        return write_rows(buffer, (value * took_part)[:, None], stats.rounds)

    return DecodeStats(
        rounds=stats.rounds + took_part,
        accept_lengths=note(stats.accept_lengths, committed),
        draft_lengths=note(stats.draft_lengths, drafted),
        accepted_drafts=note(stats.accepted_drafts, accepted),
        confidence=write_rows(stats.confidence, confidence[:, None], stats.rounds),
    )


def write_rows(buffer: Shaped[Array, "B S *X"], block: Shaped[Array, "B T *X"], start: Int[Array, " B"]) -> Array:
    """Write a block of T values into each row at its own start, in place."""
    rest = (0,) * (buffer.ndim - 2)
    if buffer.shape[0] == 1:  # A scatter over one row is a slow loop on a CPU.
        return jax.lax.dynamic_update_slice(buffer, block, (0, start[0], *rest))
    return jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at, *rest)))(buffer, block, start)
