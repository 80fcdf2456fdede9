"""Kangaroo: the draft model is the target's first layers, the adapter and the target's own head (paper, section 3)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.decode.drafter import DecodeSpec, Drafter, Piece, Verified
from kangaroo_jax.decode.likely import surest
from kangaroo_jax.decode.sampling import DRAFT, choose, no_cuts
from kangaroo_jax.decode.state import RUNNING, Controls, DecodeState, Draft, Weights, newest
from kangaroo_jax.model import (
    AdapterConfig,
    KVCache,
    adapter_layers,
    draft_head,
    embed,
    init_cache,
    line,
    linear,
    run_adapter,
    run_layers,
)


class _Carry(struct.PyTreeNode):
    step: Int[Array, ""]
    active: Bool[Array, " B"]
    draft: Draft


@dataclasses.dataclass(frozen=True)
class Kangaroo(Drafter):
    """Drafts with the target's first layers, an adapter and the target's head; remembers the adapter's cache.

    Attributes:
        adapter: what the adapter computes.
    """

    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)

    @property
    def reads_adapter(self) -> bool:
        """Return True."""
        return True

    @property
    def confident(self) -> bool:
        """Return True: the draft model's top-1 probability."""
        return True

    def vocabulary(self, weights: Weights) -> Int[Array, " N"] | None:
        """Return the ids of the tokens that draft logits are of; None where they are of all."""
        return weights["adapter"].get("draft_vocabulary", {}).get("ids")

    def prefill_gamma(self, gamma: int) -> int:
        """Return the smallest gamma with as many rows."""
        return max(self.rows(gamma) - 8, 1)

    def allocate(self, spec: DecodeSpec, batch: int, slots: int, dtype: jnp.dtype) -> KVCache | None:
        """Return a zeroed cache, if the adapter attends."""
        if not self.adapter.made_of.cached:
            return None
        return init_cache(adapter_layers(spec.config, self.adapter), batch, slots, dtype, 1)[0]

    def read(self, spec: DecodeSpec, weights: Weights, memory: KVCache | None, piece: Piece) -> KVCache | None:
        """Run the adapter over the states of the exit layer."""
        return None if memory is None else self._adapt(spec, weights, piece.exit, piece.positions, memory)[1]

    def draft(self, spec: DecodeSpec, weights: Weights, state: DecodeState, controls: Controls) -> Draft:
        """Draft until no sequence is confident any more, or ``gamma`` tokens are drafted.

        The confidence is the draft model's top-1 probability, in fp32, before temperature and cuts. A token drafted
        with confidence below ``eta`` ends the drafting of its sequence, and is kept: it is verified like the others.
        While some sequence goes on, the others run along and their results are not counted.

        Returns:
            The draft. Afterwards the shallow caches cover every position a round can commit, and the adapter's all but
            the last drafted token, which only ``learn`` shows it.
        """
        token, position = newest(state)

        def keep_drafting(carry: _Carry) -> Array:
            return carry.active.any() & (carry.step < spec.gamma)

        def draft_one(carry: _Carry) -> _Carry:
            step, now = carry.step, carry.draft
            hidden = jax.lax.dynamic_slice_in_dim(now.hidden, step, 1, axis=1)
            logits, memory = self.propose(spec, weights, hidden, position + step, now.drafter)
            key = (state.seed, state.length, DRAFT + step)
            drafted, confidence, drawn = self._choose(spec, weights, controls, logits, key)
            after = position + step + 1
            hidden, caches = self._shallow(spec, weights, drafted[:, None], after, now.caches, carry.active)
            return _Carry(
                step=step + 1,
                active=carry.active & (confidence >= controls.eta),
                draft=Draft(
                    tokens=_put(now.tokens, drafted, step),
                    count=now.count + carry.active,
                    confidence=_put(now.confidence, confidence, step),
                    # Nothing to note (None) when tokens are not drawn.
                    drawn=jax.tree.map(lambda noted, new: _put(noted, new, step), now.drawn, drawn),
                    hidden=_put(now.hidden, hidden[:, 0], step + 1),
                    caches=caches,
                    drafter=memory,
                ),
            )

        running = state.finish == RUNNING
        shared = state.caches[: self.exit_layer]
        first, caches = self._shallow(spec, weights, token, position, shared, running)
        start = _nothing_drafted(spec, first, caches, state.drafter)
        carry = _Carry(jnp.zeros((), jnp.int32), running, start)
        return jax.lax.while_loop(keep_drafting, draft_one, carry).draft

    def learn(self, spec: DecodeSpec, weights: Weights, draft: Draft, verified: Verified) -> KVCache | None:
        """Write the adapter's keys and values of the last drafted token, which drafting itself never feeds to it.

        They are needed where all drafts are accepted, and the native kernels do it there alone. Only the cache is used,
        so XLA drops all but the projection of one row.
        """
        if draft.drafter is None:
            return None
        last = jnp.take_along_axis(draft.hidden, draft.count[:, None, None], axis=1)
        position = (verified.length - 1 + draft.count)[:, None]
        all_accepted = (verified.accepted == draft.count) & (draft.count > 0)
        return self._adapt(spec, weights, last, position, draft.drafter, all_accepted.astype(jnp.int32))[1]

    def propose(
        self,
        spec: DecodeSpec,
        weights: Weights,
        hidden: Float[Array, "B 1 D"],
        positions: Int[Array, "B 1"],
        memory: KVCache | None,
    ) -> tuple[Float[Array, "B N"], KVCache | None]:
        """Return the draft model's logits of the token after ``positions``: adapter and head on the exit layer's state.

        Returns:
            fp32 logits of what it can draft, and the adapter's cache, if it has one, with this position written.
        """
        adapted, memory = self._adapt(spec, weights, hidden, positions, memory)
        return linear(adapted, draft_head(weights["target"], weights["adapter"]), jnp.float32)[:, 0], memory

    def _choose(
        self,
        spec: DecodeSpec,
        weights: Weights,
        controls: Controls,
        logits: Float[Array, "B N"],
        key: tuple[Array, Array, Array],
    ) -> tuple[Int[Array, " B"], Float[Array, " B"], Any]:
        """Return ``choose``'s token, the confidence, and what it was drawn with, over the whole vocabulary.

        What cannot be drafted has the logit ``-inf`` there: probability 0, so that a rejection draws from p as it is.
        """
        ids, (likeliest, confidence) = self.vocabulary(weights), surest(weights, logits)
        if not spec.sample:
            return likeliest if ids is None else ids[likeliest], confidence, None
        if ids is not None:
            whole = jnp.full((len(logits), spec.config.vocab_size), -jnp.inf, logits.dtype)
            logits = whole.at[:, ids].set(logits, unique_indices=True, indices_are_sorted=True)
        drafted, drawn = choose(controls.sampling, logits, key, spec.truncate)
        return drafted, confidence, drawn

    def _shallow(
        self,
        spec: DecodeSpec,
        weights: Weights,
        token: Int[Array, "B 1"],
        position: Int[Array, "B 1"],
        caches: tuple[KVCache, ...],
        active: Bool[Array, " B"],
    ) -> tuple[Float[Array, "B 1 D"], tuple[KVCache, ...]]:
        """Run the layers shared with the target on one token of every sequence that is active."""
        slots = caches[0].slots if caches else None
        context = line(position, slots, active.astype(jnp.int32))
        x = embed(weights["target"], token)
        return run_layers(spec.config, weights["target"], x, context, caches, 0, self.exit_layer)

    def _adapt(
        self,
        spec: DecodeSpec,
        weights: Weights,
        hidden: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        memory: KVCache | None,
        count: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Run the adapter on states of the exit layer."""
        context = line(positions, None if memory is None else memory.slots, count)
        return run_adapter(spec.config, weights["adapter"], hidden, context, memory, self.adapter)


def _nothing_drafted(
    spec: DecodeSpec, first: Float[Array, "B 1 D"], caches: tuple[KVCache, ...], memory: KVCache | None
) -> Draft:
    """Return a draft of no tokens, with the exit layer's state of the newest committed one."""
    batch, _, width = first.shape
    size = (batch, spec.gamma)
    return Draft(
        tokens=jnp.zeros(size, jnp.int32),
        count=jnp.zeros((batch,), jnp.int32),
        confidence=jnp.zeros((batch, spec.rows), jnp.float32),
        drawn=(jnp.zeros((*size, spec.config.vocab_size), jnp.float32), no_cuts(size)) if spec.sample else None,
        hidden=_put(jnp.zeros((batch, spec.rows, width), first.dtype), first[:, 0], 0),
        caches=caches,
        drafter=memory,
    )


def _put(buffer: Array, row: Array, at: Int[Array, ""] | int) -> Array:
    """Write one row of every sequence."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, row[:, None], at, axis=1)
