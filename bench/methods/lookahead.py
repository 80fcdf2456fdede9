"""Lookahead decoding: the target itself guesses n-grams far ahead, by Jacobi iteration, and verifies them later.

One forward pass of a round serves two branches (Fu et al. 2024, section 3). The lookahead branch runs a window of
N - 1 levels of W tokens; each level was guessed from the one before it, and the newest level yields the next one. Read
across the levels, the window is W n-grams, which go to a pool. The verification branch runs the pool's n-grams that
begin with the newest token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

import kangaroo_jax
from bench.methods import ngrams
from bench.methods.base import Method, Ready
from bench.methods.lookahead_rows import Layout
from kangaroo_jax import decode as dec
from kangaroo_jax.checks import integer

_READ_AT_ONCE = 16


class Memory(struct.PyTreeNode):
    """What lookahead decoding remembers.

    Attributes:
        pool: n-grams seen, by first token, ``[B, V, G, N - 1]``.
        window: tokens of the levels, oldest level first, ``[B, N - 1, W + N - 2]``; the first of level 0 is not looked
            at, since the newest committed token stands there.
        fresh: n-grams that the last round read off the window; the next one puts them into the pool before it looks
            there, so that the pool is written, then read, and never copied, ``[B, W, N]``.
        filled: levels filled beside the first, ``[B]``; the window is complete with N - 2.
        known: tokens of the text whose n-grams have been put into the pool, ``[B]``.
    """

    pool: Int[Array, "B V G L"]
    window: Int[Array, "B L X"]
    fresh: Int[Array, "B W N"]
    filled: Int[Array, " B"]
    known: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Lookahead(dec.Drafter):
    """Drafts n-grams out of a pool that it fills by Jacobi iteration; ``gamma`` is N - 1.

    Attributes:
        W: tokens of a level, the window's width.
        N: tokens of an n-gram.
        G: n-grams verified in a round, and kept for each first token.
        from_text: whether n-grams of the prompt and of what was generated go to the pool, too.
    """

    W: int
    N: int
    G: int
    from_text: bool = False

    @property
    def layout(self) -> Layout:
        """How the rows of a verification are used."""
        return Layout(self.W, self.N, self.G)

    def rows(self, gamma: int) -> int:
        """Return the rows of both branches, rounded up to a multiple of 8."""
        return self.layout.rows

    def allocate(self, spec: dec.DecodeSpec, batch: int, slots: int, dtype: jnp.dtype) -> Memory:
        """Return an empty pool, and a window that has yet to be filled."""
        return Memory(
            pool=ngrams.empty(batch, spec.config.vocab_size, self.G, self.N - 1),
            window=jnp.zeros((batch, self.N - 1, self.layout.widest), jnp.int32),
            fresh=jnp.full((batch, self.W, self.N), ngrams.NONE, jnp.int32),
            filled=jnp.zeros((batch,), jnp.int32),
            known=jnp.zeros((batch,), jnp.int32),
        )

    def draft(
        self, spec: dec.DecodeSpec, weights: dec.Weights, state: dec.DecodeState, controls: dec.Controls
    ) -> dec.Draft:
        """Return window and n-grams as one tree; the n-grams are candidates, once the window is complete."""
        memory: Memory = self._begin_window(state.drafter, state)
        pool = ngrams.insert(memory.pool, memory.fresh)
        memory = self._read_text(memory.replace(pool=pool), state)
        layout, batch = self.layout, len(state.length)
        newest = dec.newest(state)[0][:, 0]
        # The latest first: behind the last one there is nothing to verify.
        found, there = (each[:, ::-1] for each in ngrams.find(memory.pool, newest))
        there &= (memory.filled == self.N - 2)[:, None]

        rows = layout.window(memory.filled)
        flat = jnp.where(rows.ahead, rows.level * layout.widest + rows.index, 0)
        ahead = jnp.take_along_axis(memory.window.reshape(batch, -1), flat, axis=1)
        spare = (layout.window_rows, layout.rows - layout.window_rows - self.G * (self.N - 1))
        guesses = jnp.pad(jnp.maximum(found, 0).reshape(batch, -1), ((0, 0), spare))
        candidate = jnp.pad(jnp.repeat(there, self.N - 1, axis=1), ((0, 0), spare))
        tokens = jnp.where(rows.ahead, ahead, guesses)
        tree = layout.tree(rows, candidate)
        return dec.token_draft(spec, weights, state, tokens[:, 1:], candidate.sum(1), memory, tree)

    def learn(self, spec: dec.DecodeSpec, weights: dec.Weights, draft: dec.Draft, verified: dec.Verified) -> Memory:
        """Read n-grams off the window, drop its oldest level, and append the one just computed.

        However many tokens are accepted, the window moves on by one position, as in the authors' code by default
        (ALWAYS_FWD_ONE).
        """
        memory: Memory = draft.drafter
        start = memory.filled * (self.layout.widest - memory.filled)
        newest_level = start[:, None] + jnp.arange(self.layout.widest)[None]
        computed = jnp.take_along_axis(verified.target, newest_level, axis=1)

        complete = memory.filled == self.N - 2
        first = memory.window[:, 0].at[:, 0].set(verified.tokens[:, 0])
        read = jnp.concatenate([first[:, None], memory.window[:, 1:], computed[:, None]], axis=1)[:, :, : self.W]

        # What is computed stands one position later than what it was computed from; so does the next root.
        next_level = (jnp.arange(self.N - 1)[None] == memory.filled[:, None] + 1)[:, :, None]
        growing = jnp.roll(jnp.where(next_level, computed[:, None], memory.window), -1, axis=2)
        moving = jnp.concatenate([memory.window[:, 1:], computed[:, None]], axis=1)
        return memory.replace(
            fresh=jnp.where(complete[:, None, None], read.transpose(0, 2, 1), ngrams.NONE),
            window=jnp.where(complete[:, None, None], moving, growing),
            filled=jnp.minimum(memory.filled + 1, self.N - 2),
        )

    def _begin_window(self, memory: Memory, state: dec.DecodeState) -> Memory:
        """Return the window with tokens drawn from the prompt in its first level, if it is not in use yet."""
        share = np.random.default_rng(10).random(self.layout.widest).astype(np.float32)
        prompt = (state.length - 1)[:, None]
        drawn = jnp.minimum((share[None] * prompt).astype(jnp.int32), prompt - 1)
        level = jnp.take_along_axis(state.tokens, drawn, axis=1)
        begun = memory.window.at[:, 0].set(level)
        return memory.replace(window=jnp.where((memory.filled == 0)[:, None, None], begun, memory.window))

    def _read_text(self, memory: Memory, state: dec.DecodeState) -> Memory:
        """Put the n-grams of the text that the pool does not know yet into it, if that is asked for."""
        if not self.from_text:
            return memory

        def some(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            pool, known = carry
            start = known[:, None] + jnp.arange(_READ_AT_ONCE)[None] - (self.N - 1)
            places = jnp.maximum(start[:, :, None] + jnp.arange(self.N)[None, None], 0)
            batch = len(known)
            grams = jnp.take_along_axis(state.tokens, places.reshape(batch, -1), axis=1).reshape(places.shape)
            valid = (start >= 0) & (start + self.N <= state.length[:, None])
            pool = ngrams.insert(pool, jnp.where(valid[:, :, None], grams, ngrams.NONE))
            return pool, jnp.minimum(known + _READ_AT_ONCE, state.length)

        def unknown(carry: tuple[Array, Array]) -> Array:
            return (carry[1] < state.length).any()

        pool, known = jax.lax.while_loop(unknown, some, (memory.pool, memory.known))
        return memory.replace(pool=pool, known=known)


def lookahead(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return lookahead decoding.

    Raises:
        ValueError: if a setting is out of range.
    """
    drafter = Lookahead(
        integer("W", settings["W"], 1),
        integer("N", settings["N"], 3),
        integer("G", settings["G"], 1),
        bool(settings["from_text"]),
    )
    spec = dec.DecodeSpec(params.config, drafter, drafter.N - 1)
    return Ready("lookahead", params, spec, settings=dict(settings), fewest_rows=drafter.layout.window_rows)


METHODS = (
    Method(
        "lookahead",
        "n-grams that the target guessed far ahead by Jacobi iteration, no model beside it",
        "Fu et al. 2024, arXiv 2402.02057; W, N and G as its authors' scripts have them for 7B on an A100",
        {"W": 15, "N": 5, "G": 15, "from_text": False},
        lookahead,
        candidates=[
            {"W": W, "N": N, "G": G, "from_text": text}
            for W, N, G, text in (
                (1, 3, 1, True),
                (1, 4, 1, True),
                (2, 3, 2, True),
                (3, 3, 3, True),
                (3, 3, 3, False),
                (3, 5, 3, True),
                (5, 3, 5, False),
            )
        ],
    ),
)
