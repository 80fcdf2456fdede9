"""How far long work is, where standard error is a pipe, a file or a terminal: real ones."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

FILE = Path(__file__).parents[1] / "kangaroo_jax" / "progress.py"
WORK = """
import importlib.util, sys, time  # The file alone: a process starts fast without JAX.
spec = importlib.util.spec_from_file_location("progress", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.EVERY = float(sys.argv[2])
with module.progress(total=8, desc="adapter", unit="step") as bar:
    for done in range(1, 9):
        time.sleep(1.5 if done == 4 else 0.06)
        bar.set_postfix(loss=f"{8 / done:.2f}", refresh=False)
        bar.update()
for _ in module.progress(range(3), desc="short", unit="row"):
    pass
for _ in module.progress(iter(range(7)), desc="endless", unit="row", leave=False):
    time.sleep(0.06)
"""


def command(every: float) -> list[str]:
    return [sys.executable, "-c", WORK, str(FILE), str(every)]


def lines_of(every: float) -> list[str]:
    done = subprocess.run(command(every), stderr=subprocess.PIPE, check=True)
    assert b"\r" not in done.stderr and b"\x1b" not in done.stderr
    return done.stderr.decode().splitlines()


def test_a_pipe_gets_whole_lines_now_and_then() -> None:
    lines = lines_of(0.15)
    counted = [line for line in lines if line.startswith("adapter: ")]
    form = re.compile(r"adapter: +(\d+)% (\d)/8 step \[00:0\d<(00:0\d|\?), +[\d.]+s?(/|step).*(, loss=\d\.\d\d)?\]")
    found = [form.fullmatch(line) for line in counted]
    assert all(found), counted
    steps = [int(match[2]) for match in found if match]
    assert steps == sorted(steps) and steps[-1] == 8 and 4 <= len(steps) < 14
    assert steps.count(3) >= 2  # A step that takes long does not leave the reader alone.
    assert "loss=1.00" in counted[-1]
    endless = [line for line in lines if line.startswith("endless: ")]
    assert endless and all(re.fullmatch(r"endless: \d row \[00:0\d, .*row/s\]", line) for line in endless)
    assert len(counted) + len(endless) == len(lines)  # Nothing of what is over at once.


def test_short_work_leaves_a_pipe_alone() -> None:
    assert lines_of(60) == []


def test_a_terminal_has_a_bar() -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    with subprocess.Popen(command(0.15), stderr=slave) as process:
        os.close(slave)
        shown = b""
        while process.poll() is None or shown[-1:] != b"\n":
            try:
                shown += os.read(master, 4096)
            except OSError:  # How the end of a terminal reads.
                break
    os.close(master)
    text = shown.decode()
    assert text.count("\r") > 8 and "adapter: 100%|" in text and "8/8 [" in text and "short: 100%|" in text
