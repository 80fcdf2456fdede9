"""Buckets, order, hosts and the split: every conversation once an epoch, every step the same batch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kangaroo_jax.text import load_tokenizer
from train.batches import BUCKET, Batch, Conversations, Counts, Mixed, Shape, Windows
from train.byte_tokenizer import write_byte_tokenizer
from train.corpus import BOS, EOS, TokenTexts
from train.data import Data, load_data
from train.render import Sample
from train.rows import BadRows


def samples_of(lengths: list[int]) -> list[Sample]:
    """Sample i has the token i + 1 all through, and counts from its second token on."""
    return [Sample(np.full(n, i + 1, np.int32), np.arange(n) > 0) for i, n in enumerate(lengths)]


def take(stream: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(stream, count))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all((a[k] == b[k]).all() for a, b in zip(one, other, strict=True) for k in ("tokens", "mask"))


LENGTHS = st.lists(st.integers(2, 700), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(1, 7), st.integers(0, 99), st.integers(0, 5))
def test_an_epoch_has_every_conversation_once(lengths: list[int], rows: int, seed: int, epoch: int) -> None:
    stream = Conversations(samples_of(lengths), Shape(rows, 700, seed))
    batches = take(stream.batches(epoch * stream.steps), stream.steps)
    found: list[tuple[int, int, int]] = []
    for batch in batches:
        assert batch["tokens"].shape == batch["mask"].shape and batch["tokens"].dtype == np.int32
        assert len(batch["tokens"]) == rows
        width = batch["tokens"].shape[1]
        longest = int((batch["tokens"] > 0).sum(1).max())
        assert width == min(-(-longest // BUCKET) * BUCKET, 700)  # No row is padded more than its batch needs.
        for row, kept in zip(batch["tokens"], batch["mask"], strict=True):
            size = int((row > 0).sum())
            assert (row[:size] == row[0]).all() and not row[size:].any() and not kept[size:].any()
            found += [(int(row[0]), size, int(kept.sum()))] if size else []
    assert sorted(found) == [(i + 1, n, n - 1) for i, n in enumerate(lengths)]
    assert stream.tokens == Counts(sum(lengths) - len(lengths), sum(lengths))


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(1, 7), st.integers(0, 60))
def test_a_stream_from_a_step_is_the_rest_of_the_stream(lengths: list[int], rows: int, first: int) -> None:
    stream = Conversations(samples_of(lengths), Shape(rows, 700, 3))
    assert same(take(stream.batches(0), first + 5)[first:], take(stream.batches(first), 5))


@pytest.mark.parametrize("kind", [Conversations, Windows])
def test_hosts_share_every_batch(kind: type) -> None:
    rng = np.random.default_rng(0)
    texts = TokenTexts([rng.integers(3, 99, 500).astype(np.int32)], BOS, EOS, np.array([13]))
    content = samples_of(rng.integers(2, 512, 33).tolist()) if kind is Conversations else texts
    whole = take(kind(content, Shape(6, 512, 5)).batches(2), 9)
    parts = [take(kind(content, Shape(6, 512, 5, host, 3)).batches(2), 9) for host in range(3)]
    joined = [{k: np.concatenate([p[k] for p in batch]) for k in batch[0]} for batch in zip(*parts, strict=True)]
    assert same(whole, joined)
    with pytest.raises(ValueError, match="batch of 6 rows on 4 hosts; use a multiple of 4"):
        Shape(6, 512, hosts=4)
    with pytest.raises(ValueError, match="host 3 of 3; hosts count from 0"):
        Shape(6, 512, host=3, hosts=3)


def test_epochs_and_seeds_differ_and_the_fixed_batches_do_not() -> None:
    samples = samples_of(list(range(2, 62)))
    one, other = (Conversations(samples, Shape(4, 128, seed)) for seed in (0, 1))
    assert not same(take(one.batches(0), 15), take(one.batches(15), 15))
    assert not same(take(one.batches(0), 15), take(other.batches(0), 15))
    assert same(list(one.fixed(4)), list(other.fixed(4))) and len(list(one.fixed(99))) == 15


def test_windows_are_those_of_their_step() -> None:
    texts = TokenTexts([np.arange(3, 200, dtype=np.int32)], BOS, EOS, np.array([13, 50]))
    stream = Windows(texts, Shape(3, 17, 4))
    assert same(take(stream.batches(0), 8)[5:], take(stream.batches(5), 3))
    assert stream.tokens == Counts(197, 197)
    assert same(list(stream.fixed(2)), list(Windows(texts, Shape(3, 17, 9)).fixed(2)))


def chat(question: str, reply: str) -> dict[str, list[dict[str, str]]]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]}


def load(file: Path, rows: list[Any]) -> Any:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_byte_tokenizer(file.parent)
    return load_data([str(file)], load_tokenizer(file.parent), Shape(4, 256), model="joey")


def test_conversations_are_held_out_by_what_they_say(tmp_path: Path) -> None:
    rows = [chat(f"question {index}", "reply") for index in range(200)]
    data, again = load(tmp_path / "a.jsonl", rows), load(tmp_path / "b.jsonl", rows[::-1])

    def texts(stream: Conversations) -> set[bytes]:
        return {sample.tokens.tobytes() for sample in stream.samples}

    held = texts(data.held_out)
    assert held == texts(again.held_out) and not held & texts(data.training)
    assert 2 <= len(held) <= 25 and len(held) + len(texts(data.training)) == 200
    assert data.digest != again.digest and data.digest == load(tmp_path / "c.jsonl", rows).digest
    assert data.tokens.trained == (len("reply") + 1) * (200 - len(held))  # joey's template ends a reply with a line.
    assert data.samples(3)[0]["tokens"].shape[0] == 3
    assert same(list(data.held_out_batches(9)), list(data.held_out.fixed(9)))
    assert same(take(data.batches(3), 2), take(data.training.batches(0), 5)[3:])


def test_rows_that_cannot_be_rendered_are_counted(tmp_path: Path) -> None:
    rows = [chat(f"question {index}", "reply") for index in range(5)]
    data = load(tmp_path / "a.jsonl", [*rows, chat("x" * 300, "reply"), {"conversations": []}])
    assert dict(data.bad_rows.counts) == {"conversations is empty": 1, "no reply within 256 tokens": 1}
    assert data.bad_rows.first["no reply within 256 tokens"] == [f"{tmp_path / 'a.jsonl'}:6"]
    assert len(data.training.samples) + len(data.held_out.samples) == 5
    for count in (1, 99):  # A batch of four that holds fewer has empty rows, which are not shown.
        rows = data.samples(count)[0]["tokens"]
        assert len(rows) == min(count, int(next(data.batches(0))["tokens"].any(1).sum())) and rows.any(1).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no text in"),
        ([{}, {}], "no usable row in --data"),
        ([{"conversations": []}], "no usable row in --data"),
        ([chat("x" * 300, "reply")], "1 of 1 rows left out: 1 x no reply within 256 tokens (DATA:1)"),
        ([chat("question", "reply")], "one conversation in DATA; validation needs a second one"),
        ([{"text": "one"}], "too little text in DATA"),
        ([chat("question", "reply"), {"text": "one"}], "one conversation in DATA; validation needs a second one"),
        ([{"text": " "}] * 3, "3 of 3 rows left out: 3 x an empty text (DATA:1, DATA:2, DATA:3)"),
        ([{"prompt": "one"}], "has the columns ['prompt']; needed are 'conversations' of {from, value}"),
    ],
)
def test_data_that_is_of_no_use_is_refused_in_one_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(tmp_path / "data.jsonl", rows)
    assert message.replace("DATA", str(tmp_path / "data.jsonl")) in str(caught.value)
    assert "\n" not in str(caught.value)


MIXED = [chat(f"question {index}", "reply " * (index % 9 + 1)) for index in range(70)]


def load_both(folder: Path, shape: Shape, texts: int = 1500, chats: int = 70) -> Any:
    """Rows of a file and lines of another one beside each other."""
    (folder / "a.txt").write_text("".join(f"line {index}\n" for index in range(texts)))
    rows = [*MIXED[:chats], *({"text": f"row {index}"} for index in range(texts // 10))]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_byte_tokenizer(folder)
    names = [str(folder / name) for name in ("a.txt", "b.jsonl")]
    return load_data(names, load_tokenizer(folder), shape, model="joey", eos_ids=(EOS,))


def test_texts_and_conversations_are_trained_on_together(tmp_path: Path) -> None:
    data = load_both(tmp_path, Shape(4, 128, 3))
    assert not data.bad_rows.counts and data.bad_rows.seen == 220
    for side, share in ((data.training, 0.9), (data.held_out, 0.0)):
        assert isinstance(side, Mixed) and side.texts.steps > 0
        assert share * 70 <= len(side.conversations.samples) <= 70 * (share + 0.1)
    mixed = data.training
    texts, chats = mixed.texts, mixed.conversations
    assert data.tokens == Counts(texts.tokens.trained + chats.tokens.trained, texts.tokens.all + chats.tokens.all)
    assert data.epoch_steps == texts.steps + chats.steps
    assert data.seen(2 * data.epoch_steps) == 2 * (texts.steps * 4 * 128 + chats.tokens.all)
    # An epoch has the batches of both, each in its own order, and the next epoch has them in another one.
    for epoch in range(3):
        batches = take(data.batches(epoch * mixed.steps), mixed.steps)
        kinds = mixed.epoch(epoch)
        for kind, part in enumerate((texts, chats)):
            own = [batch for batch, one in zip(batches, kinds, strict=True) if one == kind]
            assert same(own, take(part.batches(epoch * part.steps), part.steps))
    assert mixed.epoch(0).tolist() != mixed.epoch(1).tolist()
    again = load_both(tmp_path, Shape(4, 128, 3))
    assert again.digest == data.digest != load_both(tmp_path, Shape(4, 128, 3), texts=1400).digest


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99))
def test_a_mixed_stream_from_a_step_is_the_rest_of_the_stream(first: int) -> None:
    texts = TokenTexts([np.arange(3, 900, dtype=np.int32)], BOS, EOS, np.array([13, 50]))
    shape = Shape(3, 64, 7)
    stream = Mixed(Windows(texts, shape), Conversations(samples_of(list(range(2, 40))), shape))
    assert same(take(stream.batches(0), first + 5)[first:], take(stream.batches(first), 5))


def test_both_kinds_are_shown_and_held_out(tmp_path: Path) -> None:
    data = load_both(tmp_path, Shape(4, 128))
    shown = data.samples(3)
    assert [len(batch["tokens"]) for batch in shown] == [3, 3]
    assert shown[0]["mask"].sum() > 300 and not shown[1]["mask"].all(1).any()
    held = data.held_out
    for count, texts in ((1, 0), (2, 1), (5, 2)):
        assert [len(tokens) == 128 for tokens, _ in held.rows(count)] == [True] * texts + [False] * (count - texts)
    assert same(list(data.held_out_batches(2)), [*held.texts.fixed(1), *held.conversations.fixed(1)])


def test_of_large_held_out_batches_some_parts_are_taken() -> None:
    texts = TokenTexts([np.arange(3, 900, dtype=np.int32)], BOS, EOS, np.array([13, 50]))
    stream = Windows(texts, Shape(32, 2048))
    data = Data(stream, stream, BadRows(), "")
    parts = list(data.held_out_batches(parts=8))
    assert [part["tokens"].shape for part in parts] == [(4, 2048)] * 4  # 32,768 tokens.
    assert same(parts, [{name: value[::8] for name, value in batch.items()} for batch in stream.fixed(4)])
    assert [part["tokens"].shape for part in data.held_out_batches(parts=32)] == [(1, 2048)] * 16


@pytest.mark.parametrize(("texts", "chats"), [(9, 70), (1500, 1)])
def test_a_kind_with_a_single_thing_is_trained_on(tmp_path: Path, texts: int, chats: int) -> None:
    data = load_both(tmp_path, Shape(4, 128), texts, chats)
    assert isinstance(data.training, Mixed) and isinstance(data.held_out, Windows if chats == 1 else Conversations)


def test_conversations_need_a_template(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))
    (tmp_path / "a.jsonl").write_text(json.dumps(chat("question", "reply")) + "\n")
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="mine has no chat template for conversations; pass --chat-template"):
        load_data([str(tmp_path / "a.jsonl")], tokenizer, Shape(4, 256), model="mine")
