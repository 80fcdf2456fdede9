"""Streamed pieces add up to what decoding everything at once gives, and never hold half a character."""

from __future__ import annotations

import itertools
import os

from hypothesis import example, given
from hypothesis import strategies as st

from kangaroo_jax.text import Detokenizer, Tokenizer


def stream(tokenizer: Tokenizer, prompt: list[int], blocks: list[list[int]]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [detokenizer.push(block) for block in blocks] + [detokenizer.finish()]


def continuation(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> str:
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
    return whole[len(os.path.commonprefix([before, whole])) :]  # noqa: RUF071


def split(ids: list[int], cuts: list[int]) -> list[list[int]]:
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    return [ids[start:stop] for start, stop in itertools.pairwise(bounds)]


CUTS = st.lists(st.integers(0, 40), max_size=20)


@given(prompt=st.text(max_size=10), text=st.text(max_size=40), cuts=CUTS)
def test_text_comes_back_in_whole_characters(byte_level: Tokenizer, prompt: str, text: str, cuts: list[int]) -> None:
    ids = [3 + byte for byte in text.encode()]
    pieces = stream(byte_level, byte_level.encode(prompt), split(ids, cuts))
    assert "".join(pieces) == text
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")
    # Nothing is held back longer than it must be: after each block all whole characters are out.
    done, shown = b"", ""
    for block, piece in zip(split(ids, cuts), pieces, strict=False):
        done, shown = done + bytes(i - 3 for i in block), shown + piece
        assert shown == done.decode(errors="ignore")


@given(prompt=st.lists(st.integers(0, 258), max_size=6), ids=st.lists(st.integers(0, 258), max_size=40), cuts=CUTS)
def test_any_bytes_and_special_tokens(
    byte_level: Tokenizer, prompt: list[int], ids: list[int], cuts: list[int]
) -> None:
    assert "".join(stream(byte_level, prompt, split(ids, cuts))) == continuation(byte_level, prompt, ids)


# Mostly specials and words (259 to 267, see conftest.py); the bytes are those of "é漢🦘" and two that are never UTF-8.
FALLBACK_IDS = st.sampled_from(
    [*range(3), *range(259, 268), *(3 + byte for byte in "é漢🦘".encode()), 3 + 0xFF, 3 + 0xC0]
)


HAN = [3 + byte for byte in "漢".encode()]


@given(prompt=st.lists(FALLBACK_IDS, max_size=6), ids=st.lists(FALLBACK_IDS, max_size=40), cuts=CUTS)
@example(prompt=[1], ids=[*HAN, 3 + 0xFF], cuts=[3])  # A whole character, and what is none.
@example(prompt=[1], ids=[*HAN[:2], 2, HAN[2], 2, 3 + 0xFF], cuts=[5])  # Special tokens do not end the run.
@example(prompt=[1], ids=[259, 260, 260, 259, 260], cuts=[1, 2, 3, 4])  # Spaces at the start of every window.
def test_byte_fallback_and_dropped_spaces(
    byte_fallback: Tokenizer, prompt: list[int], ids: list[int], cuts: list[int]
) -> None:
    assert "".join(stream(byte_fallback, prompt, split(ids, cuts))) == continuation(byte_fallback, prompt, ids)


def test_half_a_character_is_held_back(byte_level: Tokenizer) -> None:
    ids = [3 + byte for byte in b"a\xc3\xa9\xc3b\xff"]
    assert stream(byte_level, [1], [[i] for i in ids]) == ["a", "", "é", "", "\ufffdb", "\ufffd", ""]


def test_unfinished_character_comes_out_at_the_end(byte_level: Tokenizer) -> None:
    assert stream(byte_level, [1], [[3 + ord("a"), 3 + 0xE6, 3 + 0xBC]]) == ["a", "\ufffd"]


def test_prompt_that_ends_inside_a_character(byte_level: Tokenizer) -> None:
    assert stream(byte_level, [1, 3 + ord("a"), 3 + 0xC3], [[3 + 0xA9], [3 + ord("b")]]) == ["é", "b", ""]


def test_window_stays_short(byte_level: Tokenizer) -> None:
    decoded: list[int] = []

    class Counting(Tokenizer):
        def __init__(self) -> None:
            self.special_ids, self._characters = byte_level.special_ids, byte_level._characters

        def decode(self, ids: list[int]) -> str:  # type: ignore[override]
            decoded.append(len(ids))
            return byte_level.decode(ids)

    detokenizer = Detokenizer(Counting(), [1] + [3 + ord("p")] * 50)
    for _ in range(100):
        detokenizer.push([3 + ord("x")])
    assert max(decoded[6:]) <= 2
