"""Exit statuses of the benchmarks' commands, and files that cannot be written."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from bench.command import check_writable, exit_status


def raising(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "resumes", "status", "said"),
    [
        (ValueError("gamma is 0"), False, 2, "error: gamma is 0"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.json"), True, 2, "error: No space left on device: out"),
        (OSError("no number"), False, 2, "error: no number"),
        (KeyboardInterrupt(), True, 130, "interrupted; the same command goes on from here"),
        (KeyboardInterrupt(), False, 130, "interrupted"),
    ],
)
def test_what_ends_a_command(
    error: BaseException, resumes: bool, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(raising(error), resumes) == status
    line = capsys.readouterr().err.strip()
    assert line.startswith(said) and "\n" not in line and resumes >= ("goes on" in line)
    assert exit_status(lambda: 1, resumes) == 1


def test_a_file_is_tried_without_being_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures.json"
    check_writable("--json", None)
    check_writable("--json", file)
    assert not list(tmp_path.iterdir())
    file.write_text("of before")
    check_writable("--json", file)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of before"]
    with pytest.raises(ValueError, match=r"--json is .*, and that is a directory: name a file in it"):
        check_writable("--json", tmp_path)
    with pytest.raises(ValueError, match=r"and there is no directory .*figures.json: make it first"):
        check_writable("--json", file / "more.json")
    # A test may run as root, who can write everywhere.
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: raising(PermissionError(errno.EACCES, "denied"))())
    with pytest.raises(ValueError, match=r"--json is .* cannot be written \(denied\): choose another"):
        check_writable("--json", file)
