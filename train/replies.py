"""Replies in batches: prompts from a pool, decoded by the target, and written down as soon as they are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from kangaroo_jax import Generation, Params
from kangaroo_jax.engine import Plan, Run
from kangaroo_jax.files import first_line
from kangaroo_jax.progress import progress
from kangaroo_jax.text import chat_ids
from train.reply_rows import Pool, Reply, Row
from workshop.journal import Journal

Batch = list[tuple[int, list[int]]]


@dataclasses.dataclass(frozen=True)
class Seeded(Plan):
    """A plan in which what a sequence draws is a function of the seed and its (row, turn).

    ``Plan`` gives all prompts one key: rows would draw the same random numbers at the same positions.
    """

    places: tuple[tuple[int, int], ...] = ()

    def keys(self, prompts: int) -> np.ndarray:
        """Return the random key of every sequence, ``[prompts, 2]``."""
        sources = [np.random.SeedSequence(self.settings[0].seed or 0, spawn_key=place) for place in self.places]
        return np.stack([source.generate_state(2, np.uint32) for source in sources])


@dataclasses.dataclass
class Totals:
    """What replies have cost; seconds are those of decoding, compilation apart."""

    replies: int = 0
    tokens: int = 0
    rounds: int = 0
    seconds: float = 0.0

    def add(self, replies: Iterable[Reply], seconds: float) -> None:
        """Count a batch."""
        self.seconds += seconds
        for reply in replies:
            self.replies += 1
            self.tokens += reply.tokens
            self.rounds += reply.rounds

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def compression_rate(self) -> float:
        """Mean tokens committed per round; the first token of a reply is the prefill's."""
        return (self.tokens - self.replies) / self.rounds if self.rounds else 1.0


class Writer:
    """Writes the replies that rows lack, batch by batch.

    Attributes:
        totals: of all replies, those of earlier runs too.
    """

    def __init__(
        self, params: Params, plan: Plan, rows: Sequence[Row], journal: Journal, chat_template: str | None = None
    ) -> None:
        """Take the replies that are in the journal.

        Args:
            params: target and adapter.
            plan: how to decode.
            rows: rows without replies.
            journal: of earlier runs with the same settings; every batch is added to it.
            chat_template: instead of the target's own.

        Raises:
            ValueError: if the journal is of no use.
        """
        self.totals = Totals()
        self._params, self._plan, self._rows, self._journal = params, plan, rows, journal
        self._template = chat_template
        for record in journal.records:
            try:
                self._take([(index, Reply(*fields)) for index, *fields in record["replies"]], record["seconds"])
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{journal.path} is damaged; delete it to start anew") from error

    def run(self, batch_size: int, check: Callable[[], None]) -> None:
        """Write what is missing; nothing but the batch in work is lost when this is interrupted.

        Args:
            batch_size: replies written at a time.
            check: called several times a second; what it raises ends the run.

        Raises:
            ValueError: if the memory does not hold a batch.
        """
        pool = Pool(self._rows, self._prompt, self._params.config.max_position_embeddings)
        for index in progress(range(len(self._rows)), desc="tokenise", unit="row", leave=False):
            pool.offer(index)
            check()
        turns, left = sum(row.turns for row in self._rows), sum(row.left for row in self._rows)
        ended = sum(row.ended is not None for row in self._rows)
        with progress(total=turns, initial=turns - left, desc="write", unit="reply", mininterval=1.0) as bar:
            while batch := pool.take(batch_size):
                rows = [self._rows[index] for index, _ in batch]
                before = sum(row.left for row in rows)
                replies, seconds = self._answer(batch, batch_size, check)
                self._journal.add({"seconds": seconds, "replies": [[index, *reply] for index, reply in replies]})
                self._take(replies, seconds)
                for index, _ in batch:
                    pool.offer(index)
                ended += sum(row.ended is not None for row in rows)
                bar.set_postfix(self._figures(ended), refresh=False)
                bar.update(before - sum(row.left for row in rows))

    def _figures(self, ended: int) -> dict[str, str]:
        rate = {"compression": f"{self.totals.compression_rate:.2f}"} if self._plan.spec.gamma else {}
        return {"rows": f"{ended:,}/{len(self._rows):,}", "tokens/s": f"{self.totals.speed:,.0f}", **rate}

    def _take(self, replies: Sequence[tuple[int, Reply]], seconds: float) -> None:
        self.totals.add((reply for _, reply in replies), seconds)
        for index, reply in replies:
            self._rows[index].add(reply)

    def _prompt(self, row: Row) -> list[int]:
        tokenizer = self._params.tokenizer
        if row.messages is None:
            return tokenizer.encode(row.text)
        return chat_ids(tokenizer, self._params.name, row.spoken(), self._template)

    def _answer(
        self, batch: Batch, batch_size: int, check: Callable[[], None]
    ) -> tuple[list[tuple[int, Reply]], float]:
        """Decode one batch; return (row, reply) of each prompt, and the seconds it took."""
        check()
        # Sizes are few, so that the last, smaller batches compile little: a prompt that is there twice ends at once
        # with its twin.
        size = min(1 << (len(batch) - 1).bit_length(), batch_size)
        filled = [*batch, *batch[:1] * (size - len(batch))]
        places = tuple((index, len(self._rows[index].replies)) for index, _ in filled)
        try:
            run = Run(self._params, [ids for _, ids in filled], Seeded(**vars(self._plan), places=places))
            while not run.finished:
                run.advance()
                check()
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            short = isinstance(error, ValueError) or "RESOURCE_EXHAUSTED" in str(error)
            if not short:
                raise
            raise ValueError(
                f"--batch-size is {batch_size}, and {first_line(error)}; with a smaller one the same command goes on"
            ) from error
        outs = run.results()[: len(batch)]
        replies = [(index, _reply(self._rows[index], out)) for (index, _), out in zip(batch, outs, strict=True)]
        return replies, outs[0].stats.prefill_seconds + outs[0].stats.decode_seconds


def _reply(row: Row, out: Generation) -> Reply:
    cut = out.finish_reason == "length"
    text = out.text.rstrip("\ufffd") if cut else out.text  # The limit may fall within a character.
    # White space around a reply is the template's.
    return Reply(text if row.messages is None else text.strip(), out.stats.new_tokens, out.stats.rounds, cut)
