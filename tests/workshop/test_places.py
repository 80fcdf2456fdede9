"""Places that cannot be written are seen early, and one process at a time writes."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

from workshop.places import check_file, check_folder, claimed


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be made; a test may run as root, who can write everywhere."""

    def denied(**options: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)


def test_a_file_is_tried_without_being_touched(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    check_file("--json", None)
    check_file("--json", file)
    assert not list(tmp_path.iterdir())
    file.write_text("of before")
    check_file("--json", file)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of before"]
    with pytest.raises(ValueError, match=r"--json is .*, and that is a directory: name a file in it"):
        check_file("--json", tmp_path)
    with pytest.raises(ValueError, match=r"and there is no directory .*figures.json: make it first"):
        check_file("--json", file / "more.json")


@pytest.mark.usefixtures("read_only")
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--json is .* cannot be written \(denied\): choose another"):
        check_file("--json", tmp_path / "figures.json")


def test_a_folder_may_be_one_that_is_still_to_be_made(tmp_path: Path) -> None:
    check_folder(tmp_path / "several" / "new" / "folders")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"{tmp_path}/file is a file; pass another --out"):
        check_folder(tmp_path / "file" / "below")


@pytest.mark.usefixtures("read_only")
def test_a_folder_that_refuses_writes_is_seen_early(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} is not writable; pass another --out"):
        check_folder(tmp_path / "new")


def test_a_folder_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    busy = pytest.raises(ValueError, match=f"another process trains in {folder}; wait for it, or pass another --out")
    with claimed(folder, "trains in"), busy, claimed(folder, "trains in"):
        pass
    with claimed(folder, "trains in"):
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_file_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal"
    busy = pytest.raises(ValueError, match="another process is writing")
    with claimed(path, "is writing", file=True), busy, claimed(path, "is writing", file=True):
        pass
    with claimed(path, "is writing", file=True):
        assert path.parent.is_dir()
    assert list(path.parent.iterdir()) == []
