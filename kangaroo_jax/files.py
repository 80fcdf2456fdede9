"""Files and directories that are written whole or not at all, and JSON that is read with errors worth reading."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock


@contextlib.contextmanager
def whole_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to fill; it takes that name only when the block ends without an exception.

    Any exception, Ctrl-C included, removes the sibling and leaves what was at ``path`` as it was.

    Args:
        path: the directory to make; missing parents are made, too.
        replace: whether an existing ``path`` is replaced; otherwise it is refused before anything is written.

    Raises:
        ValueError: if ``path`` exists and is not to be replaced.
    """
    path = _vacant(path, replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        staged.chmod(0o777 & ~_umask())  # mkdtemp makes it private; the result should be an ordinary directory.
        yield staged
        _take_place(staged, path, Path(f"{staged}-old"), replace)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextlib.contextmanager
def resumable_directory(path: Path, work: Mapping[str, Any], *, replace: bool = False) -> Iterator[Path]:
    """Do as ``whole_directory``, but keep what there is when the block is interrupted, for the next to go on with.

    The sibling to fill has a fixed name. It is kept by Ctrl-C, SIGKILL and failures of the system (a full disk), and
    removed by other exceptions; it is emptied before the block when it was begun for other ``work``.

    Args:
        path: the directory to make; missing parents are made, too.
        work: what decides the contents, as JSON can hold it.
        replace: whether an existing ``path`` is replaced; otherwise it is refused before anything is written.

    Raises:
        ValueError: if ``path`` exists and is not to be replaced, or another process is at it.
    """
    path = _vacant(path, replace)
    staged, aside = partial_of(path), path.with_name(f".{path.name}.old")
    if staged.is_symlink() or (staged.exists() and not staged.is_dir()):
        raise ValueError(f"{staged} is in the way, where {path} would grow; remove it or choose another destination")
    staged.mkdir(parents=True, exist_ok=True)
    busy = f"another process is writing {path}; wait for it, or choose another destination"
    lock = _lock(Path(f"{staged}.lock"), busy)
    try:
        _finish_replacing(path, aside)
        marker = staged / ".work.json"
        if not marker.is_file() or _read_or_none(marker) != work:
            _remove(staged.iterdir())
            write_json(marker, work)
        yield staged
        _remove(staged.glob(".*"))  # The marker, and what a killed process was about to write.
        _take_place(staged, path, aside, replace)
    except (KeyboardInterrupt, OSError):
        raise
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def locked(file: Path, busy: str) -> Iterator[None]:
    """Hold a lock while the block runs; the system releases it when the process ends in whatever way.

    Args:
        file: stands for what is locked; made, and left behind, for a removed one could be locked twice.
        busy: the message when another process holds it.

    Raises:
        ValueError: if another process holds it.
    """
    lock = _lock(file, busy)
    try:
        yield
    finally:
        lock.release()


def partial_of(path: Path) -> Path:
    """Return where ``resumable_directory`` collects what will be ``path``."""
    return path.absolute().with_name(f".{path.absolute().name}.partial")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write; it replaces ``path`` when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        yield staged
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back while the block runs and raise KeyboardInterrupt after it, however often it was pressed.

    For code whose threads go on writing when their caller is interrupted. Outside the main thread, which alone
    receives Ctrl-C, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def unwritable(directory: Path) -> str | None:
    """Return why nothing can be written in a directory, in the system's words, or None; it is tried, and undone."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return error.strerror or first_line(error)


def check_vacant(out: Path, force: bool = False) -> None:
    """Raise ValueError if something is at ``out`` that is not to be replaced."""
    if out.exists() and not force:
        raise ValueError(f"{out} exists; choose another --out, or replace it with --force")


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON object, indented, whole or not at all.

    Raises:
        ValueError: if a number in it is not finite, which JSON has no form for, or it is nested too deeply.
    """
    try:
        text = json.dumps(fields, indent=2, allow_nan=False)
    except (ValueError, RecursionError) as error:
        where = _not_finite(fields) if isinstance(error, ValueError) else None
        problem = f"{where[1:]} is not a finite number" if where else first_line(error)
        raise ValueError(f"{path.name} cannot be written: {problem}; leave that value out") from error
    with whole_file(path) as staged:
        staged.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        fix: what the user can do when it is unreadable; ends the error message.

    Raises:
        ValueError: if the file is absent, or holds something else than a JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; {fix}")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({first_line(error)}); {fix}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a JSON {type(fields).__name__}, not an object; {fix}")
    return fields


def first_line(error: BaseException, limit: int = 160) -> str:
    """Return the first line of an error's message, shortened; for quoting a library's error in one of ours."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":. ")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _lock(file: Path, busy: str) -> filelock.BaseFileLock:
    lock = filelock.FileLock(file, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(busy) from None
    return lock


def _vacant(path: Path, replace: bool) -> Path:
    """Return the absolute path of a directory to make, once it is known that it may be."""
    path = path.absolute()
    if not path.name:
        raise ValueError(f"{path} is no name for a directory to make; choose another destination")
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link that leads nowhere; remove it or choose another destination")
    if path.exists() and not replace:
        raise ValueError(f"{path} exists; remove it or choose another destination")
    return path


def _take_place(staged: Path, path: Path, aside: Path, replace: bool) -> None:
    """Rename ``staged`` to ``path``; what is there goes to ``aside`` first, and is removed.

    Raises:
        FileExistsError: if something has come to ``path`` that is not to be replaced.
    """
    if not path.exists():
        staged.rename(path)
        return
    if not replace:
        raise FileExistsError(f"{path} has appeared in the meantime; move it away")
    path.rename(aside)  # A rename cannot replace a directory that has contents.
    try:
        staged.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _finish_replacing(path: Path, aside: Path) -> None:
    """Clear up after a process that was killed while it replaced ``path``."""
    if aside.exists() and not path.exists():
        aside.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def _remove(items: Iterable[Path]) -> None:
    for item in list(items):
        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()


def _not_finite(value: Any, name: str = "") -> str | None:
    """Return where in a JSON value a number is that is not finite, as ``.key.0``, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next((found for key, item in items if (found := _not_finite(item, f"{name}.{key}"))), None)


def _read_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path, "")
    except ValueError:
        return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
