"""A reader gives the same text, count and text of each id however the ids arrive."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kangaroo_jax.text import Detokenizer, Reader, StopScanner, Tokenizer

CUTS = st.lists(st.integers(0, 40), max_size=20)
STOPS = st.lists(st.text("ahop é漢\ufffd", min_size=1, max_size=4), max_size=3)
BYTES = st.sampled_from([0, 1, 2, 3 + 0xFF, *(3 + byte for byte in "ahop é漢🦘".encode())])
# Words (259 to 267, see conftest.py), special tokens, and the bytes of "é漢" and of nothing.
FALLBACK = st.sampled_from([0, 2, 3 + 0xFF, *range(259, 268), *(3 + byte for byte in "é漢".encode())])
HAN = [3 + byte for byte in "漢".encode()]


def split(ids: list[int], cuts: list[int]) -> list[list[int]]:
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    return [ids[start:stop] for start, stop in itertools.pairwise(bounds)]


def check(tokenizer: Tokenizer, prompt: list[int], blocks: list[list[int]], stops: list[str]) -> Reader:
    """Read the blocks, compare with reading id by id and with the whole text, and return the reader."""
    ids = list(itertools.chain(*blocks))
    one_by_one, reader = Reader(tokenizer, prompt, stops), Reader(tokenizer, prompt, stops)
    pieces = [one_by_one.push([token]) for token in ids] + [one_by_one.finish()]
    shown = ""
    for block in blocks:
        shown += reader.push(block)
        assert reader.text == shown
    shown += reader.finish()
    assert reader.text == shown == "".join(pieces)
    assert (reader.stopped, reader.count) == (one_by_one.stopped, one_by_one.count)
    assert reader.token_texts == one_by_one.token_texts
    assert len(reader.token_texts) == reader.count <= len(ids)
    assert "".join(reader.token_texts) == shown

    detokenizer, scanner = Detokenizer(tokenizer, prompt), StopScanner(stops)
    assert scanner.push(detokenizer.push(ids) + detokenizer.finish()) + scanner.finish() == shown
    assert scanner.stopped == reader.stopped
    assert reader.stopped or reader.count == len(ids)
    return reader


@given(prompt=st.lists(BYTES, max_size=5), ids=st.lists(BYTES, max_size=30), cuts=CUTS, stops=STOPS)
def test_bytes(byte_level: Tokenizer, prompt: list[int], ids: list[int], cuts: list[int], stops: list[str]) -> None:
    check(byte_level, prompt, split(ids, cuts), stops)


@given(prompt=st.lists(FALLBACK, max_size=5), ids=st.lists(FALLBACK, max_size=30), cuts=CUTS, stops=STOPS)
@example(prompt=[1], ids=[*HAN, 3 + 0xFF, 260], cuts=[3], stops=["\ufffd"])
def test_byte_fallback(
    byte_fallback: Tokenizer, prompt: list[int], ids: list[int], cuts: list[int], stops: list[str]
) -> None:
    check(byte_fallback, prompt, split(ids, cuts), stops)


@given(text=st.text("ahop é漢🦘", max_size=20), cuts=CUTS, stops=STOPS)
def test_no_piece_ends_inside_a_character(byte_level: Tokenizer, text: str, cuts: list[int], stops: list[str]) -> None:
    reader = Reader(byte_level, [1], stops)
    blocks = split([3 + byte for byte in text.encode()], cuts)
    assert not any("\ufffd" in piece for piece in [*map(reader.push, blocks), reader.finish(), *reader.token_texts])


def ids_of(text: str) -> list[int]:
    return [3 + byte for byte in text.encode()]


def test_text_of_each_id_is_cut_at_the_stop(byte_fallback: Tokenizer) -> None:
    hop, space_hop, eos = 261, 260, 2
    reader = check(byte_fallback, [1], [[hop, space_hop, eos, hop, hop]], ["ophop"])
    assert (reader.text, reader.stopped, reader.count) == ("hop h", True, 4)
    assert reader.token_texts == ("hop", " h", "", "")


@pytest.mark.parametrize(
    ("text", "stop", "shown", "count"), [("\n", "\n", "", 1), ("\n\n\n", "\n\n", "", 2), ("漢。漢", "。", "漢", 6)]
)
def test_a_stop_within_a_run_of_bytes(byte_fallback: Tokenizer, text: str, stop: str, shown: str, count: int) -> None:
    hop = 261
    reader = check(byte_fallback, [1, hop], [[*ids_of(text)], [hop]], [stop])
    assert (reader.text, reader.stopped, reader.count) == (shown, True, count)


def test_a_budget_that_cuts_a_character_leaves_those_before(byte_fallback: Tokenizer) -> None:
    reader = check(byte_fallback, [1], [HAN, HAN[:2]], [])
    assert reader.token_texts == ("", "", "漢", "", "\ufffd\ufffd")


def test_special_tokens_in_a_stop_string(byte_fallback: Tokenizer) -> None:
    hop, space_hop, eos = 261, 260, 2
    ids = [hop, eos, space_hop, *HAN, eos, hop]
    for stop, shown, count in (("</s> h", "hop", 3), ("漢</s>", "hop hop", 7), ("</s>h", "hop hop漢", 8)):
        reader = Reader(byte_fallback, [1], [stop])
        assert reader.push(ids) + reader.finish() == reader.text == "".join(reader.token_texts) == shown
        assert (reader.stopped, reader.count) == (True, count)
    # As text it is what it spells; alone, the token ends texts elsewhere.
    assert check(byte_fallback, [1], [ids], ["</s>"]).text == "hop hop漢hop"
    assert check(byte_fallback, [1], [ids_of("a</s>")], ["</s>"]).text == "a"


def test_ids_after_the_stop_are_ignored(byte_level: Tokenizer) -> None:
    reader = Reader(byte_level, [1], ["é"])
    assert reader.push(ids_of("aéb")) == "a"
    assert [reader.push(ids_of("c")), reader.finish()] == ["", ""]
    assert (reader.count, reader.token_texts) == (3, ("a", "", ""))


def test_the_prompt_is_not_searched(byte_level: Tokenizer) -> None:
    reader = Reader(byte_level, byte_level.encode("a sto"), ["stop"])
    assert reader.push(ids_of("p stop")) == "p "
    assert reader.count == 6


def test_stop_string_that_completes_in_what_was_held_back(byte_level: Tokenizer) -> None:
    reader = Reader(byte_level, [1], ["o\ufffd"])
    assert reader.push([*ids_of("ho"), 3 + 0xE6]) == "h"
    assert (reader.finish(), reader.stopped, reader.count) == ("", True, 3)
    assert reader.token_texts == ("h", "", "")


def test_what_was_held_back_comes_out_at_the_end(byte_level: Tokenizer) -> None:
    reader = Reader(byte_level, [1], ["ox"])
    assert reader.push([*ids_of("ho"), 3 + 0xE6]) == "h"
    assert [reader.finish(), reader.finish()] == ["o\ufffd", ""]
    assert (reader.stopped, reader.token_texts) == (False, ("h", "o", "\ufffd"))


def test_arrays_and_nothing_at_all(byte_level: Tokenizer) -> None:
    reader = Reader(byte_level, np.array([1]))
    assert reader.push(np.array(ids_of("é"), np.int32)) == "é"
    nothing = Reader(byte_level, [1, 3 + 0xC3], ["a"])
    assert (nothing.finish(), nothing.count, nothing.token_texts) == ("", 0, ())


def test_empty_stop_string_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(ValueError, match="empty string"):
        Reader(byte_level, [1], [""])
