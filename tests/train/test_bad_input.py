"""What ``python -m train.adapter`` says when a destination, a checkpoint or a log is not as it should be."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from kangaroo_jax.model import KangarooConfig, LlamaConfig, init_adapter
from kangaroo_jax.store import load_adapter, write_hf
from train.adapter import main
from train.best import Best
from train.byte_tokenizer import write_byte_tokenizer
from train.run_log import LOG, Recorder, read_log
from train.workspace import held

Refusal = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, text_folder: Path, tiny_config: LlamaConfig, tiny_params: dict) -> list[str]:
    """A run of six steps with three checkpoints, into ``out``."""
    model = tmp_path / "tiny"
    write_hf(model, tiny_config, tiny_params, "float32")
    write_byte_tokenizer(model)
    numbers = "--exit-layer 1 --steps 6 --warmup 1 --batch-size 3 --length 31 --learning-rate 0.003 --decode-every 3"
    return ["--model", str(model), "--data", str(text_folder), *numbers.split(), "--save-every", "2", "--keep", "3"]


def test_destinations_that_cannot_be_written_are_refused(refusal: Refusal, command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert f"{file} is a file; pass another --out" in refusal(main, [*command, "--out", str(file / "below" / "out")])
    assert "is a file; pass a folder" in refusal(main, [*command, "--out", str(file)])
    # The system lets nobody write there, and says so only when asked to.
    assert "/proc is not writable; pass another --out" in refusal(main, [*command, "--out", "/proc/nowhere"])
    occupied = tmp_path / "occupied-training"
    occupied.write_text("")
    assert f"{occupied} is a file" in refusal(main, [*command, "--out", str(tmp_path / "occupied")])


def test_a_workspace_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    with held(tmp_path, {"seed": 1}):
        with pytest.raises(ValueError, match=f"another process trains in {tmp_path}; wait for it"):
            held(tmp_path, {"seed": 1}).__enter__()
        assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 1}
    with held(tmp_path, {"seed": 2}):  # Nothing has been trained: it may be another run.
        pass


def test_checkpoints_without_settings_are_of_no_known_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no settings\.json; pass another --out"):
        held(tmp_path, {}).__enter__()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".best-abc").mkdir()
    (tmp_path / ".best-abc" / "adapter.safetensors").write_text("half")
    (tmp_path / ".settings.json-123").write_text("{")
    (tmp_path / "best").mkdir()
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "format.json").write_text('{"format": 2}')
    (tmp_path / "settings.json").write_text("{}")
    with held(tmp_path, {}):
        assert sorted(item.name for item in tmp_path.iterdir()) == [".lock", "best", "checkpoints", "settings.json"]


def test_a_refused_write_says_where_why_and_from_where_it_goes_on(tmp_path: Path) -> None:
    for step in ("20", "5", "25.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
    (tmp_path / "checkpoints" / "format.json").write_text('{"format": 2}')
    (tmp_path / "settings.json").write_text("{}")
    full = f"^{tmp_path}/log cannot be written: no space left on device; free some, and .* goes on from step 20$"
    with pytest.raises(OSError, match=full), held(tmp_path, {}):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{tmp_path}/log")
    with pytest.raises(OSError, match="read-only file system; make it writable, and the same"), held(tmp_path, {}):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(ValueError, match=r"^something else$"), held(tmp_path, {}):
        raise ValueError("something else")


def test_a_full_disk_under_the_log_is_an_error(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    (tmp_path / LOG).unlink()
    (tmp_path / LOG).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        recorder.write(1, {"loss": 1.0})


def test_a_full_disk_under_tensorboard_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    (tmp_path / LOG).unlink()
    (tmp_path / LOG).symlink_to("/dev/null")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        with pytest.raises(OSError, match="File too large"):
            for step in range(1000):
                recorder.write(step, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_garbled_log_loses_only_its_garbled_lines(tmp_path: Path) -> None:
    lines = [
        b'{"step": 1, "loss": 1.0}',
        b"\x00\x00\xff\xfe",
        b"7",
        b'{"loss": 3.0}',
        b'{"step": 2, "loss": 2.0}',
        b'{"st',
    ]
    (tmp_path / LOG).write_bytes(b"\n".join(lines))
    assert read_log(tmp_path / LOG) == {"loss": [(1, 1.0), (2, 2.0)]}
    Recorder(tmp_path, step=1).close()
    assert (tmp_path / LOG).read_bytes() == lines[0] + b"\n"


@pytest.mark.full
def test_a_damaged_newest_checkpoint_is_named_and_an_earlier_one_serves(
    refusal: Refusal, command: list[str], tmp_path: Path, tiny_config: LlamaConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main([*command, "--out", str(out)])
    whole = jax.device_get(load_adapter(out, tiny_config, "float32")[1])
    newest = tmp_path / "out-training" / "checkpoints" / "6"
    (data,) = (newest / "default" / "d").iterdir()
    os.truncate(data, data.stat().st_size // 2)
    (tmp_path / "out-training" / LOG).open("a").write('{"step": 7, "lo')
    capfd.readouterr()
    message = refusal(main, [*command, "--out", str(out)])
    assert message.startswith(f"error: {newest} cannot be read (") and message.endswith("go on from an earlier one")
    assert "Traceback" not in capfd.readouterr().err
    newest.rename(tmp_path / "damaged")
    main([*command, "--out", str(out)])
    again = jax.device_get(load_adapter(out, tiny_config, "float32")[1])
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True))


def test_a_best_adapter_of_a_killed_run_is_replaced_whole(tmp_path: Path, tiny_config: LlamaConfig) -> None:
    best = Best(tmp_path / "best", tiny_config, KangarooConfig(1))
    first, second = (init_adapter(tiny_config, jax.random.key(seed)) for seed in (1, 2))
    best.offer(8, first, {"compression_rate": 2.0})
    best.offer(6, second, {"compression_rate": 1.5})  # The run was killed after step 8, and resumed before 6.
    found = best.read()
    assert found is not None and found[0] == 6
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(second), strict=True):
        assert (one == np.asarray(other)).all()
    best.offer(8, first, {"compression_rate": 1.5})  # Of equal ones the first.
    assert json.loads((tmp_path / "best" / "adapter_config.json").read_text())["training"]["step"] == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "", "empty.jsonl"),
        (
            "columns.jsonl",
            '{"question": "a", "answer": "b"}\n' * 3,
            "has the columns ['answer', 'question']; needed are",
        ),
        ("broken.json", '[{"conversations": [', "broken.json"),
        ("turns.jsonl", '{"conversations": []}\n' * 3, "no usable row in --data"),
    ],
)
def test_data_of_no_use_is_refused(
    refusal: Refusal, name: str, content: str, message: str, command: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    assert message in refusal(main, [*command, "--data", str(tmp_path / name)])
    assert not (tmp_path / "tiny" / "adapter-training").exists()
