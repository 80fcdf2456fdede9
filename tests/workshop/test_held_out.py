"""Which files are text, and which of them are held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from workshop.held_out import is_held_out, read_sources, split_sources, standard_library


def test_a_folder_is_split_by_the_paths_in_it(text_folder: Path) -> None:
    (text_folder / "site-packages").mkdir()
    (text_folder / "site-packages" / "installed.py").write_text("x = 1\n")
    (text_folder / "latin.py").write_bytes(b"caf\xe9")
    (text_folder / "empty.py").write_text("\n")
    files = read_sources(text_folder)
    assert len(files) == 30 and {file.name for file in files}.isdisjoint({"latin.py", "empty.py"})
    train, held = split_sources([text_folder])
    assert [file.name for file in held] == [file.name for file in files if is_held_out(file.name)] != []
    assert sorted([*train, *held], key=lambda file: file.name) == files


def test_other_kinds_of_text_can_be_asked_for(text_folder: Path) -> None:
    (text_folder / "aaa.md").write_text("words\n")
    assert [file.name for file in read_sources(text_folder, (".txt", ".md"))] == ["aaa.md"]
    assert len(read_sources(text_folder, (".py", ".md"))) == 31


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.py files below"):
        split_sources([tmp_path])


def test_a_twentieth_of_the_standard_library_is_held_out() -> None:
    train, held = split_sources([standard_library()])
    assert 0.03 < len(held) / len([*train, *held]) < 0.07
    assert not {file.name for file in train} & {file.name for file in held}
