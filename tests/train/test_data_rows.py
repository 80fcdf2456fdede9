"""What ``--data`` names: files, folders and hub ids; their rows, the good and the bad."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from train.data import PATIENCE, Conversation, read_sources
from train.rows import NAMED, BadRows, Source, find_sources, table_rows
from train.texts import Unit

QUESTION, REPLY = {"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Seven."}
MESSAGES = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven."}]


@dataclasses.dataclass
class Found:
    """What was read."""

    conversations: list[Conversation]
    texts: list[str]
    bad: BadRows


def read(*names: str, limit: int | None = None) -> Found:
    bad = BadRows()
    items = list(read_sources(names, bad, limit))
    chats = [item for item in items if isinstance(item, Conversation)]
    return Found(chats, [item.text for item in items if isinstance(item, Unit)], bad)


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", "surrogatepass")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "conversations": [QUESTION, REPLY]},
        {"messages": MESSAGES},
        {"conversations": MESSAGES},
        {"conversation": MESSAGES, "text": None},
        {"conversations": [REPLY, REPLY, QUESTION, REPLY, QUESTION, QUESTION]},
        {"conversations": [{"from": "system", "value": " "}, QUESTION, REPLY]},
        {"conversations": [{**QUESTION, "role": None, "content": None}, {**REPLY, "weight": 1}]},
        {"conversations": {"from": ["human", "gpt"], "value": ["How many?", "Seven."]}},
        {"conversations": json.dumps([QUESTION, REPLY])},
        {"conversations": [json.dumps(QUESTION), json.dumps(REPLY)]},
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_conversations_of_every_form_are_the_same(tmp_path: Path, row: dict[str, Any], suffix: str) -> None:
    file = tmp_path / f"chat{suffix}"
    if suffix == ".jsonl":
        write_lines(file, [row, row])
    elif suffix == ".json":
        file.write_text(json.dumps([row, row]))
    else:
        datasets.Dataset.from_list([row, row]).to_parquet(file)
    found = read(str(file))
    assert found.conversations == [(f"{file}:1", MESSAGES), (f"{file}:2", MESSAGES)]
    assert not found.bad.counts and found.bad.seen == 2 and not found.texts


def test_json_may_be_lines_or_one_object_and_its_types_may_vary(tmp_path: Path) -> None:
    good = {"conversations": [QUESTION, {**REPLY, "model": None}]}
    (tmp_path / "one.json").write_text(json.dumps(good, indent=2))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, (good, {"conversations": 5}, good))))
    (tmp_path / "list.json").write_text(json.dumps([{"conversations": [7.5]}, good, [], good]))
    for name, places, bad in (("one", [1], 0), ("lines", [1, 3], 1), ("list", [2, 4], 2)):
        file = tmp_path / f"{name}.json"
        found = read(str(file))
        assert found.conversations == [(f"{file}:{number}", MESSAGES) for number in places]
        assert found.bad.counts.total() == bad


def test_a_system_message_stays(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "system", "value": "Be brief."}, QUESTION, REPLY]}
    found = read(write_lines(tmp_path / "a.jsonl", [row]))
    assert found.conversations[0][1] == [{"role": "system", "content": "Be brief."}, *MESSAGES]


BAD = [
    ("no JSON object", 5),
    ("neither a conversation nor text", {"id": 1}),
    ("conversations is no list", {"conversations": "How many?"}),
    ("conversations is no list", {"conversations": {"from": "human"}}),
    ("conversations is empty", {"conversations": []}),
    ("a message that is no object", {"conversations": [QUESTION, "Seven."]}),
    ("a message without a role (from or role)", {"conversations": [{"value": "x"}, REPLY]}),
    ("the unknown role 'narrator'", {"conversations": [{"from": "narrator", "value": "x"}, REPLY]}),
    ("a message without text (value or content)", {"conversations": [QUESTION, {"from": "gpt", "value": 7}]}),
    ("a system message that is not the first", {"conversations": [QUESTION, {"from": "system", "value": "x"}, REPLY]}),
    ("no reply", {"conversations": [QUESTION]}),
    ("no reply", {"conversations": [REPLY, QUESTION]}),
    ("no question", {"conversations": [REPLY]}),
    ("roles that do not alternate", {"conversations": [QUESTION, QUESTION, REPLY]}),
    ("an empty message", {"conversations": [QUESTION, {"from": "gpt", "value": " \n"}]}),
    ("a message that is no Unicode", {"conversations": [QUESTION, {"from": "gpt", "value": "\ud83d"}]}),
]


def test_bad_rows_are_counted_and_named(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [row for _, row in BAD] + [{"conversations": [QUESTION, REPLY]}] * 3)
    with open(file, "a") as stream:
        stream.write('\n{"conversations": [\n')
    with open(file, "ab") as raw:
        raw.write(b'{"text": "caf\xe9"}\n')
    found = read(file)
    assert len(found.conversations) == 3 and found.bad.seen == len(BAD) + 5
    places: dict[str, list[str]] = {}
    for number, (reason, _) in enumerate(BAD, 1):
        places.setdefault(reason, []).append(f"{file}:{number}")
    places["no JSON object"] += [f"{file}:{len(BAD) + 5}", f"{file}:{len(BAD) + 6}"]
    assert found.bad.first == places
    assert dict(found.bad.counts) == {reason: len(named) for reason, named in places.items()}


def test_bad_texts_are_counted(tmp_path: Path) -> None:
    rows = [{"text": 5}, {"text": "  "}, {"text": "\ud800 alone"}, {"text": "one"}, {"text": "two"}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(str(file))
    assert found.texts == ["one", "two"]
    assert list(found.bad.counts) == ["text that is no string", "an empty text", "text that is no Unicode"]


def test_the_report_takes_one_line_and_names_the_first_few() -> None:
    bad = BadRows(seen=2000)
    assert str(bad) == "0 of 2,000 rows left out"
    for number in range(1500):
        bad.add(f"a:{number}", "no reply")
    bad.add("b:7", "an empty message")
    first = ", ".join(f"a:{number}" for number in range(NAMED))
    expected = f"1,501 of 2,000 rows left out: 1,500 x no reply ({first}, ...); 1 x an empty message (b:7)"
    assert str(bad) == expected


def test_lines_end_at_line_ends_alone(tmp_path: Path) -> None:
    """U+2028 and U+0085 are line ends to str.splitlines, and ordinary text in JSON."""
    text = "one\u2028two\u0085three"
    file = write_lines(tmp_path / "a.jsonl", [{"text": text}, {"text": text}])
    assert read(file).texts == [text, text]


def test_other_columns_are_refused_before_all_is_read(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "answer": "y"}] * (PATIENCE + 50)
    file = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"a.jsonl has the columns \['answer', 'prompt'\]; needed are 'conversations'"):
        read(file)
    bad = BadRows()
    assert len(list(table_rows(find_sources(file, 20)[0], bad, limit=3))) == 3 == bad.seen


def test_a_hub_id_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        return iter([{"messages": MESSAGES}] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read("owner/some-chats", "owner/other.v2:train_sft", limit=2)
    assert [place for place, _ in found.conversations] == [
        "owner/some-chats:1",
        "owner/some-chats:2",
        "owner/other.v2:train_sft:1",
        "owner/other.v2:train_sft:2",
    ]
    streaming = {"streaming": True}
    assert calls == [
        ((), {"path": "owner/some-chats", "split": "train", **streaming}),
        ((), {"path": "owner/other.v2", "split": "train_sft", **streaming}),
    ]


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nand more lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError) as caught:
        read("owner/name")
    assert str(caught.value) == (
        "--data owner/name cannot be read: Couldn't reach the Hub; check the id, the split and the network, or "
        "download the file and pass its path"
    )


@pytest.mark.parametrize("name", ["missing", "missing.txt", "folder/missing.jsonl", "a/b/c", "./owner/name", "owner/"])
def test_what_is_neither_a_path_nor_an_id_does_not_exist(name: str) -> None:
    with pytest.raises(ValueError, match="does not exist; pass folders, files"):
        find_sources(name, 20)


def test_a_file_named_like_an_id_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name.md").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert find_sources("owner/name.md", 20) == [Source("owner/name.md", Path("owner/name.md"))]
