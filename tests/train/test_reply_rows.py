"""What a row asks turn after turn, which prompts go together, and the form that rows come out in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo_jax.text import Tokenizer, load_tokenizer
from train.byte_tokenizer import write_byte_tokenizer
from train.conversation import Messages
from train.reply_rows import COMPLETE, CUT, EMPTY, Pool, Reply, Row, beginning, in_their_form, read_rows


def reply(text: str, *, cut: bool = False) -> Reply:
    return Reply(text, len(text) + 1, 1, cut)


def turns(*contents: str) -> Messages:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(directory)
    return load_tokenizer(directory)


def test_new_replies_are_the_history_of_the_next_turn() -> None:
    system = [{"role": "system", "content": "Be brief."}]
    row = Row("a:1", [*system, *turns("one?", "old", "two?", "older")])
    assert row.turns == row.left == 2
    assert row.spoken() == [*system, *turns("one?")]
    row.add(reply("new"))
    assert (row.left, row.ended) == (1, None) and row.spoken() == [*system, *turns("one?", "new", "two?")]
    row.add(reply("newer"))
    assert (row.left, row.ended) == (0, COMPLETE) and row.spoken() == [*system, *turns("one?", "new", "two?", "newer")]


@pytest.mark.parametrize(("last", "ended", "kept"), [(reply("ne", cut=True), CUT, 1), (reply(""), EMPTY, 0)])
def test_a_reply_without_an_end_is_the_last_one_and_an_empty_one_is_none(last: Reply, ended: str, kept: int) -> None:
    row = Row("a:1", turns("one?", "old", "two?", "older"))
    row.add(last)
    assert (row.ended, row.left, len(row.replies)) == (ended, 0, kept)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 7))
def test_the_shortest_prompts_go_first_in_full_batches(lengths: list[int], count: int) -> None:
    rows = [Row(str(length), text="x" * length) for length in lengths]
    pool = Pool(rows, lambda row: [7] * len(row.text), context=15)
    for index in range(len(rows)):
        pool.offer(index)
    batches = []
    while batch := pool.take(count):
        batches.append(batch)
    taken = [pair for batch in batches for pair in batch]
    fit = [index for index, length in enumerate(lengths) if length < 15]
    assert [index for index, _ in taken] == sorted(fit, key=lambda index: (lengths[index], index))
    assert all(ids == [7] * lengths[index] for index, ids in taken)
    assert all(len(batch) == count for batch in batches[:-1])
    assert {row.ended for row, length in zip(rows, lengths, strict=True) if length >= 15} <= {
        "a prompt of 15 tokens or more"
    }


def test_a_turn_that_cannot_be_asked_ends_its_row() -> None:
    rows = [Row("a:1", text="x"), Row("a:2", text="")]

    def encode(row: Row) -> list[int]:
        if row.text:
            raise ValueError("the chat template fails (no); change it")
        return []

    pool = Pool(rows, encode, 9)
    for index in (0, 1):
        pool.offer(index)
    assert [row.ended for row in rows] == ["the chat template fails (no)", "a prompt without a token"]
    assert pool.take(5) == []


def test_a_beginning_has_so_many_tokens_and_no_half_character(tokenizer: Tokenizer) -> None:
    assert beginning("  def f():\n    return 1\n", tokenizer, 7) == "  def f"
    assert beginning("aé", tokenizer, 2) == "a" and beginning("aé", tokenizer, 3) == "aé"
    assert beginning("short", tokenizer, 99) == "short"


def rewritten_table(file: Path, table: list[Any], *replies: str) -> list[dict[str, Any]]:
    """Return the rows of a table, after each has got as many of the replies as it takes."""
    file.write_text(json.dumps(table))
    rows, _ = read_rows([str(file)], None)
    for row in rows:
        for text in replies:
            if row.left:
                row.add(reply(text))
    return list(in_their_form(rows, [str(file)], None))


SHAREGPT = [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "old"}]
MESSAGES = turns("one?", "old")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"id": "x", "conversations": SHAREGPT, "lang": None},
            {"id": "x", "conversations": [SHAREGPT[0], {"from": "gpt", "value": "A"}], "lang": None},
        ),
        (
            {"conversations": [{"from": "gpt", "value": "Hi!"}, *SHAREGPT, SHAREGPT[0]]},
            {"conversations": [SHAREGPT[0], {"from": "gpt", "value": "A"}]},
        ),
        (
            {"messages": [{"role": "system", "content": "S"}, *MESSAGES, *MESSAGES], "n": 3},
            {"messages": [{"role": "system", "content": "S"}, *turns("one?", "A", "one?", "B")], "n": 3},
        ),
        ({"conversations": MESSAGES}, {"conversations": turns("one?", "A")}),
        (
            {"conversations": SHAREGPT, "messages": MESSAGES},
            {"conversations": [SHAREGPT[0], {"from": "gpt", "value": "A"}]},
        ),
        ({"messages": json.dumps(MESSAGES)}, {"messages": turns("one?", "A")}),
        ({"text": "def f", "id": 5}, {"text": "def fA", "id": 5}),
    ],
)
def test_rows_keep_their_form_and_their_other_fields(
    tmp_path: Path, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert rewritten_table(tmp_path / "t.json", [{"id": "bad"}, row], "A", "B") == [expected]


def test_rows_come_in_their_order_without_those_that_have_no_reply(tmp_path: Path) -> None:
    file, folder = tmp_path / "t.json", tmp_path / "texts"
    table = [{"text": "a"}, {"text": " "}, {"text": "b"}, {"text": "c"}]
    file.write_text(json.dumps(table))
    folder.mkdir()
    (folder / "one.py").write_text("d")
    names = [str(file), str(folder), str(file)]
    rows, bad = read_rows(names, None)
    for row in rows:
        row.add(reply("" if row.text == "b" else "!"))
    assert [row["text"] for row in in_their_form(rows, names, None)] == ["a!", "c!", "d!", "a!", "c!"]
    assert bad.counts == {"an empty text": 2}


def test_data_that_has_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps([{"messages": MESSAGES}] * 2))
    rows, _ = read_rows([str(file)], None)
    for row in rows:
        row.add(reply("A"))
    for changed in ([{"messages": MESSAGES}], [{"messages": turns("other?", "old")}] * 2, [{"messages": []}] * 2):
        file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="has changed since it was read"):
            list(in_their_form(rows, [str(file)], None))


def test_texts_and_conversations_come_together_in_their_order(tmp_path: Path) -> None:
    table = [{"text": "a"}, {"messages": MESSAGES}, {"text": "b"}]
    (tmp_path / "t.json").write_text(json.dumps(table)[:-1])
    (tmp_path / "one.md").write_text("line\n" * 200)
    names = [str(tmp_path / name) for name in ("t.json", "one.md", "t.json")]
    rows, bad = read_rows(names, None)
    assert [row.messages is None for row in rows] == [True, False, True, True, True, False, True]
    assert rows[3].text == "line\n" * 200 and bad.counts == {"a file that breaks off": 2}
    for row in rows:
        row.add(reply("A", cut=True))
    written = list(in_their_form(rows, names, None))
    assert written[:3] == [{"text": "aA"}, {"messages": turns("one?", "A")}, {"text": "bA"}] == written[4:]
