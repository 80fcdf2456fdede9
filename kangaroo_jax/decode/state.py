"""The state of a generation, and commit(): the one place that writes tokens and advances lengths."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, UInt32

from kangaroo_jax.decode.sampling import Cut, Sampling
from kangaroo_jax.decode.stats import DecodeStats, write_rows
from kangaroo_jax.decode.tree import Tree
from kangaroo_jax.model import KVCache

RUNNING, STOP, LENGTH = 0, 1, 2
"""Values of ``DecodeState.finish``: still going, ended by an EOS token, ended by the token budget."""


class Controls(struct.PyTreeNode):
    """What a caller may change from one generation, and from one sequence, to the next; all traced: nothing recompiles.

    Attributes:
        eta: confidence below which drafting stops, ``[B]``.
        eos_token_id: tokens that end each sequence; -1 is none, ``[B, E]``.
        sampling: how tokens are drawn; not looked at by greedy decoding.
    """

    eta: Float[Array, " B"]
    eos_token_id: Int[Array, "B E"]
    sampling: Sampling


class DecodeState(struct.PyTreeNode):
    """Everything that changes while decoding; all leaves are traced, so none of them recompiles anything.

    Invariant between rounds: ``tokens[b, :length[b]]`` are committed, and all caches are valid in slots
    ``[0, length[b] - 1)``. The newest committed token has no keys and values yet; what lies in later slots is rubbish.

    Attributes:
        tokens: token at every position, ``[B, S]``.
        length: committed tokens, prompt included, ``[B]``.
        limit: length at which the token budget is spent, ``[B]``.
        finish: RUNNING, STOP or LENGTH, ``[B]``.
        seed: what the random numbers of each sequence are made from, ``[B, 2]``.
        caches: keys and values of the target's N layers.
        drafter: what the drafter remembers: Kangaroo, what its adapter reads again (``Memory``), or None when nothing
            is drafted or it reads nothing twice.
        stats: counters.
    """

    tokens: Int[Array, "B S"]
    length: Int[Array, " B"]
    limit: Int[Array, " B"]
    finish: Int[Array, " B"]
    seed: UInt32[Array, "B 2"]
    caches: tuple[KVCache, ...]
    drafter: Any
    stats: DecodeStats

    @property
    def slots(self) -> int:
        """Positions that there is room for."""
        return self.tokens.shape[1]


class Draft(struct.PyTreeNode):
    """What one drafting phase leaves for verification.

    Attributes:
        tokens: drafted tokens, ``[B, G]``; valid up to ``count``. Of a tree: the tokens of rows 1 to R - 1.
        count: tokens drafted for each sequence, ``[B]``; of a tree, its candidates.
        confidence: top-1 probability of the draft model at each drafted token, ``[B, R]``; valid up to ``count``. That
            of siblings is 0, and of looked up tokens 1.
        drawn: logits and cuts each token was drawn with, ``[B, G, V]`` and ``[B, G]``; None when the most likely one is
            taken.
        hidden: ``hidden_states[l]`` of the newest committed token and of every drafted one, ``[B, R, D]``; R is
            ``DecodeSpec.rows``, rows beyond ``count`` are zeros or stale.
        caches: the shallow layers' caches, written at all those positions.
        drafter: what the drafter remembers; Kangaroo's adapter cache is written at the positions of the rows ``read``.
        tree: how the rows hang together; None is a line, each row after the one before it.
        read: rows that the drafter has run itself, counted from the first, ``[B]``; None where it does not count them.
    """

    tokens: Int[Array, "B G"]
    count: Int[Array, " B"]
    confidence: Float[Array, "B R"]
    drawn: tuple[Float[Array, "B G V"], Cut] | None
    hidden: Float[Array, "B R D"]
    caches: tuple[KVCache, ...]
    drafter: Any
    tree: Tree | None = None
    read: Int[Array, " B"] | None = None


def commit(
    state: DecodeState, block: Int[Array, "B T"], count: Int[Array, " B"], eos_token_id: Int[Array, "B E"]
) -> tuple[DecodeState, Int[Array, " B"]]:
    """Append the first ``count[b]`` tokens of a block to every running sequence, cut where plain decoding would stop.

    A sequence ends with the first EOS token in its block, or when its budget is spent, whichever comes first::

        block a b </s> c, count 4, budget for 9 more  ->  a b </s>  (STOP)
        block a b </s> c, count 4, budget for 2 more  ->  a b       (LENGTH)

    Args:
        state: the state; finished sequences stay as they are.
        block: tokens that follow the committed ones.
        count: how many tokens of each row are valid.
        eos_token_id: tokens that end each sequence; may be empty.

    Returns:
        The state, and the number of tokens committed to each sequence.
    """
    index = jnp.arange(block.shape[1])[None]
    is_end = (block[:, :, None] == eos_token_id[:, None]).any(-1) & (index < count[:, None])
    count = jnp.where(is_end.any(-1), jnp.argmax(is_end, axis=-1) + 1, count)
    room = state.limit - state.length
    running = state.finish == RUNNING
    count = jnp.where(running, jnp.minimum(count, room), 0).astype(jnp.int32)
    ended = (is_end & (index < count[:, None])).any(-1)
    finish = jnp.where(ended, STOP, jnp.where(count == room, LENGTH, RUNNING))
    state = state.replace(
        tokens=write_rows(state.tokens, block, state.length),
        length=state.length + count,
        finish=jnp.where(running, finish, state.finish).astype(jnp.int32),
    )
    return state, count


def newest(state: DecodeState) -> tuple[Int[Array, "B 1"], Int[Array, "B 1"]]:
    """Return the newest committed token of every sequence and its position."""
    position = state.length[:, None] - 1
    return jnp.take_along_axis(state.tokens, position, axis=1), position


Weights = dict[str, Any]
"""``{"target": params of the Llama, "adapter": params of the adapter or None}``, always a traced argument.

Other drafters than Kangaroo have theirs as ``"drafter"``.
"""

Caches = tuple[tuple[KVCache, ...], Any]
"""Caches of the target's layers, and what the drafter remembers."""
