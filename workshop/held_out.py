"""Files of text, and which of them are held out: joey's text is the running interpreter's standard library.

Real text, on every machine, offline. 5 % of the files, chosen by a hash of their path, are held out: no training step
ever sees them, and every prompt and claim about joey comes from them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

HELD_OUT_SHARE = 0.05
PYTHON = (".py",)
PIECE_CHARACTERS = 1 << 15


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


def read_sources(folder: Path, suffixes: Sequence[str] = PYTHON) -> list[SourceFile]:
    """Read every non-empty UTF-8 file below ``folder`` of these kinds, by path; installed packages are left out."""
    files = []
    for path in sorted(path for suffix in suffixes for path in folder.rglob(f"*{suffix}")):
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


def split_sources(
    folders: Sequence[Path], suffixes: Sequence[str] = PYTHON
) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return (training files, held-out files) of all folders.

    Raises:
        ValueError: if a folder holds no such file.
    """
    train: list[SourceFile] = []
    held: list[SourceFile] = []
    for folder in folders:
        files = read_sources(folder, suffixes)
        if not files:
            raise ValueError(f"no {' '.join(suffixes)} files below {folder}; pass a folder of such files")
        for file in files:
            (held if is_held_out(file.name) else train).append(file)
    return train, held


def cut_at_lines(text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text into pieces of at most ``size`` characters, after a line end where there is one.

    Tokenised piece by piece, a long text takes bounded time and memory.
    """
    start = 0
    while start < len(text):
        stop = start + size
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        yield text[start:stop]
        start = stop
