"""Text for training an adapter: what ``--data`` names, split into training and held-out text, tokenised.

5 % is held out by a hash, so that the same text is held out in every run: whole files of a folder by their path in it,
rows of a table and blocks of lines of a single file by their contents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from train.corpus import HELD_OUT_SHARE, TokenTexts, is_held_out

TEXT_SUFFIXES = (".py", ".txt", ".md")
TABLE_SUFFIXES = (".jsonl", ".json", ".parquet")
# In a folder a .json file is more often a setting than a table of text: it has to be named itself.
FOLDER_SUFFIXES = (".py", ".txt", ".md", ".jsonl", ".parquet")
BLOCK_LINES = 64
PIECE_CHARACTERS = 1 << 15


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
        document: units in a row with the same document are one text when they fall on the same side.
    """

    key: str
    text: str
    document: str


def read_texts(paths: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Return (training texts, held-out texts) of folders and files.

    Args:
        paths: folders, searched for ``.py .txt .md .jsonl .parquet``, and single files of these kinds or ``.json``;
            tables need a column ``text``.

    Raises:
        ValueError: if a path is missing, of an unknown kind or unreadable, or has too little text to hold some out.
    """
    return split_units([unit for path in paths for unit in _units(path) if unit.text.strip()], paths)


def split_units(units: Sequence[Unit], paths: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Split units into (training texts, held-out texts); when the hash takes none or all, the smallest one is held out.

    Raises:
        ValueError: with fewer than two units; ``paths`` are named in it.
    """
    if len(units) < 2:
        names = ", ".join(map(str, paths))
        raise ValueError(
            f"{'too little' if units else 'no'} text in {names}; validation needs two files, rows or blocks of "
            f"{BLOCK_LINES} lines at least, in {' '.join((*TEXT_SUFFIXES, *TABLE_SUFFIXES))}"
        )
    held = [is_held_out(unit.key) for unit in units]
    if all(held) or not any(held):
        smallest = min(range(len(units)), key=lambda i: hashlib.sha256(units[i].key.encode()).digest())
        held = [i == smallest for i in range(len(units))]
    sides: tuple[list[str], list[str]] = ([], [])
    pairs = zip(held, units, strict=True)
    for (side, _), group in itertools.groupby(pairs, key=lambda pair: (pair[0], pair[1].document)):
        sides[side].append("".join(unit.text for _, unit in group))
    return sides


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
    with tqdm(total=sum(map(len, texts)), desc="tokenise", unit="char", unit_scale=True, leave=False) as bar:
        for text in texts:
            pieces = []
            for piece in cut_at_lines(text, PIECE_CHARACTERS):
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


def cut_at_lines(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of at most ``size`` characters, after a line end where there is one."""
    start = 0
    while start < len(text):
        stop = start + size
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        yield text[start:stop]
        start = stop


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


def _units(path: Path) -> Iterator[Unit]:
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in FOLDER_SUFFIXES and file.is_file()]
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        # Of a handful of files the hash would hold out none, or a large part.
        whole = len(files) >= 1 / HELD_OUT_SHARE
        for file in files:
            yield from _file_units(file, file.relative_to(path).as_posix() if whole else None, strict=False)
    elif not path.exists():
        raise ValueError(f"--data {path} does not exist; pass folders or files of text")
    elif path.suffix in (*TEXT_SUFFIXES, *TABLE_SUFFIXES):
        yield from _file_units(path, None, strict=True)
    else:
        known = " ".join((*TEXT_SUFFIXES, *TABLE_SUFFIXES))
        raise ValueError(f"--data {path} has the unknown suffix {path.suffix!r}; known are {known}")


def _file_units(path: Path, key: str | None, *, strict: bool) -> Iterator[Unit]:
    """Yield a file as one unit hashed by ``key``; without one, by blocks of lines. Tables always go by rows."""
    if path.suffix in TABLE_SUFFIXES:
        for index, text in enumerate(_rows(path)):
            yield Unit(text, text, f"{path}:{index}")
        return
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        if strict:
            raise ValueError(
                f"--data {path} is not UTF-8 ({error.reason} at byte {error.start}); convert it"
            ) from error
        return
    if key is not None:
        yield Unit(key, text, str(path))
        return
    lines = text.splitlines(keepends=True)
    for start in range(0, len(lines), BLOCK_LINES):
        block = "".join(lines[start : start + BLOCK_LINES])
        yield Unit(block, block, str(path))


def _rows(path: Path) -> Iterable[str]:
    """Yield the column ``text`` of a table; streaming, so that no copy of it is left in a cache."""
    try:
        import datasets
        import pyarrow
    except ImportError as error:
        raise ValueError(f"--data {path} needs the datasets library: pip install 'kangaroo-jax[train]'") from error
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # Its errors are raised as well, and told below.
    kind = "parquet" if path.suffix == ".parquet" else "json"
    try:
        for row in datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True):
            if not isinstance(row.get("text", 0), str | None):
                raise ValueError(f"--data {path} has the columns {sorted(row)}; a column 'text' of strings is needed")
            yield row["text"] or ""
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException) as error:
        raise ValueError(f"--data {path} cannot be read: {str(error).splitlines()[0]}") from error
