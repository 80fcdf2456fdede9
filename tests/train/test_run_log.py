"""Figures of a run on disk: JSONL, TensorBoard, Weights & Biases, and the picture of them."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from train import report
from train.run_log import LOG, Recorder, read_log, require_libraries


def events(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the scalars of all event files: length, checksum, message, checksum, and so on."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(directory.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 5)))
            data = data[16 + length :]
    return found


def test_figures_go_to_the_log_and_to_tensorboard(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(3, {"loss": 2.5, "top1": 0.25})
    recorder.write(5, {"loss": float("nan")})
    recorder.close()
    assert read_log(tmp_path / LOG) == {"loss": [(3, 2.5)], "top1": [(3, 0.25)]}
    board = events(tmp_path / "tensorboard")
    assert board["top1"] == [(3, 0.25)] and board["loss"][0] == (3, 2.5)


def test_without_tensorboardx_there_is_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else found(name))
    recorder = Recorder(tmp_path)
    recorder.write(3, {"loss": 2.5})
    recorder.close()
    assert read_log(tmp_path / LOG) == {"loss": [(3, 2.5)]} and not (tmp_path / "tensorboard").exists()


def test_what_came_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    first = Recorder(tmp_path)
    for step in (1, 2, 3):
        first.write(step, {"loss": step})
    first.close()
    with (tmp_path / LOG).open("a") as log:
        log.write('{"step": 4, "lo')  # Killed in the middle of a line.
    second = Recorder(tmp_path, step=2)
    second.write(3, {"loss": 30.0})
    second.close()
    assert [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()] == [
        {"step": 1, "loss": 1},
        {"step": 2, "loss": 2},
        {"step": 3, "loss": 30.0},
    ]


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (0, 7):  # The second is a resumed one, of the same run.
        recorder = Recorder(tmp_path, step, wandb="kangaroos", settings={"seed": 1})
        recorder.write(step + 1, {"loss": 1.5})
        recorder.close()
    runs = [*(tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    assert len({run.stem for run in runs}) == 1 and all(run.stat().st_size > 100 for run in runs)


def test_the_report_draws_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "has no log.jsonl with figures; give the folder of a run" in capsys.readouterr().err
    recorder = Recorder(tmp_path)
    for step in range(1, 9):
        recorder.write(step, {"loss": 1 / step, "tokens_per_second": 100.0})
    recorder.write(8, {"held_out_loss": 0.5, "compression_rate": 2.0})
    recorder.close()
    assert report.main([str(tmp_path)]) == 0
    picture = (tmp_path / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else name)
    require_libraries()
    with pytest.raises(ValueError, match=r"training needs wandb, .*: pip install 'kangaroo-jax\[wandb\]'"):
        require_libraries("project")


def test_growth_is_drawn_over_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, picture = tmp_path / "log.jsonl", tmp_path / "growth.png"
    log.write_text('{"step": 1, "exit1/held_out_acceptance": 0.5}\n')
    assert report.main([str(tmp_path), "--growth", str(picture)]) == 2 and not picture.exists()
    assert "no log.jsonl with held-out figures" in capsys.readouterr().err
    lines = [
        {"step": step, "seen_tokens": step * 1000, "exit1/held_out_acceptance": 0.5, "exit2/compression_rate": 2.0}
        for step in (10, 20)
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report.main([str(tmp_path), "--growth", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and not (tmp_path / "report.png").exists()
