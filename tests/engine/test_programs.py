"""Compiled programs outlive the process, in a folder of the user's choice or the home folder, unless turned off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from kangaroo_jax.engine.programs import ONE_GRAPH, compile_with

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
    for options, used in ((ONE_GRAPH, True), ({"xla_gpu_no_such_option": "1"}, False), (None, True)):
        program, taken = compile_with(lowered, options)
        assert program(1.0) == 2.0 and taken is used
