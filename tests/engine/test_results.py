"""Stats and Generation from hand-made rounds: rates, confidences, origins, and the view for notebooks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo_jax import Generation, Stats

# Round by round: all 3 drafts accepted; the first of 2 rejected; 2 of 3 accepted, the last rejected; 2 of 3 accepted,
# and the text ends with the second of them.
STATS = Stats(
    method="kangaroo",
    gamma=4,
    eta=0.6,
    new_tokens=11,
    accept_lengths=(4, 1, 3, 2),
    draft_lengths=(3, 2, 3, 3),
    accepted_drafts=(3, 0, 2, 2),
    confidence=((0.9, 0.8, 0.5), (0.7, 0.4), (0.95, 0.85, 0.3), (0.99, 0.88, 0.2)),
    prompt_tokens=20,
    prefilled_tokens=20,
    batch_size=1,
    prefill_seconds=0.1,
    decode_seconds=0.4,
    compile_seconds=2.5,
)
TEXTS = tuple("abcdefghijk")
PLAIN = dataclasses.replace(
    STATS,
    method="plain",
    gamma=0,
    eta=0.0,
    new_tokens=4,
    accept_lengths=(1, 1, 1),
    draft_lengths=(0, 0, 0),
    accepted_drafts=(0, 0, 0),
    confidence=((), (), ()),
)


def generation(token_texts: tuple[str, ...], stats: Stats, reason: str = "length") -> Generation:
    return Generation("".join(token_texts), tuple(range(len(token_texts))), reason, stats, token_texts)


OUT = generation(TEXTS, STATS)


@st.composite
def stats(draw: st.DrawFn) -> Stats:
    """Stats of any run, plain ones and those without rounds too; the end may cut the last round."""
    gamma = draw(st.integers(0, 4))
    rounds = []
    for drafted in draw(st.lists(st.integers(min(gamma, 1), gamma), max_size=6)):
        rounds.append((drafted, draw(st.integers(0, drafted))))
    committed = [accepted + 1 for _, accepted in rounds]
    if committed:
        committed[-1] = draw(st.integers(1, committed[-1]))
    confidence = [tuple(draw(st.floats(0, 1)) for _ in range(drafted)) for drafted, _ in rounds]
    seconds = st.one_of(st.just(0.0), st.floats(1e-9, 1000))  # no clock is finer than a nanosecond
    return Stats(
        method="kangaroo" if gamma else "plain",
        gamma=gamma,
        eta=draw(st.floats(0, 2)),
        new_tokens=1 + sum(committed) if rounds else draw(st.integers(0, 1)),
        accept_lengths=tuple(committed),
        draft_lengths=tuple(drafted for drafted, _ in rounds),
        accepted_drafts=tuple(accepted for _, accepted in rounds),
        confidence=tuple(confidence),
        prompt_tokens=9,
        prefilled_tokens=draw(st.integers(1, 9)),
        batch_size=draw(st.integers(1, 3)),
        prefill_seconds=draw(seconds),
        decode_seconds=draw(seconds),
        compile_seconds=draw(seconds),
    )


@st.composite
def generations(draw: st.DrawFn) -> Generation:
    cost = draw(stats())
    piece = st.one_of(
        st.sampled_from(["", " ", "\n", "<b>", "&amp;", "</pre>", '"', "é漢", "$x$"]), st.text(max_size=3)
    )
    texts = draw(st.lists(piece, min_size=cost.new_tokens, max_size=cost.new_tokens))
    return generation(tuple(texts), cost, draw(st.sampled_from(["stop", "length"])))


def test_rates() -> None:
    assert (STATS.rounds, STATS.accepted) == (4, 7)
    assert STATS.compression_rate == 10 / 4
    assert STATS.acceptance_rate == 7 / 11
    assert STATS.ctar == (3 / 4, 2 / 4, 1 / 4, 0.0)
    assert STATS.tokens_per_second == 11 / 0.5


def test_acceptance_by_position_ends_with_the_longest_draft() -> None:
    assert STATS.acceptance_by_position == (3 / 4, 3 / 4, 1 / 3)  # gamma is 4, and no round drafted a fourth token


def test_a_token_behind_a_rejected_one_is_not_accepted() -> None:
    one = dataclasses.replace(STATS, draft_lengths=(3, 1), accepted_drafts=(0, 1))
    assert one.acceptance_by_position == (1 / 2, 0.0, 0.0)


def test_confidence_by_fate_leaves_out_what_was_never_judged() -> None:
    assert STATS.confidence_accepted == (0.9, 0.8, 0.5, 0.95, 0.85, 0.99, 0.88)
    assert STATS.confidence_rejected == (0.7, 0.3, 0.2)  # not 0.4, which follows a rejected token


def test_plain_decoding_has_no_drafts() -> None:
    assert (PLAIN.accepted, PLAIN.acceptance_rate, PLAIN.compression_rate) == (0, 0.0, 1.0)
    assert PLAIN.acceptance_by_position == PLAIN.confidence_accepted == PLAIN.confidence_rejected == PLAIN.ctar == ()


@pytest.mark.parametrize(
    ("given_stats", "line"),
    [
        (STATS, "11 tokens, 22 tokens/s, 4 rounds, compression rate 2.50, acceptance rate 0.64"),
        (PLAIN, "4 tokens, 8.0 tokens/s, 3 rounds"),
        (
            dataclasses.replace(STATS, batch_size=3),
            "11 tokens, 22 tokens/s in a batch of 3, 4 rounds, compression rate 2.50, acceptance rate 0.64",
        ),
        (
            dataclasses.replace(
                STATS, new_tokens=1, accept_lengths=(), draft_lengths=(), accepted_drafts=(), confidence=()
            ),
            "1 token, 2.0 tokens/s, 0 rounds",
        ),
    ],
    ids=["kangaroo", "plain", "batch", "no round"],
)
def test_summary(given_stats: Stats, line: str) -> None:
    assert given_stats.summary() == line


@given(any_stats=stats())
def test_stats_survive_json(any_stats: Stats) -> None:
    fields = any_stats.as_dict()
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    assert set(fields) > {field.name for field in dataclasses.fields(Stats)} | {"accepted", "acceptance_by_position"}


@given(any_stats=stats())
def test_every_draft_has_one_fate_at_most(any_stats: Stats) -> None:
    accepted, rejected = any_stats.confidence_accepted, any_stats.confidence_rejected
    assert len(accepted) == any_stats.accepted
    rounds = zip(any_stats.draft_lengths, any_stats.accepted_drafts, strict=True)
    assert len(rejected) == sum(taken < drafted for drafted, taken in rounds)


@given(any_stats=stats())
def test_acceptance_by_position_weighs_up_to_the_accepted_tokens(any_stats: Stats) -> None:
    shares = any_stats.acceptance_by_position
    drafted = [sum(k >= w for k in any_stats.draft_lengths) for w in range(1, len(shares) + 1)]
    assert all(drafted) and sum(drafted) == sum(any_stats.draft_lengths)
    assert round(sum(map(float.__mul__, shares, map(float, drafted))), 6) == any_stats.accepted


def test_origins_of_hand_made_rounds() -> None:
    #                                    prefill | 3 drafts, own | own | 2 drafts, own | 2 drafts, end
    assert "".join("d" if drafted else "." for drafted in OUT.origins) == ". ddd. . dd. dd".replace(" ", "")


def test_an_end_after_one_of_two_accepted_drafts() -> None:
    cut = dataclasses.replace(STATS, new_tokens=10, accept_lengths=(4, 1, 3, 1))
    assert generation(TEXTS[:10], cut).origins == OUT.origins[:10]


def test_spans_of_hand_made_rounds() -> None:
    assert OUT.spans() == (("a", False), ("bcd", True), ("ef", False), ("gh", True), ("i", False), ("jk", True))


def test_half_a_character_belongs_to_the_token_that_completes_it() -> None:
    # Of the four bytes of one character the last is the target's own; so is the token without a text.
    texts = ("a", "", "", "", "🦘", "", "g", "h", "", "j", "k")
    assert generation(texts, STATS).spans() == (("a🦘", False), ("ghjk", True))


def test_plain_decoding_is_all_the_targets_own() -> None:
    out = generation(("a", "b", "c", "d"), PLAIN)
    assert out.origins == (False,) * 4 and out.spans() == (("abcd", False),)


@given(out=generations())
def test_origins_and_spans_cover_the_text(out: Generation) -> None:
    assert len(out.origins) == out.stats.new_tokens
    assert sum(out.origins) <= out.stats.accepted
    spans = out.spans()
    assert "".join(text for text, _ in spans) == out.text
    assert all(text for text, _ in spans)
    assert all(before[1] != after[1] for before, after in itertools.pairwise(spans))


def test_token_texts_that_do_not_fit_the_rounds_are_noticed() -> None:
    with pytest.raises(ValueError, match="zip"):
        generation(TEXTS[:-1], STATS).spans()


def test_str_is_the_text_and_repr_is_short() -> None:
    long = dataclasses.replace(OUT, text="line\n" * 1000)
    assert str(long) == long.text
    assert repr(OUT) == f"Generation('abcdefghijk', finish_reason='length', {STATS.summary()})"
    assert repr(long).startswith("Generation('line\\nline\\n") and "..." in repr(long)
    assert len(repr(long)) < 250 and "\n" not in repr(long)
    assert repr(STATS) == f"Stats(kangaroo, gamma 4, eta 0.6: {STATS.summary()})"


class Reader(HTMLParser):
    """Reads the view: tags must be closed in order; keeps the text of <pre> by tint, and all other text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.styles: set[str] = set()
        self.pre: list[tuple[str, bool]] = []
        self.rest = ""
        self.feed(source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.styles |= {value for _, value in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "pre" not in self.open:
            self.rest += data
            return
        tinted = self.open[-1] == "span"
        if self.pre and self.pre[-1][1] == tinted:
            data = self.pre.pop()[0] + data
        self.pre.append((data, tinted))

    def shown(self) -> tuple[tuple[str, bool], ...]:
        """Return what a browser shows of <pre>: it drops a line break at the very start."""
        (first, tinted), *others = self.pre
        assert not tinted
        return tuple(run for run in ((first.removeprefix("\n"), False), *others) if run[0])


@pytest.mark.parametrize("source", ["<div><b>a</div></b>", "<pre>a", "a</pre>"])
def test_a_wrong_nesting_is_noticed(source: str) -> None:
    with pytest.raises(AssertionError):
        Reader(source)


@given(out=generations())
def test_the_view_shows_the_text_and_nothing_of_it_is_markup(out: Generation) -> None:
    view = Reader(out._repr_html_())
    assert view.shown() == out.spans()
    assert view.tags <= {"div", "pre", "span"} and view.attributes == {"style"}
    assert not re.search(r"url|@|expression", " ".join(view.styles))


def test_a_text_that_begins_with_line_breaks_keeps_them() -> None:
    out = generation(("\n\n", "a", "b", "c"), PLAIN)
    assert out._repr_html_().partition("<pre")[2].partition(">")[2].startswith("\n\n\na")


def test_the_view_tells_what_the_tint_means_and_what_it_cost() -> None:
    rest = Reader(OUT._repr_html_()).rest
    assert "drafted and accepted: 7" in rest and "the target's own: 4" in rest
    assert STATS.summary() in rest and "finish reason: length" in rest
    assert "prefill 100 ms (20 prompt tokens), decode 400 ms, compile 2.50 s" in rest


def test_the_view_tells_what_a_chat_kept() -> None:
    kept = dataclasses.replace(STATS, prefilled_tokens=5)
    assert "prefill 100 ms (5 of 20 prompt tokens)" in Reader(generation(TEXTS, kept)._repr_html_()).rest


def test_the_view_of_plain_decoding_has_neither_tint_nor_legend() -> None:
    source = generation(("a", "b", "c", "d"), PLAIN, "stop")._repr_html_()
    assert "background" not in source and "accepted" not in source
    assert "finish reason: stop" in Reader(source).rest
