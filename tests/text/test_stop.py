"""Stop strings cut a text in the same place however it arrives, and no piece of one is ever shown."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kangaroo_jax.text import StopScanner

ALPHABET = "abé🦘"
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=4)


def cut(text: str, stops: list[str]) -> str | None:
    """Return the text before its stop string, straight from the definition; None if there is no stop string."""
    for end in range(1, len(text) + 1):
        if starts := [end - len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: min(starts)]
    return None


def begun(text: str, stops: list[str]) -> str:
    """Return the longest suffix that is a proper prefix of a stop string."""
    prefixes = {stop[:length] for stop in stops for length in range(len(stop))} | {""}
    return max((prefix for prefix in prefixes if text.endswith(prefix)), key=len)


def split(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(bounds)]


@given(stops=STOPS, text=st.text(ALPHABET, max_size=14), cuts=st.lists(st.integers(0, 14), max_size=14))
@example(stops=["abab", "ba"], text="abab", cuts=[1, 2, 3])  # Overlapping: the one that ends first.
@example(stops=["b", "aab", "ab"], text="éaab", cuts=[])  # All end together: the one that starts first.
@example(stops=["aab"], text="aaab", cuts=[2, 3])  # The beginning that was held back is let go by one character.
def test_any_pieces_give_what_the_definition_gives(stops: list[str], text: str, cuts: list[int]) -> None:
    scanner = StopScanner(stops)
    shown, arrived = "", ""
    for piece in split(text, cuts):
        shown += scanner.push(piece)
        arrived += piece
        expected = cut(arrived, stops)
        assert scanner.stopped == (expected is not None)
        # Neither less nor more than is certain.
        assert shown == (arrived.removesuffix(begun(arrived, stops)) if expected is None else expected)
    shown += scanner.finish()
    assert shown == (text if cut(text, stops) is None else cut(text, stops))


# Numbers stand for special tokens, whose texts, other than letters, may also be spelled.
@given(
    stops=st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=4),
    parts=st.lists(st.sampled_from(["a", "b", "<", ">", 0, 1]), max_size=14),
)
@example(stops=["a<a>", "b"], parts=["a", 0, 1, "b"])  # The longer token is meant.
@example(stops=["<a>"], parts=["a", 0, "<", "a", ">"])  # Alone it is none of this scanner's.
@example(stops=["bb", "a<a"], parts=["b", 0, "b"])  # A token that a stop string lacks does not keep it from its place.
@example(stops=["b<a", "a<a>"], parts=["b", 1, 0])
def test_special_tokens_within_stop_strings(stops: list[str], parts: list[Any]) -> None:
    special = ["<a", "<a>"]
    scanner = StopScanner(stops, special)
    mixed = [stop.replace("<a>", "1").replace("<a", "0") for stop in stops if stop not in special]
    shown = "".join(
        scanner.push(part if isinstance(part, str) else scanner.marks.get(special[part], "")) for part in parts
    )
    whole, ends = "".join(map(str, parts)), []
    for stop in [*stops, *mixed]:
        hidden = {"0", "1"} - {*stop}
        seen = [place for place, character in enumerate(whole) if character not in hidden]
        if (before := cut("".join(whole[place] for place in seen), [stop])) is not None:
            ends.append((seen[len(before) + len(stop) - 1], seen[len(before)]))
    assert scanner.stopped == bool(ends)
    left = whole[: min(ends)[1]] if ends else whole
    assert shown + scanner.finish() == left.replace("0", "").replace("1", "")


def test_nothing_is_shown_after_a_stop() -> None:
    scanner = StopScanner(["."])
    assert [scanner.push("hop. and"), scanner.push(" hop"), scanner.finish()] == ["hop", "", ""]


def test_a_beginning_is_held_back_until_it_is_certain() -> None:
    scanner = StopScanner(["\nUser:"])
    assert [scanner.push(piece) for piece in ["hi\n", "Use", "less\n"]] == ["hi", "", "\nUseless"]
    assert scanner.finish() == "\n"
    assert not scanner.stopped


@pytest.mark.parametrize("stops", ["stop", 3, ["a", 3], [b"a"], None])
def test_what_is_no_list_of_strings(stops: object) -> None:
    with pytest.raises(ValueError, match=r"stop_strings is .*; pass a list of strings"):
        StopScanner(stops)  # type: ignore[arg-type]


def test_empty_stop_string() -> None:
    with pytest.raises(ValueError, match="empty string, which every text contains; leave it out"):
        StopScanner(["a", ""])
