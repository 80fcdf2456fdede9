"""Resuming, stopping, and devices: the params must not depend on either."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.run_log import read_log
from train.step import TrainState, init_state, make_train_step, place, split_devices
from train.training_loop import Evaluation, Terminated, fit


def loss(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    errors = jnp.square(batch["x"] @ (params["w"] * frozen["scale"]) - batch["y"])
    total = jnp.sum(errors, where=batch["mask"])
    return total, {"loss": total, "tokens": batch["mask"].sum().astype(jnp.float32)}


def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
    for index in itertools.count(first):
        rng = np.random.default_rng(index)
        yield {"x": rng.normal(size=(6, 3)), "y": rng.normal(size=6), "mask": rng.random(6) < 0.6}


def start() -> TrainState:
    return init_state({"w": jnp.array([1.0, -2.0, 0.5])}, optax.adam(0.1))


def run(directory: Path, steps: int, stream: Any = batches, **options: Any) -> TrainState:
    step = make_train_step(loss, optax.adam(0.1))
    return fit(step, start(), place({"scale": jnp.float32(2.0)}), stream, steps, directory, **options)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 7)
    run(tmp_path / "parts", 3, save_every=2)
    again = run(tmp_path / "parts", 7, save_every=2)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        assert (np.asarray(one) == np.asarray(other)).all()
    assert int(again.step) == 7
    done = run(tmp_path / "parts", 7)
    assert (np.asarray(done.params["w"]) == np.asarray(whole.params["w"])).all()


def test_states_of_another_format_are_refused(tmp_path: Path) -> None:
    """Their fused weights have other columns, and so have the moments of the optimiser."""
    run(tmp_path, 3)
    record = tmp_path / "checkpoints" / "format.json"
    assert json.loads(record.read_text()) == {"format": 2}
    for number in (1, 3):
        record.unlink() if number == 1 else record.write_text(json.dumps({"format": number}))
        with pytest.raises(
            ValueError, match=f"has states of format {number}, .* from format 2; end the run with"
        ) as caught:
            run(tmp_path, 7)
        assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "checkpoints")
    assert int(run(tmp_path, 4).step) == 4


def test_ctrl_c_ends_the_step_saves_and_resumes(tmp_path: Path) -> None:
    def interrupted(first: int) -> Iterator[dict[str, np.ndarray]]:
        for index, batch in enumerate(batches(first), first):
            if index == 4:
                signal.raise_signal(signal.SIGINT)
            yield batch

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 9, interrupted, save_every=100)
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("[0-9]*")] == ["5"]
    again, whole = run(tmp_path / "stopped", 9), run(tmp_path / "whole", 9)
    assert (np.asarray(again.params["w"]) == np.asarray(whole.params["w"])).all()


def test_sigterm_ends_the_step_saves_and_resumes(tmp_path: Path) -> None:
    def terminated(first: int) -> Iterator[dict[str, np.ndarray]]:
        for index, batch in enumerate(batches(first), first):
            if index == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        run(tmp_path / "stopped", 9, terminated, save_every=100)
    assert signal.getsignal(signal.SIGTERM) is before
    again, whole = run(tmp_path / "stopped", 9), run(tmp_path / "whole", 9)
    assert (np.asarray(again.params["w"]) == np.asarray(whole.params["w"])).all()


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path: Path) -> None:
    run(tmp_path, 7, save_every=1, keep=3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")) == ["5", "6", "7"]


def test_evaluations_and_figures_are_logged(tmp_path: Path) -> None:
    held = Evaluation(2, lambda step, params: {"held_out_w": float(params["w"][0])})
    seldom = Evaluation(3, lambda step, params: {"seldom": float(step)})
    run(tmp_path, 5, evaluations=[held, seldom], log_every=4)
    curves = read_log(tmp_path / "log.jsonl")
    assert [step for step, _ in curves["held_out_w"]] == [2, 4, 5]
    assert curves["seldom"] == [(3, 3.0), (5, 5.0)]
    assert [step for step, _ in curves["loss"]] == [4, 5] == [step for step, _ in curves["tokens_per_second"]]


def test_a_log_that_is_no_terminal_has_figures_from_the_first_step_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten steps of a large model take an hour: nobody waits for the tenth to see whether the loss is one."""
    for module in ("kangaroo_jax.progress", "train.training_loop"):
        monkeypatch.setattr(f"{module}.EVERY", 0.1)

    def slow(first: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches(first):
            time.sleep(0.15)
            yield batch

    run(tmp_path, 7, slow, name="adapter", log_every=1000)
    lines = capsys.readouterr().err.splitlines()
    form = r"adapter: +\d+% \d/7 step \[\d\d:\d\d<\d\d:\d\d, .*/(step|s), loss=\d+\.\d{3}, tokens/s=\d+\]"
    assert len(lines) >= 5 and all(re.fullmatch(form, line) for line in lines if " 0/7 " not in line)
    assert len({line.partition("loss=")[2] for line in lines}) >= 5  # Each its own, not the last record's.
    assert [step for step, _ in read_log(tmp_path / "log.jsonl")["loss"]] == [7]


KILLED = """
import sys
from pathlib import Path
import jax, numpy as np
sys.path.insert(0, str(Path(sys.argv[1])))
import test_training_loop as here
state = here.run(Path(sys.argv[2]), int(sys.argv[3]), save_every=3, log_every=1)
np.save(Path(sys.argv[2]) / "w.npy", np.asarray(state.params["w"]))
"""


def killed_again_and_again(directory: Path, steps: int, kills: int) -> None:
    """Run to the end, killing the process ``kills`` times at moments that a seed chooses."""
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(directory), str(steps)]
    root, rng = Path(__file__).parents[2], np.random.default_rng(steps)
    log = directory / "log.jsonl"
    for kill in range(kills):
        until = steps * (kill + rng.random()) / (kills + 1)
        with subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) > until):
                time.sleep(0.001)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command, cwd=root, check=True, capture_output=True)


