"""Texts as tokens, and the windows of tokens that training batches are cut from; joey's tokens are bytes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from workshop.held_out import SourceFile

UNK, BOS, EOS = 0, 1, 2
BYTE_OFFSET = 3
VOCAB_SIZE = BYTE_OFFSET + 256


def encode_bytes(data: bytes) -> np.ndarray:
    """Return the tokens of a text, one per byte, without BOS; as joey's tokenizer does."""
    return np.frombuffer(data, np.uint8).astype(np.int32) + BYTE_OFFSET


@dataclasses.dataclass(frozen=True)
class TokenTexts:
    """Tokenised texts that training windows are cut from.

    Attributes:
        tokens: the tokens of each text, without BOS and EOS; no text is empty.
        bos: token before the first one of a text, or None.
        eos: token after the last one of a text, or None.
        newlines: tokens that end a line.
    """

    tokens: Sequence[np.ndarray]
    bos: int | None
    eos: int | None
    newlines: np.ndarray

    @functools.cached_property
    def cumulative(self) -> np.ndarray:
        """Cumulative share of the tokens that each text and those before it have."""
        weights = np.array([len(text) for text in self.tokens], np.float64)
        total = np.cumsum(weights / weights.sum())
        return total / total[-1]

    def windows(self, rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
        """Return ``[rows, length]`` int32 windows.

        A window starts with BOS at a random line of a random text (texts weighted by size). Where the text ends, EOS
        follows and the window goes on with BOS and another text.
        """
        first, last = ([] if token is None else [token] for token in (self.bos, self.eos))
        batch = np.empty((rows, length), np.int32)
        for row in batch:
            filled = 0
            while filled < length:
                text = self.tokens[int(np.searchsorted(self.cumulative, rng.random(), side="right"))]
                at = int(rng.integers(len(text)))
                line = np.flatnonzero(np.isin(text[at : at + 400], self.newlines))
                at = at + int(line[0]) + 1 if len(line) else 0
                body = text[at : at + length - filled]
                if self.bos is None and not len(body):  # Nothing at all would be added, perhaps for ever.
                    body = text[: length - filled]
                ended = last if at + len(body) >= len(text) else []
                piece = np.concatenate([first, body, ended])[: length - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
        return batch


def sample_windows(files: Sequence[SourceFile], rows: int, length: int, seed: int) -> Iterator[np.ndarray]:
    """Yield endless ``[rows, length]`` int32 batches of training windows of bytes (see ``TokenTexts.windows``)."""
    tokens = [encode_bytes(file.data) for file in files]
    texts = TokenTexts(tokens, BOS, EOS, np.array([BYTE_OFFSET + ord("\n")]))
    rng = np.random.default_rng(seed)
    while True:
        yield texts.windows(rng, rows, length)
