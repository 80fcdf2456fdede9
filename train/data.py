"""The data of a run: what ``--data`` names, read, split into training and held-out data, and made into batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from kangaroo_jax.text import Tokenizer
from train.batches import Batch, Conversations, Counts, Shape, Windows
from train.conversation import COLUMNS, EXPECTED, TEXT_COLUMN, Messages, messages_of
from train.corpus import TokenTexts
from train.render import Renderer, Sample, find_template
from train.rows import BadRow, BadRows, Source, find_sources, table_rows
from train.texts import Encoder, Unit, file_units, held_out, split_units, tokenize
from train.workspace import text_digest
from workshop.held_out import HELD_OUT_SHARE

KNOWN = (*COLUMNS, TEXT_COLUMN)
# A data set without any of them is refused after so many rows, not after all of them.
PATIENCE = 1000
HELD_OUT_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and held-out data.

    Attributes:
        training: batches to train on.
        held_out: batches that are never trained on.
        bad_rows: rows that were left out.
        digest: a short name of the training text.
    """

    training: Windows | Conversations
    held_out: Windows | Conversations
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
        if isinstance(self.training, Windows):
            return steps * self.training.shape.rows * self.training.shape.length
        return round(steps * self.tokens.all / self.training.steps)

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield ``{"tokens", "mask"}`` of ``first_step`` and later steps, without end."""
        return self.training.batches(first_step)

    def samples(self, count: int) -> Batch:
        """Return the first ``count`` rows to be trained on, or a batch if that is less; no empty ones."""
        batch = next(self.batches(0))
        filled = batch["tokens"].any(axis=1)
        return {name: value[filled][:count] for name, value in batch.items()}

    def held_out_batches(self, count: int = HELD_OUT_BATCHES) -> Iterator[Batch]:
        """Yield ``count`` batches of held-out data, the same in every run; fewer if there are no more."""
        return self.held_out.fixed(count)

    def held_out_rows(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (tokens, mask) of ``count`` held-out rows of any length, always the same; fewer if that is all."""
        return self.held_out.rows(count)


@dataclasses.dataclass
class Found:
    """What was read: texts or conversations, with the place of each conversation, and what was left out."""

    units: list[Unit] = dataclasses.field(default_factory=list)
    conversations: list[tuple[str, Messages]] = dataclasses.field(default_factory=list)
    bad: BadRows = dataclasses.field(default_factory=BadRows)

    def check_one_form(self, names: Sequence[str]) -> None:
        """Raise ValueError if there are both texts and conversations; ``names`` are for the message."""
        if self.units and self.conversations:
            raise ValueError(
                f"--data {' '.join(names)} has plain text ({self.units[0].document}) and conversations "
                f"({self.conversations[0][0]}); pass one or the other"
            )


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
    """Read data and tokenise it.

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
    found = read_sources(names, limit)
    if not found.conversations:
        if found.bad.counts and not found.units:
            _nothing(names, found.bad)
        return text_data(split_units(found.units, names), tokenizer, shape, eos_ids[0] if eos_ids else None, found.bad)
    found.check_one_form(names)
    find_template(tokenizer, model, chat_template)
    renderer = Renderer(tokenizer, model, eos_ids, shape.length, upstream, chat_template)
    return conversation_data(found, renderer, shape, names)


def text_data(
    sides: tuple[list[str], list[str]],
    tokenizer: Encoder,
    shape: Shape,
    eos: int | None,
    bad_rows: BadRows | None = None,
) -> Data:
    """Tokenise (training texts, held-out texts) for windows.

    Raises:
        ValueError: if a side holds no token.
    """
    training, held = (tokenize(side, tokenizer, eos) for side in sides)
    return Data(Windows(training, shape), Windows(held, shape), bad_rows or BadRows(), text_digest(training))


def conversation_data(found: Found, renderer: Renderer, shape: Shape, names: Sequence[str]) -> Data:
    """Render and tokenise conversations; those that cannot be are counted.

    Raises:
        ValueError: if fewer than two are left; ``names`` are for the message.
    """
    samples: list[Sample] = []
    keys: list[str] = []
    for place, messages in tqdm(found.conversations, desc="tokenise", unit="conversation", leave=False):
        try:
            samples.append(renderer.sample(messages))
        except BadRow as reason:
            found.bad.add(place, str(reason))
        else:
            keys.append(hashlib.sha256(json.dumps(messages).encode()).hexdigest())
    if not samples:
        _nothing(names, found.bad)
    if len(samples) < 2:
        raise ValueError(f"one conversation in {', '.join(names)}; validation needs a second one; {found.bad}")
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for sample, side in zip(samples, held_out(keys), strict=True):
        sides[side].append(sample)
    text = TokenTexts([sample.tokens for sample in sides[0]], None, None, np.empty(0, np.int32))
    return Data(Conversations(sides[0], shape), Conversations(sides[1], shape), found.bad, text_digest(text))


def read_sources(names: Sequence[str], limit: int | None = None) -> Found:
    """Read files, folders and hub data sets; bad rows of tables are counted and left out.

    Raises:
        ValueError: if a source is missing or unreadable, or a table has none of the columns.
    """
    found = Found()
    for name in names:
        # Of a handful of files the hash would hold out none, or a large part.
        for source in find_sources(name, int(1 / HELD_OUT_SHARE)):
            if source.is_table:
                _read_table(source, found, limit)
            else:
                found.units += [unit for unit in file_units(source) if unit.text.strip()]
    return found


def _read_table(source: Source, found: Found, limit: int | None) -> None:
    columns: set[str] = set()
    units: list[Unit] = []
    conversations: list[tuple[str, Messages]] = []
    for number, (place, row) in enumerate(table_rows(source, found.bad, limit), 1):
        columns.update(row)
        if number >= PATIENCE and not columns.intersection(KNOWN):
            break
        try:
            messages = messages_of(row)
            if messages is not None:
                conversations.append((place, messages))
            else:
                text = _text_of(row)
                units.append(Unit(text, text, place))
        except BadRow as reason:
            found.bad.add(place, str(reason))
    if columns and not columns.intersection(KNOWN):
        raise ValueError(f"--data {source.name} has the columns {sorted(columns)}; needed are {EXPECTED}")
    for unit in units if conversations else []:
        found.bad.add(unit.document, "plain text among conversations")
    found.conversations += conversations
    found.units += [] if conversations else units


def _text_of(row: Mapping[str, Any]) -> str:
    text = row.get(TEXT_COLUMN)
    if text is None:
        raise BadRow("neither a conversation nor text")
    if not isinstance(text, str):
        raise BadRow("text that is no string")
    if not text.strip():
        raise BadRow("an empty text")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadRow("text that is no Unicode")
    return text


def _nothing(names: Sequence[str], bad: BadRows) -> NoReturn:
    """Refuse data of which no row is left."""
    raise ValueError(f"no usable row in --data {' '.join(names)}: {bad}; needed are {EXPECTED}")
