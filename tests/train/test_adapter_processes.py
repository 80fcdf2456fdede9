"""``python -m train.adapter`` as processes of its own: killed, on a full disk, and two of them as one."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import load_adapter, write_hf
from train.byte_tokenizer import write_byte_tokenizer
from train.run_log import read_log

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path: Path, tiny_config: LlamaConfig, tiny_params: dict) -> list[str]:
    """A run on 60 conversations."""
    model, chats = tmp_path / "tiny", tmp_path / "chats.json"
    write_hf(model, tiny_config, tiny_params, "float32")
    write_byte_tokenizer(model)
    turns = (("human", "{0}?"), ("gpt", "{1}."))
    rows = [
        {"conversations": [{"from": who, "value": text.format(i, i * i)} for who, text in turns]} for i in range(60)
    ]
    chats.write_text(json.dumps(rows))
    numbers = "--exit-layer 1 --warmup 1 --batch-size 4 --length 40 --learning-rate 0.003 --decode-prompts 2"
    return [sys.executable, "-m", "train.adapter", "--model", str(model), "--data", str(chats), *numbers.split()]


def start(command: list[str], devices: int = 1) -> subprocess.Popen[str]:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | flags, text=True, **streams)


def finish(command: list[str], devices: int = 1) -> str:
    """Run to the end, and return what was printed."""
    process = start(command, devices)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    return printed


def saved(out: Path) -> list[int]:
    """Return the steps of the checkpoints of a run."""
    folder = out.with_name(f"{out.name}-training") / "checkpoints"
    return sorted(int(item.name) for item in folder.glob("*") if item.name.isdigit())


def wait_for(process: subprocess.Popen[str], seen: Callable[[], object]) -> None:
    """Wait until ``seen()`` is true; the process must not end before."""
    until = time.monotonic() + 120
    while not seen():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.002)


def adapters(config: LlamaConfig, *outs: Path) -> list[list[np.ndarray]]:
    return [[np.asarray(leaf) for leaf in jax.tree.leaves(load_adapter(out, config, "float32")[1])] for out in outs]


@pytest.mark.full
def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_space(command: list[str], tmp_path: Path) -> None:
    """A limit on the size of files, set from outside in the middle of the run, refuses writes as a full disk does."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    command += ["--steps", "60", "--save-every", "4", "--keep", "9", "--decode-every", "0", "--eval-every", "30"]
    process = start([*command, "--out", str(full)])
    wait_for(process, lambda: len(saved(full)) >= 2)
    process.send_signal(signal.SIGSTOP)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    process.send_signal(signal.SIGCONT)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(f"error: {full}-training")
    then = "cannot be written: file too large; raise the limit (ulimit -f), and the same command goes on from step "
    assert f"{then}{saved(full)[-1]}" in printed
    assert "adapter of step 60 written" in finish([*command, "--out", str(full)])
    finish([*command, "--out", str(whole)])
    assert (full / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()


@pytest.mark.full
def test_a_second_run_in_a_folder_is_refused(command: list[str], tmp_path: Path) -> None:
    command += ["--steps", "5000", "--save-every", "5", "--decode-every", "0"]
    command += ["--out", str(tmp_path / "out")]
    first = start(command)
    wait_for(first, lambda: saved(tmp_path / "out"))
    second = start(command)
    printed = second.communicate(timeout=120)[0]
    message = f"error: another process trains in {tmp_path / 'out-training'}; wait for it, or pass another --out"
    assert second.returncode == 1 and printed.splitlines()[-1] == message
    first.kill()  # Leaves no lock behind.
    first.communicate()
    third = start(command)
    newest = saved(tmp_path / "out")[-1]
    wait_for(third, lambda: saved(tmp_path / "out")[-1] > newest)
    third.kill()
    third.communicate()


@pytest.mark.full
def test_killed_ten_times_it_ends_in_the_same_bits(command: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command += ["--steps", "200", "--save-every", "7", "--eval-every", "10", "--decode-every", "25"]
    finish([*command, "--out", str(whole)])
    rng, log = np.random.default_rng(10), tmp_path / "killed-training" / "log.jsonl"
    for kill in range(10):
        process = start([*command, "--out", str(killed)])
        # A tenth further each time, and then at any moment: of a step, a checkpoint, an evaluation, decoding.
        wait_for(process, lambda: log.is_file() and newest_step(log) >= 18 * kill)  # noqa: B023
        time.sleep(rng.random() * 0.3)
        assert process.poll() is None
        process.kill()
        process.communicate()
    finish([*command, "--out", str(killed)])
    one, other = (file / "adapter.safetensors" for file in (whole, killed))
    assert one.read_bytes() == other.read_bytes()
    states = [stored_arrays(out) for out in (whole, killed)]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 10
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    curves = [read_log(tmp_path / f"{name}-training" / "log.jsonl") for name in ("whole", "killed")]
    for curve in curves:
        del curve["tokens_per_second"]
    assert curves[0] == curves[1]


def newest_step(log: Path) -> int:
    return max((step for curve in read_log(log).values() for step, _ in curve), default=0)


def stored_arrays(out: Path) -> dict[str, np.ndarray]:
    """Return the newest checkpoint's arrays by name."""
    folder = out.with_name(f"{out.name}-training") / "checkpoints"
    with ocp.CheckpointManager(folder) as manager:
        tree = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore())
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def two(command: list[str], out: Path, devices: int = 1) -> list[subprocess.Popen[str]]:
    """Start a run of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = [*command, "--out", str(out), "--coordinator", address, "--processes", "2", "--process"]
    return [start([*joined, str(index)], devices) for index in (0, 1)]


def same_run(one: Path, other: Path, config: LlamaConfig) -> None:
    """Compare log and adapter of two runs."""
    for a, b in zip(*adapters(config, one, other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    logs = [read_log(out.with_name(f"{out.name}-training") / "log.jsonl") for out in (one, other)]
    assert logs[0].keys() == logs[1].keys()
    for name in ("loss", "tokens", "top1", "acceptance", "held_out_loss", "held_out_top1", "compression_rate"):
        assert logs[0][name] == [(step, pytest.approx(value, abs=1e-5)) for step, value in logs[1][name]], name


@pytest.mark.full
@pytest.mark.parametrize(("devices", "options"), [(1, []), (2, ["--shard-target", "2"])])
def test_two_processes_are_as_one(
    command: list[str], tmp_path: Path, tiny_config: LlamaConfig, devices: int, options: list[str]
) -> None:
    command += ["--steps", "50", "--save-every", "20", "--eval-every", "10", "--decode-every", "25"]
    processes = two([*command, *options], tmp_path / "two", devices)
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "adapter of step" in printed[0] and "step" not in printed[1]  # The second writes nothing.
    finish([*command, *options, "--out", str(tmp_path / "one")], 2 * devices)
    same_run(tmp_path / "one", tmp_path / "two", tiny_config)


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_stops_the_other(command: list[str], tmp_path: Path, victim: int) -> None:
    processes = two([*command, *["--steps", "100000", "--save-every", "10", "--decode-every", "0"]], tmp_path / "out")
    wait_for(processes[0], lambda: saved(tmp_path / "out"))
    processes[victim].kill()
    printed = processes[1 - victim].communicate(timeout=200)[0]
    assert processes[1 - victim].returncode != 0
    processes[victim].communicate()
    # Without the first process, JAX itself may be quicker to end the other.
    said = "a step over several processes failed", "the JAX distributed service detected fatal errors"
    assert said[0] in printed or (victim == 0 and said[1] in printed), printed[-3000:]


def test_rows_that_do_not_divide_over_the_devices_are_refused(command: list[str], tmp_path: Path) -> None:
    process = start([*command, "--batch-size", "3", "--out", str(tmp_path / "out")], devices=2)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("error: --batch-size is 3; it must be a multiple of 2")
