"""Compiled programs outlive the process, in a folder of the user's choice or the home folder, unless turned off."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from kangaroo_jax.engine.programs import (
    GRAPH_SWITCH,
    HOST_LOOPS,
    ONE_GRAPH,
    OPTIONS,
    compile_with,
    compiled,
    executables,
    one_graph,
)

pytestmark = pytest.mark.optimised  # What is compiled in no time is not kept.

CODE = """
import sys, jax
jax.jit(lambda x: x + 1)(1)  # Something was compiled before: JAX has looked for a cache already.
import kangaroo_jax
params = kangaroo_jax.load(sys.argv[1])
out = kangaroo_jax.generate(params, "def", max_new_tokens=9)
print(out.token_ids, out.stats.compile_seconds)
"""


def run(model: Path, home: Path, **env: str) -> str:
    ours = ("KANGAROO_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    command = [sys.executable, "-c", CODE, str(model)]
    done = subprocess.run(
        command, env={**clean, "KANGAROO_HOME": str(home), **env}, capture_output=True, text=True, check=True
    )
    return done.stdout.split("]")[0].split(")")[0]


def programs(folder: Path) -> int:
    return len(list(folder.glob("jit_*-cache")))


def test_a_second_process_finds_the_programs_of_the_first(tiny_model: Path, tmp_path: Path) -> None:
    cold = run(tiny_model, tmp_path)
    kept = programs(tmp_path / ".compiled")
    assert kept >= 1
    assert run(tiny_model, tmp_path) == cold
    assert programs(tmp_path / ".compiled") == kept


@pytest.mark.full
def test_the_cache_can_be_turned_off(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, KANGAROO_COMPILATION_CACHE="off")
    assert not (tmp_path / ".compiled").exists()


@pytest.mark.full
def test_a_cache_of_the_users_own_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert not (tmp_path / "home").exists()


@pytest.mark.full
def test_a_folder_that_cannot_be_written_is_no_error(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    assert run(tiny_model, tmp_path / "home").startswith("(")


def test_options_that_xla_does_not_know_are_dropped() -> None:
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    wrong = {"xla_gpu_graph_min_graph_size": "few"}
    for options, used in (
        (ONE_GRAPH, True),
        (HOST_LOOPS, True),
        (wrong, False),
        ({"xla_gpu_no_such_option": "1"}, False),
        (None, True),
    ):
        program, taken = compile_with(lowered, options)
        assert program(1.0) == 2.0 and taken is used


def test_programs_on_one_nvidia_gpu_are_one_graph_unless_that_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GRAPH_SWITCH, raising=False)
    cuda = "PJRT C API\ncuda 13000"
    assert one_graph(cuda, spread=False)
    assert not one_graph(cuda, spread=True)
    assert not one_graph("PJRT C API\nrocm 70000", spread=False)
    monkeypatch.setenv(GRAPH_SWITCH, "0")
    assert not one_graph(cuda, spread=False)


def test_no_jax_that_is_supported_crashes_in_graphs_with_loops() -> None:
    """openxla/xla 36135 is of January 2026; jax 0.9.0 may be without it, and 0.10.0 took its XLA on 15 April."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (needed,) = (line for line in project["dependencies"] if line.startswith("jax>="))
    assert tuple(int(part) for part in needed.removeprefix("jax>=").split(".")) >= (0, 10)


def test_usual_options_can_be_taken_away() -> None:
    function, before = jax.jit(lambda x: x + 1), executables()
    for extra in (None, {}, dict.fromkeys(OPTIONS["cpu"]), ONE_GRAPH, HOST_LOOPS):
        program, _ = compiled(function, {}, np.float32(1), extra=extra)
        assert program(np.float32(1)) == 2
    assert executables() - before == 4
