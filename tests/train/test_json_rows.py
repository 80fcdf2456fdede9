"""The rows of JSON files: whole, cut at any byte, broken in the middle, and of any size."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from train import json_rows as module
from train.data import Conversation, read_sources
from train.json_rows import BrokenOff, json_rows
from train.rows import BadRows

ROWS: list[Any] = [
    {"id": 'a"\\', "conversations": [{"from": "human", "value": "[1, 2]}] \u00e9\u2028\U0001f998 \\u0041"}]},
    {"text": "", "n": -12.5e3, "flag": True, "none": None},
    {},
    {"text": "x" * 70, "deep": [[[{}]], []]},
]


def rows_of(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, chunk: int = 7) -> list[Any]:
    monkeypatch.setattr(module, "CHUNK", chunk)
    path.write_bytes(content)
    return list(json_rows(path))


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_an_array_gives_its_elements(
    tmp_path: Path, options: Any, encoding: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(ROWS, **options).replace("\n", "\r\n")
    for chunk in (1, 7, 1 << 20):
        assert rows_of(tmp_path / f"a{suffix}", text.encode(encoding), monkeypatch, chunk) == ROWS
    assert rows_of(tmp_path / "b.json", b" \n[ ]\n", monkeypatch) == []


def test_an_array_that_is_cut_anywhere_gives_the_rows_before_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.dumps(ROWS, ensure_ascii=False).encode()
    ends = [len(json.dumps(ROWS[: count + 1], ensure_ascii=False).encode()) - 1 for count in range(len(ROWS))]
    for size in range(1, len(content)):
        *whole, broken = rows_of(tmp_path / "a.json", content[:size], monkeypatch)
        assert whole == ROWS[: sum(end <= size for end in ends)]
        assert broken == BrokenOff(([0, *ends][len(whole)]), size)


@pytest.mark.parametrize(
    "wrong",
    [
        b'{"text": "no end}, {"text": "b"}',
        b'{"text": "a line\nend"}',
        b'{"text" "b"}',
        b'{"text": nul}',
        b"}",
        b"{" * 5000,
        b"\0" * 50,
        b"9" * 5000,
    ],
)
def test_an_array_that_is_broken_within_is_read_up_to_there(
    tmp_path: Path, wrong: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b'[{"text": "a"}, ' + wrong + b"," + b' {"text": "c"},' * 50 + b"{}]"
    assert rows_of(tmp_path / "a.json", content, monkeypatch) == [{"text": "a"}, BrokenOff(14, len(content))]


def test_what_follows_an_array_is_not_lost_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_of(tmp_path / "a.json", b"[{}]\n" + b" " * 99, monkeypatch) == [{}]
    for rest in (b"[{}]", b" \n{}", b"\n" + b" " * 99 + b"x"):
        found = rows_of(tmp_path / "a.json", b"[{}]" + rest, monkeypatch, 1 << 20)
        assert found == [{}, BrokenOff(4, 4 + len(rest))]


def test_a_last_line_that_is_cut_is_told_from_a_broken_one(tmp_path: Path) -> None:
    file, good = tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": \r\n'
    file.write_bytes(good + b'{"text": "b"}')  # Whole, without a line end.
    assert list(json_rows(file)) == [{"text": "a"}, b"", None, {"text": "b"}]
    file.write_bytes(good + b'{"text": "\xc3')
    assert list(json_rows(file)) == [{"text": "a"}, b"", None, BrokenOff(len(good), len(good) + 11)]


def test_bytes_that_are_no_text_spoil_their_row_alone(tmp_path: Path) -> None:
    file, bad = tmp_path / "a.json", BadRows()
    file.write_bytes(b'[{"text": "caf\xe9"}, {"text": "caf\xc3\xa9"}]')
    assert [item.text for item in read_sources([str(file)], bad)] == ["caf\u00e9"]  # type: ignore[union-attr]
    assert bad.first == {"text that is no Unicode": [f"{file}:1"]}


def test_a_broken_off_file_gives_its_rows_in_little_memory_and_says_what_is_lost(tmp_path: Path) -> None:
    turns = [{"from": ("human", "gpt")[i % 2], "value": f"turn {i} " * 80} for i in range(8)]
    content = json.dumps([{"id": "a_0", "conversations": turns}] * 3000, indent=2).encode()[:-3000]
    file, bad = tmp_path / "ShareGPT.json", BadRows()
    file.write_bytes(content)
    tracemalloc.start()
    kept = sum(isinstance(item, Conversation) for item in read_sources([str(file)], bad))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept == 2999 and peak < 8 * module.CHUNK < len(content)
    start = content.rindex(b",\n  {\n")
    lost = f"{file}:3000, 2,999 rows before byte {start:,} of {len(content):,}"
    assert str(bad) == f"1 of 3,000 rows left out: 1 x a file that breaks off ({lost})"
