"""The data of a run: what ``--data`` names, read, split into training and held-out data, and made into batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kangaroo_jax.progress import progress
from kangaroo_jax.text import Tokenizer
from train.batches import Batch, Conversations, Counts, Mixed, Shape, Windows
from train.conversation import COLUMNS, EXPECTED, TEXT_COLUMN, Messages, is_unicode, messages_of
from train.corpus import TokenTexts
from train.render import Renderer, Sample, find_template
from train.rows import TABLE_SUFFIXES, TEXT_SUFFIXES, BadRow, BadRows, Source, find_sources, table_rows
from train.texts import BLOCK_LINES, Encoder, Unit, file_units, held_out, split_units, tokenize
from train.workspace import text_digest
from workshop.held_out import HELD_OUT_SHARE

KNOWN = (*COLUMNS, TEXT_COLUMN)
# A data set without any of them is refused after so many rows, not after all of them.
PATIENCE = 1000
HELD_OUT_BATCHES, HELD_OUT_TOKENS = 4, 2**15
"""Batches of an evaluation, and their tokens, padding among them, where batches are large."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and held-out data.

    Attributes:
        training: batches to train on.
        held_out: batches that are never trained on.
        bad_rows: rows that were left out.
        digest: a short name of the training text.
    """

    training: Windows | Conversations | Mixed
    held_out: Windows | Conversations | Mixed
    bad_rows: BadRows
    digest: str

    @property
    def tokens(self) -> Counts:
        """Training tokens of an epoch."""
        return self.training.tokens

    @property
    def epoch_steps(self) -> int:
        """Batches of an epoch; of plain text, those that have as many tokens."""
        return self.training.steps

    def seen(self, steps: int) -> int:
        """Return the tokens in the batches of so many steps, without padding; of conversations, on average."""
        return round(steps * self.training.epoch_tokens / self.training.steps)

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield ``{"tokens", "mask"}`` of ``first_step`` and later steps, without end."""
        return self.training.batches(first_step)

    def samples(self, count: int) -> list[Batch]:
        """Return the first ``count`` rows to be trained on, or a batch if that is less, of each kind; no empty ones."""
        own = self.training
        kinds = (own.texts, own.conversations) if isinstance(own, Mixed) else (own,)
        batches = [next(kind.batches(0)) for kind in kinds]
        filled = [batch["tokens"].any(axis=1) for batch in batches]
        return [{k: v[rows][:count] for k, v in batch.items()} for batch, rows in zip(batches, filled, strict=True)]

    def held_out_batches(self, count: int = HELD_OUT_BATCHES, parts: int = 1) -> Iterator[Batch]:
        """Yield ``count`` batches of held-out data, the same in every run; fewer if there are no more.

        Of one with more than its share of ``HELD_OUT_TOKENS`` there are only as many of its ``parts`` as have these.
        """
        for batch in self.held_out.fixed(count):
            size = batch["mask"].size // parts
            for part in range(min(parts, -(-HELD_OUT_TOKENS // (HELD_OUT_BATCHES * size)))):
                yield {name: value[part::parts] for name, value in batch.items()}

    def most_frequent(self, count: int, size: int, always: Sequence[int] = ()) -> np.ndarray:
        """Return the tokens that are trained most often, ascending, ``[count]``; of equal ones the first.

        Args:
            count: how many.
            size: of the vocabulary.
            always: some that are among them, however often they come.
        """
        frequencies = self.training.frequencies(size)
        frequencies[list(always)] = np.iinfo(np.int64).max
        return np.sort(np.argsort(-frequencies, kind="stable")[:count]).astype(np.int32)

    def held_out_rows(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (tokens, mask) of ``count`` held-out rows of any length, always the same; fewer if that is all."""
        return self.held_out.rows(count)


class Conversation(NamedTuple):
    """A conversation and where it was read: ``file:row``."""

    place: str
    messages: Messages


def load_data(
    names: Sequence[str],
    tokenizer: Tokenizer,
    shape: Shape,
    *,
    model: str,
    eos_ids: Sequence[int] = (),
    upstream: bool = False,
    chat_template: str | None = None,
    limit: int | None = None,
) -> Data:
    """Read data and tokenise it; of conversations nothing but their tokens is kept.

    Args:
        names: files, folders and hub ids: see ``train.rows.find_sources``.
        tokenizer: the target's.
        shape: of the batches.
        model: the target's name.
        eos_ids: tokens that end a reply, or (the first of them) a text.
        upstream: make the mask of the authors' code of conversations; see ``train.render.mask_of``.
        chat_template: instead of the target's own.
        limit: rows to read of each table, or None for all.

    Raises:
        ValueError: in one line, if a source is missing, unreadable or has other columns, or too little is left of them.
    """
    bad = BadRows()
    renderer = Renderer(tokenizer, model, eos_ids, shape.length, upstream, chat_template)
    units: list[Unit] = []
    samples: list[Sample] = []
    keys: list[str] = []
    for item in progress(read_sources(names, bad, limit), desc="read and tokenise", unit="row", leave=False):
        if isinstance(item, Unit):
            units.append(item)
            continue
        if not samples:
            find_template(tokenizer, model, chat_template)
        try:
            samples.append(renderer.sample(item.messages))
        except BadRow as reason:
            bad.add(item.place, str(reason))
        else:
            keys.append(hashlib.sha256(json.dumps(item.messages).encode()).hexdigest())
    _check_amount(names, units, samples, bad)
    eos = eos_ids[0] if eos_ids else None
    texts = [tokenize(side, tokenizer, eos) if side else None for side in split_units(units)]
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for sample, side in zip(samples, held_out(keys), strict=True):
        sides[side].append(sample)
    training, held = (_batches(text, side, shape) for text, side in zip(texts, sides, strict=True))
    tokens = [*(texts[0].tokens if texts[0] else ()), *(sample.tokens for sample in sides[0])]
    return Data(training, held, bad, text_digest(tokens))


def text_data(sides: tuple[list[str], list[str]], tokenizer: Encoder, shape: Shape, eos: int | None) -> Data:
    """Tokenise (training texts, held-out texts) for windows.

    Raises:
        ValueError: if a side holds no token.
    """
    training, held = (tokenize(side, tokenizer, eos) for side in sides)
    return Data(Windows(training, shape), Windows(held, shape), BadRows(), text_digest(training.tokens))


def read_sources(names: Sequence[str], bad: BadRows, limit: int | None = None) -> Iterator[Unit | Conversation]:
    """Yield the texts and conversations of files, folders and hub data sets, in order.

    Args:
        names: see ``train.rows.find_sources``.
        bad: counts the rows of tables that are left out.
        limit: rows to read of each table, or None for all.

    Raises:
        ValueError: if a source is missing or unreadable, or a table has none of the columns.
    """
    for name in names:
        # Of a handful of files the hash would hold out none, or a large part.
        for source in find_sources(name, int(1 / HELD_OUT_SHARE)):
            if source.is_table:
                yield from _read_table(source, bad, limit)
            else:
                yield from (unit for unit in file_units(source) if unit.text.strip())


def _read_table(source: Source, bad: BadRows, limit: int | None) -> Iterator[Unit | Conversation]:
    columns: set[str] = set()
    for number, (place, row) in enumerate(table_rows(source, bad, limit), 1):
        columns.update(row)
        if number >= PATIENCE and not columns.intersection(KNOWN):
            break
        try:
            messages = messages_of(row)
            if messages is not None:
                yield Conversation(place, messages)
            else:
                text = _text_of(row)
                yield Unit(text, text, place)
        except BadRow as reason:
            bad.add(place, str(reason))
    if columns and not columns.intersection(KNOWN):
        raise ValueError(f"--data {source.name} has the columns {sorted(columns)}; needed are {EXPECTED}")


def _text_of(row: Mapping[str, Any]) -> str:
    text = row.get(TEXT_COLUMN)
    if text is None:
        raise BadRow("neither a conversation nor text")
    if not isinstance(text, str):
        raise BadRow("text that is no string")
    if not text.strip():
        raise BadRow("an empty text")
    if not is_unicode(text):
        raise BadRow("text that is no Unicode")
    return text


def _check_amount(names: Sequence[str], units: Sequence[Unit], samples: Sequence[Sample], bad: BadRows) -> None:
    """Refuse data of which no row is left, or too little to hold some of it out."""
    if bad.counts and not units and not samples:
        raise ValueError(f"no usable row in --data {' '.join(names)}: {bad}; needed are {EXPECTED}")
    if len(samples) == 1 and len(units) < 2:
        raise ValueError(f"one conversation in {', '.join(names)}; validation needs a second one; {bad}")
    if len(units) < 2 and not samples:
        raise ValueError(
            f"{'too little' if units else 'no'} text in {', '.join(names)}; validation needs two files, rows or blocks "
            f"of {BLOCK_LINES} lines at least, in {' '.join((*TEXT_SUFFIXES, *TABLE_SUFFIXES))}"
        )


def _batches(texts: TokenTexts | None, samples: Sequence[Sample], shape: Shape) -> Windows | Conversations | Mixed:
    """Return the batches of one side of the data."""
    if texts is None:
        return Conversations(samples, shape)
    windows = Windows(texts, shape)
    return Mixed(windows, Conversations(samples, shape)) if samples else windows
