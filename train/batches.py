"""Batches of a fixed order: windows of plain text, conversations gathered by length, and both in turn.

The batch of a step is a function of the seed and the step alone, so a resumed run sees the batches it would have seen.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from train.corpus import TokenTexts
from train.render import Sample
from train.texts import window_batch

BUCKET = 128

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What batches look like, and which rows of them this host reads.

    Attributes:
        rows: rows of a batch, over all hosts.
        length: longest row, in tokens.
        seed: decides the order.
        host: index of this host.
        hosts: number of hosts; each reads ``rows / hosts`` rows of every batch.
    """

    rows: int
    length: int
    seed: int = 0
    host: int = 0
    hosts: int = 1

    def __post_init__(self) -> None:
        if self.rows % self.hosts:
            raise ValueError(f"batch of {self.rows} rows on {self.hosts} hosts; use a multiple of {self.hosts}")
        if not 0 <= self.host < self.hosts:
            raise ValueError(f"host {self.host} of {self.hosts}; hosts count from 0")

    def share(self, batch: Batch) -> Batch:
        """Return this host's rows of a batch."""
        size = self.rows // self.hosts
        return {name: value[self.host * size : (self.host + 1) * size] for name, value in batch.items()}


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of tokens: those whose prediction is trained, and all that are not padding."""

    trained: int
    all: int


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of plain text; their number has no end, and every prediction counts but that at EOS."""

    texts: TokenTexts
    shape: Shape

    @property
    def tokens(self) -> Counts:
        """Tokens of the text."""
        total = sum(len(text) for text in self.texts.tokens)
        return Counts(total, total)

    def frequencies(self, size: int) -> np.ndarray:
        """Return how often each of so many tokens is in the text."""
        return sum((np.bincount(text, minlength=size) for text in self.texts.tokens), np.zeros(size, np.int64))

    @property
    def steps(self) -> int:
        """Batches that have as many tokens as the text."""
        return -(-self.tokens.all // (self.shape.rows * self.shape.length))

    @property
    def epoch_tokens(self) -> int:
        """Tokens in these batches."""
        return self.steps * self.shape.rows * self.shape.length

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches of ``first_step`` and later steps, without end."""
        for step in itertools.count(first_step):
            yield self._batch((self.shape.seed, step))

    def fixed(self, count: int) -> Iterator[Batch]:
        """Yield ``count`` batches that depend on no seed."""
        for index in range(count):
            yield self._batch((index,))

    def rows(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (tokens, mask) of ``count`` windows that depend on no seed."""
        batch = window_batch(self.texts, count, self.shape.length, (0,))
        return list(zip(batch["tokens"], batch["mask"], strict=True))

    def _batch(self, seed: Sequence[int]) -> Batch:
        return self.shape.share(window_batch(self.texts, self.shape.rows, self.shape.length, seed))


@dataclasses.dataclass(frozen=True)
class Conversations:
    """Conversations in batches of similar length; every one comes once in an epoch.

    The rows of a batch are padded to the longest of them, rounded up to a multiple of 128 or to ``length``: there are
    few shapes to compile for. Padding does not count. What is missing to fill the last batch of an epoch are empty
    rows, in the batch with the shortest conversations.

    Attributes:
        samples: the conversations.
        shape: of the batches.
        states: returns what is stored of some conversations (-1 is an empty row) for rows of a length; batches have it
            instead of tokens.
    """

    samples: Sequence[Sample]
    shape: Shape
    states: Callable[[np.ndarray, int], Batch] | None = None

    @functools.cached_property
    def tokens(self) -> Counts:
        """Tokens of an epoch."""
        return Counts(sum(int(s.mask.sum()) for s in self.samples), sum(len(s.tokens) for s in self.samples))

    def frequencies(self, size: int) -> np.ndarray:
        """Return how often each of so many tokens is one whose prediction counts."""
        counted = (sample.tokens[1:][sample.mask[:-1]] for sample in self.samples)
        return sum((np.bincount(tokens, minlength=size) for tokens in counted), np.zeros(size, np.int64))

    @functools.cached_property
    def buckets(self) -> np.ndarray:
        """The length that each conversation is padded to at least."""
        lengths = np.array([len(sample.tokens) for sample in self.samples])
        return np.minimum(-(-lengths // BUCKET) * BUCKET, self.shape.length)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.samples) // self.shape.rows)

    @property
    def epoch_tokens(self) -> int:
        """Tokens in these batches, without padding."""
        return self.tokens.all

    def epoch(self, seed: Sequence[int]) -> np.ndarray:
        """Return which conversations each batch has, ``[steps, rows]``; -1 is an empty row."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.samples))
        order = order[np.argsort(self.buckets[order], kind="stable")]
        order = np.concatenate([np.full(self.steps * self.shape.rows - len(order), -1), order])
        plan: np.ndarray = rng.permutation(order.reshape(self.steps, self.shape.rows))
        return plan

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches of ``first_step`` and later steps, epoch after epoch, without end."""
        epoch, skip = divmod(first_step, self.steps)
        for number in itertools.count(epoch):
            for members in self.epoch((self.shape.seed, number))[skip:]:
                yield self._batch(members)
            skip = 0

    def fixed(self, count: int) -> Iterator[Batch]:
        """Yield ``count`` batches that depend on no seed, fewer if all conversations have come."""
        for members in self.epoch((0,))[:count]:
            yield self._batch(members)

    def rows(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (tokens, mask) of ``count`` conversations that depend on no seed, fewer if there are no more."""
        order = np.random.default_rng(0).permutation(len(self.samples))
        return [tuple(self.samples[index]) for index in order[:count]]

    def _batch(self, members: np.ndarray) -> Batch:
        length = int(self.buckets[members[members >= 0]].max())
        batch = padded([self.samples[member] if member >= 0 else None for member in members], length)
        if self.states:
            batch = {"mask": batch["mask"], **self.states(members, length)}
        return self.shape.share(batch)


def padded(samples: Sequence[Sample | None], length: int) -> Batch:
    """Return ``tokens`` and ``mask`` of conversations, ``[rows, length]``; None is an empty row."""
    shape = len(samples), length
    batch = {"tokens": np.zeros(shape, np.int32), "mask": np.zeros(shape, bool)}
    for row, sample in enumerate(samples):
        if sample is not None:
            batch["tokens"][row, : len(sample.tokens)] = sample.tokens
            batch["mask"][row, : len(sample.mask)] = sample.mask
    return batch


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Batches of plain text and batches of conversations, in a random order, as many of each as it has in an epoch."""

    texts: Windows
    conversations: Conversations

    @property
    def tokens(self) -> Counts:
        """Tokens of an epoch."""
        texts, chats = self.texts.tokens, self.conversations.tokens
        return Counts(texts.trained + chats.trained, texts.all + chats.all)

    def frequencies(self, size: int) -> np.ndarray:
        """Return those of both kinds, together."""
        return self.texts.frequencies(size) + self.conversations.frequencies(size)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.texts.steps + self.conversations.steps

    @property
    def epoch_tokens(self) -> int:
        """Tokens in these batches, without padding."""
        return self.texts.epoch_tokens + self.conversations.epoch_tokens

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches of ``first_step`` and later steps, without end."""
        epoch, skip = divmod(first_step, self.steps)
        begun = np.bincount(self.epoch(epoch)[:skip], minlength=2)
        streams = [
            self.texts.batches(epoch * self.texts.steps + int(begun[0])),
            self.conversations.batches(epoch * self.conversations.steps + int(begun[1])),
        ]
        for number in itertools.count(epoch):
            for kind in self.epoch(number)[skip:]:
                yield next(streams[kind])
            skip = 0

    def epoch(self, number: int) -> np.ndarray:
        """Return what each batch of an epoch has, ``[steps]``: 0 is text, 1 conversations."""
        kinds = np.repeat((0, 1), (self.texts.steps, self.conversations.steps))
        return np.random.default_rng((self.texts.shape.seed, number)).permutation(kinds)

    def fixed(self, count: int) -> Iterator[Batch]:
        """Yield ``count`` batches that depend on no seed, a share of each kind."""
        texts = self._of_texts(count)
        return itertools.chain(self.texts.fixed(texts), self.conversations.fixed(count - texts))

    def rows(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (tokens, mask) of ``count`` windows and conversations that depend on no seed."""
        texts = self._of_texts(count)
        return self.texts.rows(texts) + self.conversations.rows(count - texts)

    def _of_texts(self, count: int) -> int:
        """Return how many of a number are texts, as in an epoch; each kind has one at least, where there are two."""
        return min(max(round(count * self.texts.steps / self.steps), 1), count - 1)
