"""A journal goes on after a cut line, and is never gone on with by other work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workshop.journal import Journal

SETTINGS = {"gamma": 6, "data": ["a"], "seed": None}


@settings(max_examples=40)
@given(cut=st.integers(0, 200))
def test_a_journal_cut_anywhere_goes_on_with_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal"
    journal, records = Journal(path, SETTINGS), [["é", 1], {"b": 2}, 3]
    for record in records:
        journal.add(record)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    again = Journal(path, SETTINGS)
    assert again.records == records[: max(whole[:cut].count(b"\n") - 1, 0)]
    for record in records[len(again.records) :]:
        again.add(record)
    assert path.read_bytes() == whole


def test_other_settings_are_refused_and_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, SETTINGS).add(1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="holds a run with seed None, not 7; pass another --out, or delete"):
        Journal(path, SETTINGS | {"seed": 7})
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"my notes", b'{"text": 1}\n', b'{"settings": 5}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is in the way"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == content


def test_a_damaged_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(json.dumps({"settings": SETTINGS}) + '\n{"broken\n')
    with pytest.raises(ValueError, match=r"is damaged .*; delete it to start anew") as caught:
        Journal(path, SETTINGS)
    assert "\n" not in str(caught.value)
