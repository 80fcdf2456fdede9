"""joey's text: the Python standard library of the running interpreter, and the byte-level tokens made of it.

Real text, on every machine, offline. 5 % of the files, chosen by a hash of their path, are held out: no training step
ever sees them, and every prompt and claim about joey comes from them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

HELD_OUT_SHARE = 0.05
UNK, BOS, EOS = 0, 1, 2
BYTE_OFFSET = 3
VOCAB_SIZE = BYTE_OFFSET + 256


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One text file: its path relative to the folder it was found in, and its bytes."""

    name: str
    data: bytes


def is_held_out(name: str) -> bool:
    """Tell whether the file of this relative POSIX path is held out; depends on the path alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < HELD_OUT_SHARE * 2**64


def standard_library() -> Path:
    """Return the folder of the running interpreter's standard library sources."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_sources(folder: Path) -> list[SourceFile]:
    """Read every non-empty UTF-8 ``.py`` file below ``folder``, sorted by path; installed packages are left out."""
    files = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(("site-packages/", "dist-packages/")):
            continue
        data = path.read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError:
            continue
        if data.strip():
            files.append(SourceFile(name, data))
    return files


def split_sources(folders: Sequence[Path]) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return (training files, held-out files) of all folders.

    Raises:
        ValueError: if a folder holds no Python source.
    """
    train: list[SourceFile] = []
    held: list[SourceFile] = []
    for folder in folders:
        files = read_sources(folder)
        if not files:
            raise ValueError(f"no .py files below {folder}; pass a folder of Python sources")
        for file in files:
            (held if is_held_out(file.name) else train).append(file)
    return train, held


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
