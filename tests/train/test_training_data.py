"""What ``--data`` accepts, what is held out, and the windows that are cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from train.batches import Shape
from train.corpus import BOS, BYTE_OFFSET, EOS, TokenTexts, encode_bytes, sample_windows
from train.data import Data, load_data, read_sources
from train.rows import BadRows
from train.texts import BLOCK_LINES, Unit, split_units, tokenize, window_batch
from workshop.held_out import SourceFile, cut_at_lines, is_held_out


class Bytes:
    """joey's tokenizer, without its files."""

    def encode(self, text: str) -> list[int]:
        return [BOS, *(BYTE_OFFSET + byte for byte in text.encode())]

    def decode(self, ids: list[int]) -> str:
        return bytes(i - BYTE_OFFSET for i in ids if i >= BYTE_OFFSET).decode(errors="replace")


def read_texts(paths: list[Path]) -> tuple[list[str], list[str]]:
    units = [unit for unit in read_sources([str(path) for path in paths], BadRows()) if isinstance(unit, Unit)]
    return split_units(units)


def load(path: Path) -> Data:
    return load_data([str(path)], Bytes(), Shape(1, 8), model="mine")  # type: ignore[arg-type]


def test_files_of_a_folder_are_held_out_by_their_relative_path(text_folder: Path) -> None:
    train, held = read_texts([text_folder])
    names = [file.relative_to(text_folder).as_posix() for file in sorted(text_folder.rglob("*.py"))]
    expected = [(text_folder / name).read_text() for name in names if is_held_out(name)]
    assert len(names) == 30 and expected  # The names are such that some are held out.
    assert held == expected and len(train) == 30 - len(held)
    assert not set(train) & set(held)


def test_a_folder_is_searched_for_text_alone(text_folder: Path) -> None:
    before = read_texts([text_folder])
    (text_folder / "settings.json").write_text("{}")
    (text_folder / "image.png").write_bytes(b"\x89PNG")
    (text_folder / "latin.txt").write_bytes(b"caf\xe9 not UTF-8")
    (text_folder / ".hidden").mkdir()
    (text_folder / ".hidden" / "secret.py").write_text("x = 1\n")
    (text_folder / "empty.md").write_text(" \n")
    assert read_texts([text_folder]) == before


def test_a_single_file_is_held_out_by_blocks_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    lines = [f"line {index} of many\n" for index in range(BLOCK_LINES * 100)]
    file.write_text("".join(lines))
    train, held = read_texts([file])
    blocks = ["".join(lines[start : start + BLOCK_LINES]) for start in range(0, len(lines), BLOCK_LINES)]
    chosen = [block for block in blocks if is_held_out(block)]
    assert 1 <= len(chosen) <= 15
    assert "".join(held) == "".join(chosen)
    assert "".join(train) == "".join(block for block in blocks if not is_held_out(block))
    assert len(train) <= len(chosen) + 1  # Neighbouring blocks stay one text.


def test_a_small_file_still_has_held_out_text(tmp_path: Path) -> None:
    file = tmp_path / "short.md"
    file.write_text("word\n" * BLOCK_LINES + "other\n" * BLOCK_LINES + "third\n")
    train, held = read_texts([file])
    assert len(held) == 1 and train


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_tables_are_read_by_rows(tmp_path: Path, suffix: str) -> None:
    import pandas

    texts = [f"text of row {index}" for index in range(60)]
    file = tmp_path / f"table{suffix}"
    table = pandas.DataFrame({"id": range(60), "text": texts})
    if suffix == ".parquet":
        table.to_parquet(file)
    elif suffix == ".json":
        file.write_text(json.dumps(table.to_dict("records")))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    train, held = read_texts([file])
    assert held == [text for text in texts if is_held_out(text)] != []
    assert sorted(train + held) == sorted(texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "does not exist"),
        ("song.mp3", b"abc", "unknown suffix '.mp3'"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("empty.txt", b"", "no text in"),
        ("one.txt", b"a single line", "too little text in"),
        ("other.jsonl", b'{"content": "x"}\n', "columns ['content']; needed are 'conversations' of {from, value}"),
        ("broken.json", b"{not json\n", "cannot be read"),
        ("latin.json", b'[{"text": "caf\xe9"}]\n', "1 of 1 rows left out: 1 x text that is no Unicode"),
        ("cut.json", b'[{"text": "caf', "1 of 1 rows left out: 1 x a file that breaks off"),
        ("one.json", b'{"text":\n "caf', "cannot be read: Unterminated string"),
        ("broken.parquet", b"PAR?", "cannot be read"),
    ],
)
def test_errors_take_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load(tmp_path / name)
    assert message in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text in"):
        load(tmp_path)


def test_long_texts_are_tokenised_in_pieces_of_lines() -> None:
    text = "first line\nsecond\n" + "x" * 30 + "\nlast"
    pieces = list(cut_at_lines(text, 12))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 12
    assert pieces[:2] == ["first line\n", "second\n"]
    texts = tokenize([text * 3000, "ü\n"], Bytes(), EOS)
    assert (texts.tokens[0] == encode_bytes((text * 3000).encode())).all()
    assert (texts.tokens[1] == encode_bytes("ü\n".encode())).all()
    assert (texts.bos, texts.eos, texts.newlines.tolist()) == (BOS, EOS, [BYTE_OFFSET + 10])


def test_windows_are_those_of_the_formula() -> None:
    """The stream of joey's recipe, drawn with numpy's own weighted choice."""
    files = [SourceFile("a", b"x = 1\ny = 22\n\nz"), SourceFile("b", b"\n"), SourceFile("c", b"one line")]
    tokens = [encode_bytes(file.data) for file in files]
    weights = np.array([15, 1, 8]) / 24
    rng = np.random.default_rng(3)
    expected = []
    for _ in range(40):
        row: list[int] = []
        while len(row) < 19:
            text = tokens[rng.choice(3, p=weights)]
            at = int(rng.integers(len(text)))
            after = np.flatnonzero(text[at:] == BYTE_OFFSET + 10)
            row += [BOS, *text[at + after[0] + 1 if len(after) else 0 :], EOS]
        expected.append(row[:19])
    stream = sample_windows(files, 8, 19, seed=3)
    assert np.concatenate([next(stream) for _ in range(5)]).tolist() == expected


def test_batches_are_a_function_of_the_seed_and_eos_predicts_nothing() -> None:
    texts = TokenTexts([encode_bytes(b"ab\ncd\n"), encode_bytes(b"\n")], BOS, EOS, np.array([BYTE_OFFSET + 10]))
    one, same, other = (window_batch(texts, 5, 17, seed) for seed in ((0, 7), (0, 7), (0, 8)))
    assert (one["tokens"] == same["tokens"]).all() and not (one["tokens"] == other["tokens"]).all()
    assert (one["mask"] == (one["tokens"] != EOS)).all() and not one["mask"].all()
    assert (one["tokens"][:, 0] == BOS).all()


def test_windows_without_bos_and_eos_end() -> None:
    """A text that is one line end leaves nothing after its last line: the text itself is taken."""
    texts = TokenTexts([np.array([13], np.int32)], None, None, np.array([13]))
    batch = window_batch(texts, 2, 5, (0,))
    assert (batch["tokens"] == 13).all() and batch["mask"].all()
