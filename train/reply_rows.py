"""Rows whose replies are written anew: what they ask, turn after turn, and the form they came in."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kangaroo_jax.progress import progress
from kangaroo_jax.text import Tokenizer
from train.conversation import COLUMNS, TEXT_COLUMN, Messages, messages_of
from train.data import Conversation, read_sources
from train.rows import BadRow, BadRows, find_sources, table_rows

COMPLETE = "complete"
CUT = "a reply cut by the token limit"
EMPTY = "an empty reply"
# Tokens are rarely longer: a long text is not tokenised as a whole for its beginning.
_CHARACTERS = 64


class Reply(NamedTuple):
    """What the target wrote: the text, its tokens, the rounds they took, and whether the token limit ended it."""

    text: str
    tokens: int
    rounds: int
    cut: bool


@dataclasses.dataclass
class Row:
    """A conversation or a text, and what has been written of it.

    Attributes:
        place: ``file:row`` of a table, or the name of a text file.
        messages: the conversation as ``train.conversation.messages_of`` returns it; None for a text.
        text: the beginning of a text, which the target continues.
        replies: the replies written so far, in order.
        ended: why no more will be written; None while there are turns to come.
    """

    place: str
    messages: Messages | None = None
    text: str = ""
    replies: list[Reply] = dataclasses.field(default_factory=list)
    ended: str | None = None

    @property
    def turns(self) -> int:
        """Replies that are to be written; a text is continued once."""
        return 1 if self.messages is None else sum(message["role"] == "assistant" for message in self.messages)

    @property
    def left(self) -> int:
        """Turns that are still to come."""
        return 0 if self.ended else self.turns - len(self.replies)

    def spoken(self) -> Messages:
        """Return the conversation with the new replies, up to the question that comes next, if one does."""
        replies, spoken = iter(self.replies), []
        for message in self.messages or []:
            if message["role"] == "assistant":
                if (reply := next(replies, None)) is None:
                    break
                message = {"role": "assistant", "content": reply.text}
            spoken.append(message)
        return spoken

    def add(self, reply: Reply) -> None:
        """Take the next reply.

        Nothing may follow a reply that the token limit cut: whatever does would be read after an end that the target
        did not write. An empty reply is none: its question is left out, too.
        """
        if not reply.text:
            self.ended = EMPTY
            return
        self.replies.append(reply)
        if reply.cut:
            self.ended = CUT
        elif len(self.replies) == self.turns:
            self.ended = COMPLETE


class Pool:
    """Prompts that wait for their replies; the shortest go first.

    The next question of a conversation is longer than the last one, so lengths rise from batch to batch: batches are
    full almost to the end, and few shapes come up. Which prompts go next depends on the rows alone, not on the batches
    before: a resumed run makes the batches it would have made.
    """

    def __init__(self, rows: Sequence[Row], encode: Callable[[Row], list[int]], context: int) -> None:
        """Make an empty pool.

        Args:
            rows: the rows, with what has been written.
            encode: returns the prompt of a row's next turn; ValueError if it cannot be rendered.
            context: positions of the target; a prompt is shorter.
        """
        self._rows, self._encode, self._context = rows, encode, context
        self._waiting: list[tuple[int, int, np.ndarray]] = []

    def offer(self, index: int) -> None:
        """Let a row's next turn wait; a turn that cannot be asked ends the row."""
        row = self._rows[index]
        if row.ended:
            return
        try:
            ids = self._encode(row)
        except ValueError as error:
            row.ended = str(error).partition(";")[0]
            return
        if len(ids) >= self._context:
            row.ended = f"a prompt of {self._context} tokens or more"
        elif not ids:
            row.ended = "a prompt without a token"
        else:
            heapq.heappush(self._waiting, (len(ids), index, np.array(ids, np.int32)))

    def take(self, count: int) -> list[tuple[int, list[int]]]:
        """Return (index of the row, prompt) of the shortest prompts, ``count`` at most; they wait no more."""
        taken = [heapq.heappop(self._waiting) for _ in range(min(count, len(self._waiting)))]
        return [(index, ids.tolist()) for _, index, ids in taken]


def read_rows(names: Sequence[str], limit: int | None) -> tuple[list[Row], BadRows]:
    """Return the rows of ``--data`` that can be trained on, in order, and count the others.

    Raises:
        ValueError: as ``train.data.read_sources``.
    """
    bad, rows = BadRows(), []
    items = progress(read_sources(names, bad, limit), desc="read", unit="row", leave=False)
    for place, parts in itertools.groupby(items, key=lambda item: item.place):
        first, *more = parts
        if isinstance(first, Conversation):
            rows.append(Row(place, first.messages))
        else:
            rows.append(Row(place, text="".join(unit.text for unit in (first, *more))))
    return rows, bad


def beginning(text: str, tokenizer: Tokenizer, tokens: int) -> str:
    """Return the first ``tokens`` tokens of a text, as text; no half character at its end."""
    first = len(tokenizer.encode(""))
    ids = tokenizer.encode(text[: tokens * _CHARACTERS])
    return tokenizer.decode(ids[first : first + tokens]).rstrip("\ufffd")


def in_their_form(rows: Sequence[Row], names: Sequence[str], limit: int | None) -> Iterator[dict[str, Any]]:
    """Yield the rows that have a reply in the form that they were read in, in order.

    The data is read once more, so that only what is asked has to be kept in memory meanwhile.

    Args:
        rows: from ``read_rows``, with their replies.
        names: as for ``read_rows``; none if the rows are of no files.
        limit: as for ``read_rows``.

    Raises:
        ValueError: if the data has changed.
    """
    if not names:
        yield from (rewritten(row, {}) for row in rows if row.replies)
        return
    sources = itertools.chain.from_iterable(map(lambda name: find_sources(name, 1), names))
    read: Iterator[tuple[str, dict[str, Any]]] = itertools.chain.from_iterable(
        table_rows(source, BadRows(), limit) if source.is_table else [(source.name, {})] for source in sources
    )
    for row in rows:
        raw = next((raw for place, raw in read if place == row.place), None)
        if raw is None or not _same(row, raw):
            raise ValueError(f"--data {row.place} has changed since it was read; restore it, or pass another --out")
        if row.replies:
            yield rewritten(row, raw)


def rewritten(row: Row, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as it was read, with the conversation or the text that was written; other fields are kept."""
    if row.messages is None:
        return {**raw, TEXT_COLUMN: row.text + row.replies[0].text}
    column = next(name for name in COLUMNS if raw.get(name) is not None)
    spoken = row.spoken()
    messages = spoken if spoken[-1]["role"] == "assistant" else spoken[:-1]
    if _is_sharegpt(column, raw[column]):
        words = {"user": "human", "assistant": "gpt"}
        messages = [{"from": words.get(m["role"], m["role"]), "value": m["content"]} for m in messages]
    # What other columns say of the conversation is not so any more.
    return {name: messages if name == column else raw[name] for name in raw if name == column or name not in COLUMNS}


def _is_sharegpt(column: str, value: Any) -> bool:
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return value[0].get("from") is not None
    return column == "conversations"


def _same(row: Row, raw: Mapping[str, Any]) -> bool:
    try:
        return row.messages is None or messages_of(raw) == row.messages
    except BadRow:
        return False