@pytest.mark.full
def test_killed_at_any_moment_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Two kills of a small loss; ``test_adapter_processes`` kills the whole trainer ten times."""
    steps, kills = 90, 2
    killed_again_and_again(tmp_path / "killed", steps, kills)
    whole = run(tmp_path / "whole", steps, save_every=3)
    assert (np.load(tmp_path / "killed" / "w.npy") == np.asarray(whole.params["w"])).all()
    steps_logged = [step for step, _ in read_log(tmp_path / "killed" / "log.jsonl")["loss"]]
    assert steps_logged == list(range(1, steps + 1))


def test_a_run_of_skipped_batches_ends_in_an_error(tmp_path: Path) -> None:
    def broken(first: int) -> Iterator[dict[str, np.ndarray]]:
        for index, batch in enumerate(batches(first), first):
            yield batch if index < 4 else batch | {"x": batch["x"] * np.nan}

    with pytest.raises(FloatingPointError, match="the last 16 of 20 batches were skipped"):
        run(tmp_path, 100, broken, max_skipped=12)


def test_rows_must_divide_over_the_devices() -> None:
    batch = {"x": np.zeros((6, 3)), "mask": np.zeros(6)}
    assert jax.tree.map(np.shape, split_devices(batch, 2)) == {"x": (2, 3, 3), "mask": (2, 3)}
    with pytest.raises(ValueError, match="6 rows on 4 devices; use a multiple of 4"):
        split_devices(batch, 4)


TWO_PROCESSES = """
import sys
from pathlib import Path
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
index, steps = int(sys.argv[3]), int(sys.argv[4])
jax.distributed.initialize(sys.argv[5], 2, index)
import test_training_loop as here

def share(first):
    for batch in here.batches(first):
        yield {name: values[index::2] for name, values in batch.items()}

state = here.run(Path(sys.argv[2]), steps, share, save_every=4, log_every=1)
if index == 1:
    np.save(Path(sys.argv[2]) / "w.npy", np.asarray(state.params["w"]))
"""


def two_processes(directory: Path, steps: int) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    here, root = str(Path(__file__).parent), Path(__file__).parents[2]
    commands = [
        [sys.executable, "-c", TWO_PROCESSES, here, str(directory), str(index), str(steps), address] for index in (0, 1)
    ]
    processes = [subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


@pytest.mark.full
def test_two_processes_have_the_losses_of_one_and_resume(tmp_path: Path) -> None:
    two_processes(tmp_path / "two", 6)
    two_processes(tmp_path / "two", 10)  # Goes on from step 6; the second process has no checkpoints of its own.
    whole = run(tmp_path / "one", 10, log_every=1)
    np.testing.assert_allclose(np.load(tmp_path / "two" / "w.npy"), np.asarray(whole.params["w"]), rtol=1e-5)
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    for name in ("loss", "tokens", "grad_norm"):
        assert [step for step, _ in two[name]] == list(range(1, 11))
        np.testing.assert_allclose([value for _, value in two[name]], [value for _, value in one[name]], rtol=1e-5)
