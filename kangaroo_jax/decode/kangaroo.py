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
from kangaroo_jax.decode.stats import write_rows
from kangaroo_jax.decode.tree import Tree
from kangaroo_jax.model import (
    AdapterConfig,
    KVCache,
    adapter_layers,
    draft_head,
    embed,
    fork,
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
    siblings: Int[Array, "B K"]


@dataclasses.dataclass(frozen=True)
class Kangaroo(Drafter):
    """Drafts with the target's first layers, an adapter and the target's head; remembers the adapter's cache.

    Attributes:
        adapter: what the adapter computes.
        siblings: second choices that are verified beside the first drafted token, where one sequence is decoded
            greedily: a batch's rows cost what its sequences cost.
    """

    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    siblings: int = 0

    @property
    def reads_adapter(self) -> bool:
        """Return True."""
        return True

    @property
    def confident(self) -> bool:
        """Return True: the draft model's top-1 probability."""
        return True

    def rows(self, gamma: int) -> int:
        """Return the rows of a line and of the siblings."""
        return super().rows(gamma + self.siblings)

    @property
    def forks(self) -> bool:
        """Return True."""
        return True

    def vocabulary(self, weights: Weights) -> Int[Array, " N"] | None:
        """Return the ids of the tokens that draft logits are of; None where they are of all."""
        return weights["adapter"].get("draft_vocabulary", {}).get("ids")

    def prefill_gamma(self, gamma: int) -> int:
        """Return the smallest gamma with as many rows."""
        return max(self.rows(gamma) - 8 - self.siblings, 1)

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
        siblings = self.siblings if len(token) == 1 and not spec.sample else 0

        def keep_drafting(carry: _Carry) -> Array:
            return carry.active.any() & (carry.step < spec.gamma)

        def draft_one(carry: _Carry) -> _Carry:
            step, now = carry.step, carry.draft
            hidden = jax.lax.dynamic_slice_in_dim(now.hidden, step, 1, axis=1)
            logits, memory = self.propose(spec, weights, hidden, position + step, now.drafter)
            key = (state.seed, state.length, DRAFT + step)
            drafted, confidence, others, drawn = self._choose(spec, weights, controls, logits, key, siblings)
            goes_on = carry.active & (confidence >= controls.eta)
            others = jnp.where(step == 0, others, carry.siblings)
            # The siblings come behind the last token of the line.
            count = carry.active * jnp.where(goes_on & (step + 1 < spec.gamma), 1, 1 + siblings)
            block = jnp.concatenate([drafted[:, None], others], axis=1)
            hidden, caches = self._shallow(spec, weights, block, position + step + 1, position, now.caches, count)
            return _Carry(
                step=step + 1,
                active=goes_on,
                siblings=others,
                draft=Draft(
                    tokens=_put(now.tokens, drafted, step),
                    count=now.count + carry.active,
                    confidence=_put(now.confidence, confidence, step),
                    # Nothing to note (None) when tokens are not drawn.
                    drawn=jax.tree.map(lambda noted, new: _put(noted, new, step), now.drawn, drawn),
                    hidden=jax.lax.dynamic_update_slice_in_dim(now.hidden, hidden, step + 1, axis=1),
                    caches=caches,
                    drafter=memory,
                ),
            )

        running = state.finish == RUNNING
        shared = state.caches[: self.exit_layer]
        first, caches = self._shallow(spec, weights, token, position, position, shared, running.astype(jnp.int32))
        start = _nothing_drafted(spec, first, caches, state.drafter)
        none = jnp.zeros((len(token), siblings), jnp.int32)
        carry = jax.lax.while_loop(keep_drafting, draft_one, _Carry(jnp.zeros((), jnp.int32), running, start, none))
        return _with_siblings(carry.draft, carry.siblings, spec.rows) if siblings else carry.draft

    def learn(self, spec: DecodeSpec, weights: Weights, draft: Draft, verified: Verified) -> KVCache | None:
        """Write the adapter's keys and values of the last accepted token, if drafting did not feed it to the adapter.

        That is the last token of a line, or a sibling; the native kernels do it there alone. Only the cache is used:
        XLA drops all but the projection of one row.
        """
        if draft.drafter is None:
            return None
        line = draft.count - (0 if draft.tree is None else self.siblings)
        row = jnp.take_along_axis(verified.path, verified.accepted[:, None], axis=1)
        last = jnp.take_along_axis(draft.hidden, row[:, :, None], axis=1)
        position = (verified.length - 1 + verified.accepted)[:, None]
        unread = (row[:, 0] >= line) & (line > 0)
        return self._adapt(spec, weights, last, position, draft.drafter, unread.astype(jnp.int32))[1]

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
        siblings: int,
    ) -> tuple[Int[Array, " B"], Float[Array, " B"], Int[Array, "B K"], Any]:
        """Return ``choose``'s token, the confidence, the next choices, and what it was drawn with.

        The last is over the whole vocabulary.

        What cannot be drafted has the logit ``-inf`` there: probability 0, so that a rejection draws from p as it is.
        """
        ids, (likeliest, confidence, others) = self.vocabulary(weights), surest(weights, logits, siblings)
        if not spec.sample:
            if ids is not None:
                likeliest, others = ids[likeliest], ids[others]
            return likeliest, confidence, others, None
        if ids is not None:
            whole = jnp.full((len(logits), spec.config.vocab_size), -jnp.inf, logits.dtype)
            logits = whole.at[:, ids].set(logits, unique_indices=True, indices_are_sorted=True)
        drafted, drawn = choose(controls.sampling, logits, key, spec.truncate)
        return drafted, confidence, others, drawn

    def _shallow(
        self,
        spec: DecodeSpec,
        weights: Weights,
        tokens: Int[Array, "B T"],
        position: Int[Array, "B 1"],
        root: Int[Array, "B 1"],
        caches: tuple[KVCache, ...],
        count: Int[Array, " B"],
    ) -> tuple[Float[Array, "B T D"], tuple[KVCache, ...]]:
        """Run the layers shared with the target on the next token of every line, and on siblings behind it."""
        if tokens.shape[1] == 1 or not caches:
            context = line(position, caches[0].slots if caches else None, count)
        else:
            context = fork(position[:, 0], root[:, 0], tokens.shape[1] - 1, caches[0].slots, count)
        x = embed(weights["target"], tokens)
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


def _with_siblings(draft: Draft, siblings: Int[Array, "B K"], rows: int) -> Draft:
    """Return a line with tokens behind it that may stand in the place of its first one."""
    end, number = draft.count[:, None], siblings.shape[1]
    spare = rows - 1 - draft.tokens.shape[1]
    tokens = write_rows(jnp.pad(draft.tokens, ((0, 0), (0, spare))), siblings, draft.count)
    row = jnp.arange(rows)[None]
    lies = row <= end
    seen = jnp.where(lies[:, :, None], row[:, None] <= row[:, :, None], (row == 0)[:, None] | jnp.eye(rows, dtype=bool))
    tree = Tree(
        parent=jnp.where(lies, jnp.maximum(row - 1, 0), 0),
        depth=jnp.where(lies, row, 1),
        visible=seen,
        candidate=(row > 0) & (row <= end + number),
        count=draft.count + number + 1,
    )
    return draft.replace(tokens=tokens, count=draft.count + number, tree=tree)


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
