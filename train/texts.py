"""Plain text for training an adapter: split into training and held-out text, tokenised, and cut into windows.

5 % is held out by a hash, so that the same text is held out in every run: whole files of a folder by their path in it,
rows of a table and blocks of lines of a single file by their contents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from kangaroo_jax.progress import progress
from train.corpus import TokenTexts
from train.rows import Source
from workshop.held_out import cut_at_lines, is_held_out

BLOCK_LINES = 64


class Encoder(Protocol):
    """What is needed of ``kangaroo_jax.text.Tokenizer``."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with BOS as the tokenizer says."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """The smallest text that is held out or not as a whole.

    Attributes:
        key: what is hashed.
        text: the text.
        place: ``file:row``, or a file; units in a row of the same place are one text when they fall on the same side.
    """

    key: str
    text: str
    place: str


def split_units(units: Sequence[Unit]) -> tuple[list[str], list[str]]:
    """Split units into (training texts, held-out texts)."""
    sides: tuple[list[str], list[str]] = ([], [])
    pairs = zip(held_out([unit.key for unit in units]), units, strict=True)
    for (side, _), group in itertools.groupby(pairs, key=lambda pair: (pair[0], pair[1].place)):
        sides[side].append("".join(unit.text for _, unit in group))
    return sides


def held_out(keys: Sequence[str]) -> list[bool]:
    """Tell which of several things are held out, by their keys; one is when the hash takes none or all.

    Of a single thing nothing is.
    """
    if len(keys) < 2:
        return [False] * len(keys)
    held = [is_held_out(key) for key in keys]
    if all(held) or not any(held):
        smallest = min(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())
        held = [i == smallest for i in range(len(keys))]
    return held


def tokenize(texts: Sequence[str], tokenizer: Encoder, eos: int | None) -> TokenTexts:
    """Tokenise texts for windows.

    Long texts go through the tokenizer in pieces that end at line ends, which bounds its time and memory.

    Args:
        texts: the texts.
        tokenizer: the target's tokenizer.
        eos: the token that ends a text, or None.

    Raises:
        ValueError: if the texts hold no token.
    """
    prefix = tokenizer.encode("")
    tokens = []
    with progress(total=sum(map(len, texts)), desc="tokenise", unit="char", unit_scale=True, leave=False) as bar:
        for text in texts:
            pieces = []
            for piece in cut_at_lines(text):
                pieces.append(np.array(tokenizer.encode(piece)[len(prefix) :], np.int32))
                bar.update(len(piece))
            tokens.append(np.concatenate(pieces) if pieces else np.empty(0, np.int32))
    tokens = [ids for ids in tokens if len(ids)]
    if not tokens:
        raise ValueError(f"the tokenizer makes no token of {len(texts)} texts; pass other text")
    seen = np.zeros(1 + max(int(ids.max()) for ids in tokens), bool)
    for ids in tokens:
        seen[ids] = True
    newlines = [int(token) for token in np.flatnonzero(seen) if tokenizer.decode([int(token)]).endswith("\n")]
    return TokenTexts(tokens, prefix[0] if prefix else None, eos, np.array(newlines, np.int32))


def window_batch(texts: TokenTexts, rows: int, length: int, seed: Sequence[int]) -> dict[str, np.ndarray]:
    """Return one batch: ``tokens [rows, length]`` and ``mask``, False at EOS, where nothing is ever drafted.

    Args:
        texts: the texts that windows are cut from.
        rows: number of windows.
        length: tokens of a window.
        seed: numbers the batch is a function of, so that a resumed run sees the batches it would have seen.
    """
    tokens = texts.windows(np.random.default_rng(seed), rows, length)
    mask = np.ones(tokens.shape, bool) if texts.eos is None else tokens != texts.eos
    return {"tokens": tokens, "mask": mask}


def file_units(source: Source) -> Iterator[Unit]:
    """Yield a text file as one unit hashed by its key; without one, by blocks of lines.

    A file that is not UTF-8 is passed over where it was not named itself.

    Raises:
        ValueError: if it was.
    """
    assert source.path is not None
    try:
        text = source.path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if source.strict:
            raise ValueError(
                f"--data {source.name} is not UTF-8 ({error.reason} at byte {error.start}); convert it"
            ) from error
        return
    if source.key is not None:
        yield Unit(source.key, text, source.name)
        return
    lines = text.splitlines(keepends=True)
    for start in range(0, len(lines), BLOCK_LINES):
        block = "".join(lines[start : start + BLOCK_LINES])
        yield Unit(block, block, source.name)
