"""The host's side of a generation: prompts in, device calls, texts out. One sequence or many, streamed or not."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kangaroo_jax import decode as dec
from kangaroo_jax.engine.memory import check_memory
from kangaroo_jax.engine.plan import Plan
from kangaroo_jax.engine.programs import compiled
from kangaroo_jax.engine.results import Generation, Piece, Stats, origins, spans
from kangaroo_jax.params import Params
from kangaroo_jax.text import Reader

_FINISH = {dec.STOP: "stop", dec.LENGTH: "length"}
_MOST_ROUNDS = 2**31 - 1


@dataclasses.dataclass
class Kept:
    """Caches that outlive a generation, and what of them is still right; a chat keeps these between turns.

    Attributes:
        slots: cache slots.
        chunk: positions that a prefill runs at a time.
        start: positions that the caches hold already, fewer than the prompt has.
        caches: caches of all layers and the adapter, or None when there are none yet.
    """

    slots: int
    chunk: int
    start: int = 0
    caches: Any = None


class Run:
    """One generation, from checked arguments to its results. The prefill is done when this is made.

    Attributes:
        prompts: ids of the prompt of every sequence.
        rows: settings of every sequence.
        controls: what is traced of them.
        first: text that the prefill's token gave each of them.
    """

    def __init__(
        self,
        params: Params,
        prompts: Sequence[list[int]],
        plan: Plan,
        kept: Kept | None = None,
        context: int | None = None,
    ) -> None:
        """Run the prefill of all prompts, each in ``plan.copies`` sequences.

        Args:
            params: from ``load``.
            prompts: ids of each prompt, checked.
            plan: checked options.
            kept: caches to go on with; default: new ones, of the size this generation needs.
            context: longest text, prompt included; default: the model's.

        Raises:
            ValueError: if the memory does not hold so many sequences of this length.
        """
        self.params, self.plan = params, plan
        context = context or params.config.max_position_embeddings
        each = zip(prompts, plan.each(len(prompts)), strict=True)
        limits = [min(len(prompt) + settings.max_new_tokens, context) for prompt, settings in each]
        batch = len(prompts) * plan.copies
        if kept is None:
            slots = dec.cache_slots(plan.spec, max(limits))
            kept = Kept(slots, dec.prefill_chunk(max(map(len, prompts)), slots, batch))
        if kept.caches is None:  # Before anything is made for each of perhaps too many sequences.
            check_memory(plan.spec, batch, kept.slots, kept.chunk, params.dtype)
        # Weights go in once; a run that has no use for the adapter does not see it at all.
        self.prompts = [prompt for prompt in prompts for _ in range(plan.copies)]
        self.rows = plan.rows(len(prompts))
        adapter = params.adapter if plan.spec.drafter.reads_adapter else None
        self.weights = {"target": params.target, "adapter": adapter}
        if plan.drafter_weights is not None:
            self.weights["drafter"] = plan.drafter_weights
        self.controls = plan.controls(len(prompts))
        self.readers = [
            Reader(params.tokenizer, prompt, row.stop_strings)
            for prompt, row in zip(self.prompts, self.rows, strict=True)
        ]
        self.compile_seconds = self.decode_seconds = 0.0
        self._rounds_a_call = 0
        self._ended = [False] * len(self.prompts)
        lengths = np.array([len(prompt) for prompt in self.prompts], np.int32)
        self.prefilled = lengths - kept.start
        budgets = np.repeat(np.array(limits, np.int32), plan.copies) - lengths
        self._prefill(kept, lengths, budgets, plan.keys(len(prompts)))

    def _prefill(self, kept: Kept, lengths: np.ndarray, budgets: np.ndarray, keys: np.ndarray) -> None:
        spec, batch = self.plan.spec.for_prefill, len(lengths)
        tokens = np.zeros((batch, kept.slots), np.int32)
        for row, prompt in zip(tokens, self.prompts, strict=True):
            row[: len(prompt)] = prompt
        start = np.full((batch,), kept.start, np.int32)
        caches = kept.caches
        began = time.perf_counter()
        if caches is None:
            # Cuts and sampling are nothing to a cache.
            plain = dataclasses.replace(spec, sample=False, truncate=False)
            caches = self._launch(dec.allocate, {0: plain, 1: batch, 2: kept.slots, 3: self.params.dtype})
        args = (self.weights, caches, tokens, start, lengths, budgets, keys, self.controls)
        self.state: dec.DecodeState = self._launch(dec.prefill, {0: spec, 1: kept.chunk}, *args)
        jax.block_until_ready(self.state)
        self.prefill_seconds = time.perf_counter() - began - self.compile_seconds
        self.first = self._read()

    def _launch(self, function: Any, static: dict[int, Any], *args: Any) -> Any:
        """Start a program, and return what it will have computed; compile it first when it is new."""
        program, seconds = compiled(function, static, *args)
        self.compile_seconds += seconds
        return program(*args)

    @property
    def finished(self) -> bool:
        """Whether all texts have ended."""
        return bool((self._finish != dec.RUNNING).all())

    def advance(self, rounds: int | None = None, seconds: float = 0.25) -> list[str]:
        """Run rounds on the device and return the text that each sequence gained.

        Args:
            rounds: at most this many; default: about as many as the earlier calls say take ``seconds``.
            seconds: time between two looks of the host, which is also when it hears Ctrl-C.
        """
        asked = min(rounds or self._rounds_a_call or max(int(16 * seconds), 1), _MOST_ROUNDS)
        args = (self.weights, self.state, self.controls, np.int32(asked))
        compiling, began = self.compile_seconds, time.perf_counter()
        # The state is donated. It is here before anybody waits for it: Ctrl-C while waiting loses no caches.
        self.state = self._launch(dec.decode, {0: self.plan.spec}, *args)
        jax.block_until_ready(self.state)
        took = time.perf_counter() - began - (self.compile_seconds - compiling)
        self.decode_seconds += took
        wanted = asked * seconds / max(took, 1e-9)
        self._rounds_a_call = int(min(max(wanted, 1), asked * 8, _MOST_ROUNDS))
        return self._read()

    def _read(self) -> list[str]:
        """Take what the device has committed, and end the sequences in which a stop string came."""
        state = self.state
        self._tokens, self._length, finish = jax.device_get((state.tokens, state.length, state.finish))
        self._finish = np.array(finish)
        pieces = [""] * len(self.readers)
        for row, reader in enumerate(self.readers):
            if self._ended[row]:
                continue
            pieces[row] = reader.push(self.new_tokens(row)[reader.count :])
            self._ended[row] = reader.stopped or bool(self._finish[row] != dec.RUNNING)
            if self._ended[row]:
                pieces[row] += reader.finish()
        stopped = np.array([reader.stopped for reader in self.readers]) & (self._finish == dec.RUNNING)
        if stopped.any():
            self._finish[stopped] = dec.STOP
            self.state = state.replace(finish=jnp.array(self._finish))  # A copy: the state is donated.
        return pieces

    def new_tokens(self, row: int) -> list[int]:
        """Return the ids generated so far, of a sequence; up to its stop string, once that has come."""
        reader = self.readers[row]
        end = len(self.prompts[row]) + reader.count if reader.stopped else int(self._length[row])
        return self._tokens[row, len(self.prompts[row]) : end].tolist()

    def piece(self, text: str) -> Piece:
        """Return the text that the first sequence gained last, with its origins."""
        stats, reader = self.state.stats, self.readers[0]
        # Indexed here: JAX would compile that, for each number of slots.
        counters = jax.device_get((stats.rounds, stats.accept_lengths, stats.accepted_drafts))
        rounds, committed, accepted = (counter[0] for counter in counters)
        found = origins(committed[:rounds].tolist(), accepted[:rounds].tolist())[: reader.count]
        gained: list[tuple[str, bool]] = []
        left = len(text)
        held = sum(map(len, reader.token_texts)) - len(reader.text)  # What may become a stop string.
        for added, drafted in zip(reversed(reader.token_texts), reversed(found), strict=True):
            if not left:
                break
            end = max(len(added) - held, 0)
            begin = max(end - left, 0)
            gained.append((added[begin:end], drafted))
            left, held = left - (end - begin), held - (len(added) - end)
        return Piece(spans(*zip(*reversed(gained), strict=True)))

    def committed(self) -> list[int]:
        """Return prompt and new tokens of the first sequence as the device has them."""
        return self._tokens[0, : int(self._length[0])].tolist()

    def results(self) -> list[Generation]:
        """Return the finished generations, in order."""
        stats = jax.device_get(self.state.stats)
        return [self._result(row, stats) for row in range(len(self.prompts))]

    def _result(self, row: int, stats: dec.DecodeStats) -> Generation:
        counters = jax.tree.map(lambda leaf: leaf[row], stats)
        plan, reader, ids = self.plan, self.readers[row], self.new_tokens(row)
        # A stop string may lie before the last rounds.
        ends = np.cumsum(counters.accept_lengths[: int(counters.rounds)])
        rounds = int(np.searchsorted(ends, max(len(ids) - 1, 0)) + 1) if len(ids) > 1 else 0
        accept_lengths = counters.accept_lengths[:rounds].tolist()
        if rounds:
            accept_lengths[-1] -= int(ends[rounds - 1]) - (len(ids) - 1)
        drafts = counters.draft_lengths[:rounds].tolist()
        costs = Stats(
            method=plan.method,
            gamma=plan.spec.gamma,
            eta=self.rows[row].eta,
            new_tokens=len(ids),
            accept_lengths=tuple(accept_lengths),
            draft_lengths=tuple(drafts),
            accepted_drafts=tuple(counters.accepted_drafts[:rounds].tolist()),
            confidence=tuple(tuple(counters.confidence[r, :k].tolist()) for r, k in enumerate(drafts)),
            prompt_tokens=len(self.prompts[row]),
            prefilled_tokens=int(self.prefilled[row]),
            batch_size=len(self.prompts),
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            compile_seconds=self.compile_seconds,
        )
        finish = "stop" if reader.stopped else _FINISH[int(self._finish[row])]
        return Generation(reader.text, tuple(ids), finish, costs, reader.token_texts)
