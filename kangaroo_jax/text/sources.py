"""Files of text, and which of them are held out: joey's text is the running interpreter's standard library.

Real text, on every machine, offline. 5 % of the files, chosen by a hash of their path, are held out: no training step
ever sees them, and every prompt and claim about joey comes from them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HELD_OUT_SHARE = 0.05


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
