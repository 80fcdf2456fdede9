"""``python -m train.regenerate``: from rows to rows that the trainer reads, through kills, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kangaroo_jax
import train.adapter_options
import train.regenerate
from train.batches import Conversations, Shape, Windows
from train.data import load_data
from train.regenerate import main
from workshop.held_out import is_held_out
from workshop.journal import Journal

Refusal = Callable[..., str]


def conversation(index: int, turns: int) -> dict[str, Any]:
    said = [
        [{"from": "human", "value": f"{index * 7919 + turn}?"}, {"from": "gpt", "value": "old reply"}]
        for turn in range(turns)
    ]
    return {"id": f"row {index}", "conversations": [message for turn in said for message in turn]}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 conversations of one to five turns; one that is none, and one whose first question is too long."""
    rows = [conversation(index, 1 + index % 5) for index in range(30)]
    rows[3] = {"conversations": []}
    rows[5]["conversations"][0]["value"] = "x" * 100
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def command(ending_model: Path, chats: Path, tmp_path: Path) -> list[str]:
    out = ["--out", str(tmp_path / "out.jsonl")]
    return ["--model", str(ending_model), "--data", str(chats), "--max-new-tokens", "11", "--batch-size", "2", *out]


@pytest.fixture(scope="module")
def undisturbed(ending_model: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file that ``command`` writes."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    numbers = ["--max-new-tokens", "11", "--batch-size", "2"]
    main(["--model", str(ending_model), "--data", str(chats), *numbers, "--out", str(out)])
    assert list(out.parent.iterdir()) == [out]
    return out.read_bytes()


def test_every_reply_is_the_targets_own_turn_after_turn(ending_model: Path, chats: Path, undisturbed: bytes) -> None:
    params = kangaroo_jax.load(ending_model)
    before = {row["id"]: row for row in map(json.loads, chats.read_text().splitlines()) if "id" in row}
    rows = [json.loads(line) for line in undisturbed.splitlines()]
    lengths = set()
    for row in rows:
        old, new = before[row["id"]]["conversations"], row["conversations"]
        assert [m["from"] for m in new] == ["human", "gpt"] * (len(new) // 2) and set(row) == {"id", "conversations"}
        assert [m["value"] for m in new[::2]] == [m["value"] for m in old[: len(new) : 2]]
        messages: list[dict[str, str]] = []
        for question, answer in zip(new[::2], new[1::2], strict=True):
            messages.append({"role": "user", "content": question["value"]})
            out = kangaroo_jax.generate(params, messages, max_new_tokens=11)
            text = out.text.rstrip("\ufffd") if out.finish_reason == "length" else out.text
            assert answer["value"] == text.strip()
            messages.append({"role": "assistant", "content": answer["value"]})
            assert (out.finish_reason == "stop") or answer is new[-1]
        lengths.add(len(new) // 2)
    assert len(rows) > 20 and len(lengths) > 2
    assert [row["id"] for row in rows] == [name for name in before if name in {row["id"] for row in rows}]


def test_the_trainer_reads_the_file_without_flags(ending_model: Path, undisturbed: bytes, tmp_path: Path) -> None:
    file = tmp_path / "self.jsonl"
    file.write_bytes(undisturbed)
    params = kangaroo_jax.load(ending_model)
    ends = params.config.eos_token_id or ()
    data = load_data([str(file)], params.tokenizer, Shape(3, 101), model=str(ending_model), eos_ids=ends)
    assert isinstance(data.training, Conversations) and data.bad_rows.counts == {}
    assert data.bad_rows.seen == len(undisturbed.splitlines())


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something when so many records have been written."""
    real, records = Journal.add, []

    def add(self: Journal, record: Any) -> None:
        real(self, record)
        records.append(record)
        if len(records) == count:
            act()

    monkeypatch.setattr(Journal, "add", add)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    refusal: Refusal,
    number: int,
    status: int,
    command: list[str],
    tmp_path: Path,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_after(5, monkeypatch, lambda: os.kill(os.getpid(), number))
    assert main(command) == status
    monkeypatch.undo()
    assert "the same command goes on" in capsys.readouterr().err
    partial = tmp_path / "out.jsonl.partial"
    assert list(tmp_path.iterdir()) == [partial] and partial.read_bytes().count(b"\n") == 5
    assert "holds a run with max_new_tokens 11, not 12" in refusal(main, [*command, "--max-new-tokens", "12"])
    assert "holds a run with sampling None, not {" in refusal(main, [*command, "--temperature", "1"])
    assert "holds a run with method 'kangaroo', not 'plain'" in refusal(main, [*command, "--plain"])
    assert "holds a run with data_rows None, not 9" in refusal(main, [*command, "--data-rows", "9"])
    main(command)
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed and not partial.exists()


@pytest.mark.full
def test_a_killed_run_goes_on_to_the_same_bytes(command: list[str], tmp_path: Path, undisturbed: bytes) -> None:
    partial = tmp_path / "out.jsonl.partial"
    process = subprocess.Popen([sys.executable, "-m", "train.regenerate", *command], stderr=subprocess.DEVNULL)
    try:
        while not (partial.exists() and partial.read_bytes().count(b"\n") > 3):
            assert process.poll() is None
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out.jsonl").exists()
    with partial.open("ab") as file:
        file.write(b'{"seconds": 0.1, "repl')
    main(command)
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed


def test_the_summary_names_what_is_left_out_and_cut(
    command: list[str], chats: Path, undisturbed: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    lines = capsys.readouterr().out.splitlines()
    written = len(undisturbed.splitlines())
    assert lines[0].startswith(f"{written} rows written to {command[-1]}: ") and "compression rate " in lines[0]
    assert any(line.endswith(" rows end early: a reply cut by the token limit") for line in lines[1:-1])
    assert lines[-1].startswith(f"{30 - written} of 30 rows left out: ")
    assert f"1 x conversations is empty ({chats}:4)" in lines[-1]
    assert f"1 x a prompt of 101 tokens or more ({chats}:6)" in lines[-1]


def test_texts_are_continued_the_same_by_any_way_of_decoding(
    ending_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, texts = tmp_path / "texts.json", [f"line {index} of some text" for index in range(40)]
    file.write_text(json.dumps([{"text": text, "id": index} for index, text in enumerate(texts)]))
    common = ["--model", str(ending_model), "--data", str(file), "--prompt-tokens", "6", "--max-new-tokens", "11"]
    ways = ["--batch-size 2", "--batch-size 2 --plain", "--batch-size 1 --gamma 2 --eta 0"]
    outs = [tmp_path / f"{index}.jsonl" for index in range(3)]
    for out, way in zip(outs, ways, strict=True):
        main([*common, "--out", str(out), *way.split()])
    plain = next(line for line in capsys.readouterr().out.splitlines() if str(outs[1]) in line)
    assert plain.endswith("compression rate 1.00")
    rows = [json.loads(line) for line in outs[0].read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(40)) and len({row["text"] for row in rows}) > 9
    assert all(row["text"][:6] == texts[row["id"]][:6] and 6 < len(row["text"]) <= 17 for row in rows)
    assert outs[1].read_bytes() == outs[2].read_bytes() == outs[0].read_bytes()
    params = kangaroo_jax.load(ending_model)
    assert isinstance(load_data([str(outs[0])], params.tokenizer, Shape(3, 31), model="x").training, Windows)


def test_joeys_own_data_are_the_training_files(
    ending_model: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.adapter_options, "EMBEDDED", {str(ending_model): None})
    monkeypatch.setattr(train.regenerate, "standard_library", lambda: text_folder)
    out = tmp_path / "out.jsonl"
    numbers = ["--prompt-tokens", "12", "--max-new-tokens", "11", "--batch-size", "2"]
    main(["--model", str(ending_model), *numbers, "--out", str(out)])
    files = {path.read_text()[:12]: path.relative_to(text_folder).as_posix() for path in text_folder.rglob("*.py")}
    written = [files[json.loads(line)["text"][:12]] for line in out.read_text().splitlines()]
    kept = [name for name in files.values() if not is_held_out(name)]
    assert sorted(written) == sorted(kept) and len(kept) < len(files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data-rows 0", "--data-rows is 0; it must be at least 1"),
        ("--batch-size 0", "--batch-size is 0; it must be at least 1"),
        ("--max-new-tokens 0", "--max-new-tokens is 0; it must be at least 1"),
        ("--prompt-tokens 0", "--prompt-tokens is 0; it must be at least 1"),
        ("--gamma 0", "--gamma is 0; it must be at least 1"),
        ("--eta -1", "--eta is -1.0; pass 0 or more"),
        ("--temperature -1", "--temperature is -1.0; pass 0 or more"),
        ("--top-p 1.5", "--top-p is 1.5; pass a share"),
        ("--top-k -1", "--top-k is -1"),
        ("--seed -1", "--seed is -1"),
        ("--model nobody", "unknown model 'nobody'"),
        ("--data missing.json", "--data missing.json does not exist"),
        ("--chat-template missing", "missing"),
        ("--adapter missing", "missing"),
        ("--out missing/some.json", "--out missing/some.json does not end in .jsonl"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    refusal: Refusal, options: str, message: str, command: list[str], tmp_path: Path
) -> None:
    assert message in refusal(main, [*command, *options.split()])
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_replaced_only_when_asked(
    refusal: Refusal, command: list[str], tmp_path: Path, undisturbed: bytes
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    assert "exists; choose another --out, or replace it with --force" in refusal(main, command)
    assert out.read_text() == "mine"
    main([*command, "--force"])
    assert out.read_bytes() == undisturbed
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder" in refusal(main, [*command, "--force", "--out", str(tmp_path / "folder.jsonl")])


def test_a_disk_without_room_ends_the_run_in_one_line(
    refusal: Refusal, command: list[str], tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stop_after(4, monkeypatch, full)
    assert "No space left on device" in refusal(main, command)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    assert "file" in refusal(main, [*command, "--out", str(tmp_path / "file" / "out.jsonl")])
    main(command)
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed


def test_data_are_needed_and_have_to_be_usable(
    refusal: Refusal, command: list[str], ending_model: Path, tmp_path: Path
) -> None:
    assert "--data is missing" in refusal(main, ["--model", str(ending_model), "--out", str(tmp_path / "out.jsonl")])
    file = tmp_path / "long.json"
    file.write_text(json.dumps([{"text": "x" * 200}, {"text": ""}]))
    message = refusal(main, [*command, "--data", str(file), "--prompt-tokens", "150"])
    assert f"no usable row in --data {file}: 2 of 2 rows left out" in message and "1 x an empty text" in message


def test_parts_make_up_the_whole(command: list[str], undisturbed: bytes, tmp_path: Path) -> None:
    lines = []
    for part in ("2/2", "1/2"):
        out = tmp_path / f"part{part[0]}.jsonl"
        main([*command, "--part", part, "--out", str(out)])
        lines += out.read_bytes().splitlines()
    assert sorted(lines) == sorted(undisturbed.splitlines()) and len(lines) > 20


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/", "-1/2"])
def test_parts_that_are_none_are_refused(command: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, f"--part={part}"])
    assert f"{part!r} is no part such as 1/8" in capsys.readouterr().err
