"""What ``--data`` names: files of text, and the rows of tables on disk or of a data set on the Hugging Face hub."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.json_rows import BrokenOff, json_rows

TEXT_SUFFIXES = (".py", ".txt", ".md")
TABLE_SUFFIXES = (".jsonl", ".json", ".parquet")
# In a folder a .json file is more often a setting than a table of text: it has to be named itself.
FOLDER_SUFFIXES = (".py", ".txt", ".md", ".jsonl", ".parquet")
HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<split>[\w.-]+))?")
NAMED = 5


class BadRow(ValueError):
    """A row that cannot be used; its text is the reason that is counted."""


@dataclasses.dataclass
class BadRows:
    """Rows that were left out, by reason.

    Attributes:
        seen: rows read, good ones too.
        counts: number of rows left out for each reason.
        first: the first few as ``file:row``, for each reason.
    """

    seen: int = 0
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    first: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, place: str, reason: str) -> None:
        """Count the row at ``place``."""
        self.counts[reason] += 1
        named = self.first.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(place)

    def __str__(self) -> str:
        parts = []
        for reason, count in self.counts.most_common():
            more = ", ..." if count > len(self.first[reason]) else ""
            parts.append(f"{count:,} x {reason} ({', '.join(self.first[reason])}{more})")
        return f"{self.counts.total():,} of {self.seen:,} rows left out" + (": " if parts else "") + "; ".join(parts)


@dataclasses.dataclass(frozen=True)
class Source:
    """One file, or one data set of the hub.

    Attributes:
        name: what messages call it.
        path: the file, or None for the hub.
        key: for a text file of a larger folder its path in it, by which it is held out as a whole; else None.
        strict: whether it was named itself, so that it has to be readable.
    """

    name: str
    path: Path | None
    key: str | None = None
    strict: bool = True

    @property
    def is_table(self) -> bool:
        """Whether it has rows, rather than being one text."""
        return self.path is None or self.path.suffix in TABLE_SUFFIXES


def find_sources(name: str, whole_files: int) -> list[Source]:
    """Return the files that ``name`` stands for, or the data set of the hub.

    Args:
        name: a folder, searched for ``.py .txt .md .jsonl .parquet``; a file of these kinds or ``.json``; or a hub id
            ``OWNER/NAME`` or ``OWNER/NAME:SPLIT``.
        whole_files: in a folder of so many files or more, text files get a ``key``.

    Raises:
        ValueError: if there is no such path and it is no hub id, or the file is of an unknown kind.
    """
    path, known = Path(name), " ".join((*TEXT_SUFFIXES, *TABLE_SUFFIXES))
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in FOLDER_SUFFIXES and file.is_file()]
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        large = len(files) >= whole_files
        return [Source(str(f), f, f.relative_to(path).as_posix() if large else None, strict=False) for f in files]
    if path.exists():
        if path.suffix not in (*TEXT_SUFFIXES, *TABLE_SUFFIXES):
            raise ValueError(f"--data {name} has the unknown suffix {path.suffix!r}; known are {known}")
        return [Source(name, path)]
    if HUB_ID.fullmatch(name) and path.suffix not in (*TEXT_SUFFIXES, *TABLE_SUFFIXES):
        return [Source(name, None)]
    raise ValueError(f"--data {name} does not exist; pass folders, files ({known}) or hub ids OWNER/NAME[:SPLIT]")


def table_rows(source: Source, bad: BadRows, limit: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (``file:row``, row) of a table. Rows count from 1; those of a .jsonl file are its lines.

    Parquet files and data sets of the hub are streamed: no copy of them is left in a cache.

    Args:
        source: a table.
        bad: counts the rows read, and those that are no JSON objects; where a file breaks off it has the place.
        limit: number of rows to read, or None for all.

    Raises:
        ValueError: in one line, if the table cannot be read.
    """
    rows = _rows(source)
    for number in itertools.count(1) if limit is None else range(1, limit + 1):
        try:
            row = next(rows)
        except StopIteration:
            return
        except ImportError as error:
            raise ValueError(
                f"--data {source.name} needs the datasets library: pip install 'kangaroo-jax[train]'"
            ) from error
        except Exception as error:  # json, pyarrow, fsspec, the hub's client and http raise errors of their own.
            raise ValueError(f"--data {source.name} cannot be read: {_reason(error)}; {_advice(source)}") from error
        if row == b"":
            continue
        bad.seen += 1
        place = f"{source.name}:{number}"
        if isinstance(row, dict):
            yield place, row
        elif isinstance(row, BrokenOff):
            taken = f"{number - 1:,} rows before byte {row.byte:,} of {row.size:,}"
            bad.add(f"{place}, {taken}", "a file that breaks off")
        else:
            bad.add(place, "no JSON object")


def _rows(source: Source) -> Iterator[Any]:
    # JSON is not read by the datasets library, which makes text of a column whose type varies, and stops at a line
    # that is broken. Here both are bad rows among good ones.
    if source.path is not None and source.path.suffix in (".jsonl", ".json"):
        yield from json_rows(source.path)
    else:
        import datasets

        logging.getLogger("datasets").setLevel(logging.CRITICAL)  # Its errors are raised as well, and told above.
        if source.path is not None:
            arguments, split = {"path": "parquet", "data_files": str(source.path)}, "train"
        else:
            found = HUB_ID.fullmatch(source.name)
            assert found is not None
            arguments, split = {"path": found["id"]}, found["split"] or "train"
        yield from datasets.load_dataset(**arguments, split=split, streaming=True)


def _reason(error: Exception) -> str:
    return next(itertools.chain(str(error).strip().splitlines(), [type(error).__name__]))


def _advice(source: Source) -> str:
    if source.path is None:
        return "check the id, the split and the network, or download the file and pass its path"
    return f"pass an intact {source.path.suffix} file"
