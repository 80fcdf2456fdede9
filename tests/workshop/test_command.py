"""How commands end: statuses, and one line for whatever went wrong."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from workshop.command import Terminated, check_counts, check_numbers, exit_status


def raising(error: BaseException):
    def command() -> int:
        raise error

    return command


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.json")
AGAIN = "the same command goes on from here"


@pytest.mark.parametrize(
    ("error", "options", "status", "said"),
    [
        (ValueError("gamma is 0"), {}, 2, "error: gamma is 0"),
        (ValueError("gamma is 0"), {"name": "adapter", "refused": 1}, 1, "adapter: gamma is 0"),
        (FloatingPointError("loss is nan"), {}, 2, "error: loss is nan"),
        (NO_SPACE, {"afterwards": AGAIN}, 2, "error: No space left on device: out.json"),
        (
            NO_SPACE,
            {"name": "convert", "afterwards": AGAIN, "out": Path("here")},
            2,
            "convert: No space left on device: out.json; "
            f"is here a place that can be written, with room? Then: {AGAIN}",
        ),
        (OSError("no number"), {}, 2, "error: no number"),
        (KeyboardInterrupt(), {"afterwards": AGAIN}, 130, f"interrupted; {AGAIN}"),
        (KeyboardInterrupt(), {"name": "adapter"}, 130, "adapter: interrupted"),
        (Terminated(), {"afterwards": AGAIN}, 0, f"terminated, what was finished is kept; {AGAIN}"),
        (RuntimeError("9 GB"), {"explain": lambda error: f"out of memory: {error}"}, 2, "error: out of memory: 9 GB"),
    ],
)
def test_what_ends_a_command(
    error: BaseException, options: dict[str, Any], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(raising(error), **options) == status
    assert capsys.readouterr().err.strip() == said


def test_a_mistake_of_the_program_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        exit_status(raising(RuntimeError("a bug")))


def test_what_a_user_has_set_for_jax_is_nothing_to_a_command() -> None:
    def work() -> int:
        assert (jnp.ones((2, 3)) + jnp.arange(3)).dtype == jnp.float32
        return 7

    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert exit_status(work) == 7


def test_a_command_may_have_a_status_of_its_own() -> None:
    assert exit_status(lambda: 1) == 1 and exit_status(lambda: None) == 0


def test_numbers_without_sense_are_named_as_they_are_typed() -> None:
    args = argparse.Namespace(max_new_tokens=0, limit=None, share=1.5)
    with pytest.raises(ValueError, match=r"^--max-new-tokens is 0; it must be at least 1$"):
        check_counts(args, "limit", "max_new_tokens")
    with pytest.raises(ValueError, match=r"^--share is 1\.5; it must be 1 at most$"):
        check_numbers(args, ("max_new_tokens", True, ""), ("share", args.share <= 1, "1 at most"))


def test_what_a_command_prints_is_in_a_log_at_once() -> None:
    work = "import time; from workshop.command import exit_status as e; e(lambda: print('begun') or time.sleep(600))"
    with subprocess.Popen(
        [sys.executable, "-c", work], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        process.kill()
