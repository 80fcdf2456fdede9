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
from kangaroo_jax.decode.lookup import look_up
from kangaroo_jax.decode.sampling import DRAFT, choose, no_cuts
from kangaroo_jax.decode.state import RUNNING, Controls, DecodeState, Draft, Weights, newest
from kangaroo_jax.decode.stats import write_rows
from kangaroo_jax.decode.tree import Tree
from kangaroo_jax.model import (
    AdapterConfig,
    Context,
    KVCache,
    adapter_layers,
    draft_head,
    embed,
    final_norm,
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


class Memory(struct.PyTreeNode):
    """What Kangaroo remembers.

    Attributes:
        cache: the adapter's; None where it does not attend.
        before: the final state that the newest committed token was chosen from, ``[B, 1, D]``; None where the adapter
            reads none.
        guess: likewise of the newest drafted token: the adapter's own output, which stands for it.
    """

    cache: KVCache | None
    before: Float[Array, "B 1 D"] | None = None
    guess: Float[Array, "B 1 D"] | None = None


@dataclasses.dataclass(frozen=True)
class Kangaroo(Drafter):
    """Drafts with the target's first layers, an adapter and the target's head; remembers what the adapter reads.

    Attributes:
        adapter: what the adapter computes.
        siblings: second choices that are verified beside the first drafted token, where one sequence is decoded
            greedily: a batch's rows cost what its sequences cost.
        lookup: so many of the newest tokens are looked up in the text: where they stood there before, what followed
            them is the draft, and the draft model drafts nothing; 0 looks up nothing. Greedy decoding only.
    """

    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    siblings: int = 0
    lookup: int = 0

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

    def allocate(self, spec: DecodeSpec, batch: int, slots: int, dtype: jnp.dtype) -> Memory | None:
        """Return zeros, if the adapter attends or reads final states."""
        cached, finals = self.adapter.made_of.cached, self.adapter.final_states
        if not cached and not finals:
            return None
        layers = adapter_layers(spec.config, self.adapter)
        none = jnp.zeros((batch, 1, spec.config.hidden_size), dtype) if finals else None
        return Memory(init_cache(layers, batch, slots, dtype, 1)[0] if cached else None, none, none)

    def read(self, spec: DecodeSpec, weights: Weights, memory: Memory | None, piece: Piece) -> Memory | None:
        """Run the adapter over the states of the exit layer, of a prompt without final ones."""
        if memory is None:
            return None
        return memory.replace(cache=self._adapt(spec, weights, piece.exit, piece.positions, memory.cache)[1])

    def begin(
        self, spec: DecodeSpec, weights: Weights, memory: Memory | None, last: Float[Array, "B 1 D"]
    ) -> Memory | None:
        """Remember the final states that the first tokens are chosen from."""
        if memory is None or memory.before is None:
            return memory
        final = final_norm(spec.config, weights["target"], last)
        return memory.replace(before=final, guess=final)

    def draft(self, spec: DecodeSpec, weights: Weights, state: DecodeState, controls: Controls) -> Draft:
        """Draft until no sequence is confident any more, or ``gamma`` tokens are drafted.

        The confidence is the draft model's top-1 probability, in fp32, before temperature and cuts. A token drafted
        with confidence below ``eta`` ends the drafting of its sequence, and is kept: it is verified like the others.
        While some sequence goes on, the others run along and their results are not counted. Of looked up tokens all are
        the draft, and their confidence is 1.

        Returns:
            The draft. Afterwards the shallow caches cover every position a round can commit, and the adapter's all but
            the last drafted token, or none that was looked up: those only ``learn`` shows it.
        """
        token, position = newest(state)
        siblings = self.siblings if len(token) == 1 and not spec.sample else 0
        running = state.finish == RUNNING
        found, looked = self._look_up(spec, state, running)

        def keep_drafting(carry: _Carry) -> Array:
            return carry.active.any() & (carry.step < spec.gamma)

        def draft_one(carry: _Carry) -> _Carry:
            step, now = carry.step, carry.draft
            hidden = jax.lax.dynamic_slice_in_dim(now.hidden, step, 1, axis=1)
            logits, memory = self.propose(spec, weights, hidden, position + step, now.drafter)
            key = (state.seed, state.length, DRAFT + step)
            drafted, confidence, others, drawn = self._choose(spec, weights, controls, logits, key, siblings)
            if found.shape[1]:  # Of a batch, these texts run along.
                drafted = jnp.where(looked > 0, found[:, step], drafted)
                confidence = jnp.where(looked > 0, 1.0, confidence)
            goes_on = carry.active & (confidence >= controls.eta)
            others = jnp.where(step == 0, others, carry.siblings)
            # The siblings come behind the last token of the line.
            count = carry.active * jnp.where(goes_on & (step + 1 < spec.gamma), 1, 1 + siblings)
            block = jnp.concatenate([drafted[:, None], others], axis=1)
            slots = now.caches[0].slots if now.caches else None
            if siblings and slots is not None:
                context = fork(position[:, 0] + step + 1, position[:, 0], siblings, slots, count)
            else:
                context = line(position + step + 1, slots, count)
            hidden, caches = self._shallow(spec, weights, block, context, now.caches)
            if found.shape[1] and len(token) > 1:
                before = jax.lax.dynamic_slice_in_dim(now.hidden, step + 1, 1, axis=1)
                hidden = hidden.at[:, :1].set(jnp.where(looked[:, None, None] > 0, before, hidden[:, :1]))
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

        shared = state.caches[: self.exit_layer]
        block = jnp.concatenate([token, found], axis=1)
        context = line(
            position + jnp.arange(block.shape[1])[None], shared[0].slots if shared else None, running * (1 + looked)
        )
        first, caches = self._shallow(spec, weights, block, context, shared)
        start = _looked_up(spec, found, looked, first, caches, state.drafter)
        none = jnp.zeros((len(token), siblings), jnp.int32)
        going = running & (looked == 0)
        carry = jax.lax.while_loop(keep_drafting, draft_one, _Carry(jnp.zeros((), jnp.int32), going, start, none))
        draft = carry.draft.replace(read=jnp.where(looked > 0, 0, carry.draft.count))
        return _with_siblings(draft, carry.siblings, siblings * (looked == 0), spec.rows) if siblings else draft

    def learn(self, spec: DecodeSpec, weights: Weights, draft: Draft, verified: Verified) -> Memory | None:
        """Write the adapter's keys and values of accepted tokens that drafting did not feed to the adapter.

        That is the last token of a line, a sibling, or all that were looked up; the native kernels do it there alone.
        Only the cache is used: XLA drops all but the projection of keys and values. What the newest token was chosen
        from is remembered; keys and values of accepted drafts stay those of guesses.
        """
        memory: Memory | None = draft.drafter
        if memory is None:
            return None
        last, before = verified.accepted[:, None], None
        if memory.before is not None:
            chosen = final_norm(spec.config, weights["target"], _rows(verified.hidden, verified.path))
            before = jnp.concatenate([memory.before, chosen], axis=1)
            newest = _rows(before, last + 1)
            memory = memory.replace(before=newest, guess=newest)
        if memory.cache is None:
            return memory
        assert draft.read is not None
        line, looked = draft.read > 0, (draft.read == 0) & (draft.count > 0)

        def read(
            cache: KVCache | None, rows: Int[Array, "B T"], step: Int[Array, "B T"], count: Int[Array, " B"]
        ) -> KVCache | None:
            positions = verified.length[:, None] - 1 + step
            read_before = None if before is None else _rows(before, step)
            return self._adapt(spec, weights, _rows(draft.hidden, rows), positions, cache, count, read_before)[1]

        row = jnp.take_along_axis(verified.path, last, axis=1)
        unread = line & (row[:, 0] >= draft.read)
        cache = read(memory.cache, row, last, unread.astype(jnp.int32))
        if self.lookup and not spec.sample:
            steps = jnp.broadcast_to(jnp.arange(spec.gamma + 1), verified.path.shape)
            cache = read(cache, verified.path, steps, looked * (last[:, 0] + 1))
        return memory.replace(cache=cache)

    def propose(
        self,
        spec: DecodeSpec,
        weights: Weights,
        hidden: Float[Array, "B 1 D"],
        positions: Int[Array, "B 1"],
        memory: Memory | None,
    ) -> tuple[Float[Array, "B N"], Memory | None]:
        """Return the draft model's logits of the token after ``positions``: adapter and head on the exit layer's state.

        Returns:
            fp32 logits of what it can draft, and the memory with this position written and this state guessed.
        """
        cache, before = (None, None) if memory is None else (memory.cache, memory.guess)
        adapted, cache = self._adapt(spec, weights, hidden, positions, cache, before=before)
        if memory is not None:
            memory = memory.replace(cache=cache, guess=None if before is None else adapted)
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

    def _look_up(
        self, spec: DecodeSpec, state: DecodeState, running: Bool[Array, " B"]
    ) -> tuple[Int[Array, "B G"], Int[Array, " B"]]:
        """Return what ``look_up`` finds for the sequences that run; no tokens where nothing is looked up."""
        if not self.lookup or spec.sample:
            return jnp.zeros((len(running), 0), jnp.int32), jnp.zeros(running.shape, jnp.int32)
        tokens, count = look_up(state.tokens, state.length, self.lookup, spec.gamma)
        return tokens, count * running

    def _shallow(
        self,
        spec: DecodeSpec,
        weights: Weights,
        tokens: Int[Array, "B T"],
        context: Context,
        caches: tuple[KVCache, ...],
    ) -> tuple[Float[Array, "B T D"], tuple[KVCache, ...]]:
        """Run the layers shared with the target on a line of tokens, or on the next one and siblings behind it."""
        x = embed(weights["target"], tokens)
        return run_layers(spec.config, weights["target"], x, context, caches, 0, self.exit_layer)

    def _adapt(
        self,
        spec: DecodeSpec,
        weights: Weights,
        hidden: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        cache: KVCache | None,
        count: Int[Array, " B"] | None = None,
        before: Float[Array, "B T D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Run the adapter on states of the exit layer."""
        context = line(positions, None if cache is None else cache.slots, count)
        return run_adapter(spec.config, weights["adapter"], hidden, context, cache, self.adapter, before)


def _with_siblings(draft: Draft, siblings: Int[Array, "B K"], number: Int[Array, " B"], rows: int) -> Draft:
    """Return a line with tokens behind it, so many of them, that may stand in the place of its first one."""
    end = draft.count[:, None]
    spare = rows - 1 - draft.tokens.shape[1]
    tokens = write_rows(jnp.pad(draft.tokens, ((0, 0), (0, spare))), siblings, draft.count)
    row = jnp.arange(rows)[None]
    lies = row <= end
    seen = jnp.where(lies[:, :, None], row[:, None] <= row[:, :, None], (row == 0)[:, None] | jnp.eye(rows, dtype=bool))
    tree = Tree(
        parent=jnp.where(lies, jnp.maximum(row - 1, 0), 0),
        depth=jnp.where(lies, row, 1),
        visible=seen,
        candidate=(row > 0) & (row <= end + number[:, None]),
        count=draft.count + number + 1,
    )
    return draft.replace(tokens=tokens, count=draft.count + number, tree=tree)


def _looked_up(
    spec: DecodeSpec,
    found: Int[Array, "B G"],
    count: Int[Array, " B"],
    first: Float[Array, "B T D"],
    caches: tuple[KVCache, ...],
    memory: Memory | None,
) -> Draft:
    """Return a draft of what was looked up, if anything, and the exit layer's states of it and the newest token."""
    size = (len(count), spec.gamma)
    return Draft(
        tokens=jnp.pad(found, ((0, 0), (0, spec.gamma - found.shape[1]))),
        count=count,
        confidence=jnp.where(jnp.arange(spec.rows)[None] < count[:, None], 1.0, 0.0),
        drawn=(jnp.zeros((*size, spec.config.vocab_size), jnp.float32), no_cuts(size)) if spec.sample else None,
        hidden=jnp.pad(first, ((0, 0), (0, spec.rows - first.shape[1]), (0, 0))),
        caches=caches,
        drafter=memory,
    )


def _rows(values: Float[Array, "B R D"], rows: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return jnp.take_along_axis(values, rows[:, :, None], axis=1)


def _put(buffer: Array, row: Array, at: Int[Array, ""] | int) -> Array:
    """Write one row of every sequence."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, row[:, None], at, axis=1)
