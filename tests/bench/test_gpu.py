"""The command for a GPU, rehearsed on this machine: every step works, and whatever ends it, what was measured stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import SECONDS, main

ROOT = Path(__file__).resolve().parents[2]


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.gpu", "--out", str(out), "--rehearse", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else {"steps": {}, "errors": {}, "running": None}


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def parent_of(process: Path) -> int:
    return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])


def children(parent: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [int(process.name)] if parent_of(process) == parent else []
        except OSError:
            continue
    return found


def rehearse(out: Path, stages: Sequence[str]) -> dict[str, Any]:
    """Run stages, and return what they have written."""
    done = start(out, "--budget", "900", "--stages", ",".join(stages))
    printed, _ = done.communicate()
    found = {stage: read(out / f"{stage}.json") for stage in stages}
    assert {stage: state["errors"] for stage, state in found.items()} == {stage: {} for stage in stages}, printed
    assert done.returncode == 0
    assert sum(len(state["steps"]) for state in found.values()) == printed.count(" done, ")
    return found


def test_every_step_in_a_process_of_its_stage_works(tmp_path: Path) -> None:
    found = rehearse(tmp_path, ["facts", "truth", "speed", "code"])
    proof = found["truth"]["steps"]["float32"]["figures"]["joey"]
    assert proof["report"]["identical"] and proof["report"]["tokens"] >= 24
    alike = "batch of 8: prompts whose ids are plain decoding's", "drawn twice: prompts whose ids are the same"
    assert [proof[name] for name in alike] == [proof["prompts"]] * 2
    assert found["truth"]["steps"]["tests"]["figures"]["status"] == 0
    forced = found["speed"]["steps"]["vicuna-7b"]["figures"]["graphs"]
    assert set(forced) == {"default", "one"} and forced["one"]["forced"][0]["measured"] > 0
    with tarfile.open(tmp_path / "code.tar.gz") as archive:
        assert any("after_optimizations" in member for member in archive.getnames())


@pytest.mark.full
def test_every_step_that_runs_other_commands_works(tmp_path: Path) -> None:
    stages = ["use", "training"]
    assert set(stages) < set(SECONDS)
    found = rehearse(tmp_path, stages)
    assert found["use"]["steps"]["spec_bench"]["figures"]["overall"]["kangaroo"]
    assert found["training"]["steps"]["step of vicuna-7b"]["figures"]["tokens_per_second"] > 0
    assert found["training"]["steps"]["the model's own adapter"]["figures"][-1]["held_out_loss"] > 0
    with tarfile.open(tmp_path / "adapter.tar.gz") as archive:
        assert any("adapter.safetensors" in member for member in archive.getnames())


def test_killed_it_leaves_what_was_measured_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    run = start(tmp_path, "--stages", "facts")
    until(lambda: read(file)["running"] == "bandwidth")
    inside = children(run.pid)
    run.kill()
    run.communicate()
    before = read(file)["steps"]["versions"]
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in inside))  # None goes on alone.
    again = start(tmp_path, "--stages", "facts")
    printed, _ = again.communicate()
    after = read(file)
    assert again.returncode == 0 and "versions" not in printed
    assert after["steps"]["versions"] == before and set(after["steps"]) == {"versions", "bandwidth"}


def test_a_step_that_ends_its_process_is_named_and_costs_no_other(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    run = start(tmp_path, "--stages", "facts")
    until(lambda: read(file)["running"] == "bandwidth")
    os.kill(children(run.pid)[0], signal.SIGSEGV)
    printed, _ = run.communicate()
    assert run.returncode == 1 and "facts: bandwidth: the process ended with status -11" in printed
    assert set(read(file)["steps"]) == {"versions"} and set(read(file)["errors"]) == {"bandwidth"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stages", "facts,use,truht"], "--stages has truht; choose from facts, truth, speed"),
        (["--budget", "0"], "--budget is 0; give seconds, more than 0"),
    ],
)
def test_what_is_refused(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    (tmp_path / "facts.json").write_text("[1]")
    assert main(["--out", str(tmp_path), "--stages", "facts", "--budget", "30"]) == 2
    assert "facts.json is not of this command" in capsys.readouterr().err
