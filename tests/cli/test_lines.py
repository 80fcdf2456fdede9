"""Lines of earlier chats: kept in a file, and no trouble where that cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kangaroo_jax.cli.lines import remembered


@pytest.fixture
def readline() -> Iterator[Any]:
    import readline

    readline.clear_history()
    yield readline
    readline.clear_history()


def kept(readline: Any) -> list[str]:
    return [readline.get_history_item(place + 1) for place in range(readline.get_current_history_length())]


def test_lines_are_there_the_next_time(tmp_path: Path, readline: Any) -> None:
    file = tmp_path / "home" / "lines"
    with remembered(file):
        readline.add_history("first")
    readline.clear_history()
    with remembered(file):
        assert kept(readline) == ["first"]
        readline.add_history("second")
    readline.clear_history()
    with remembered(file):
        assert kept(readline) == ["first", "second"]
    assert list(file.parent.iterdir()) == [file]


def test_lines_are_kept_when_the_block_fails(tmp_path: Path, readline: Any) -> None:
    with pytest.raises(KeyboardInterrupt), remembered(tmp_path / "lines"):
        readline.add_history("first")
        raise KeyboardInterrupt
    assert "first" in (tmp_path / "lines").read_text()


def test_only_the_newest_lines_are_kept(tmp_path: Path, readline: Any) -> None:
    with remembered(tmp_path / "lines"):
        for number in range(1005):
            readline.add_history(f"line{number}")
    readline.clear_history()
    with remembered(tmp_path / "lines"):
        lines = kept(readline)
    assert (len(lines), lines[0], lines[-1]) == (1000, "line5", "line1004")


def test_a_file_that_cannot_be_is_done_without(tmp_path: Path, readline: Any) -> None:
    (tmp_path / "file").write_text("no folder")
    with remembered(tmp_path / "file" / "lines"):
        readline.add_history("first")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_readline_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "readline", None)
    with remembered(tmp_path / "lines"):
        pass
    assert not list(tmp_path.iterdir())
