"""Runs the command line on the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kangaroo_jax.cli import main

Outcome = tuple[int, str, str]


@pytest.fixture
def run(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command, named by its first word or by none; returns exit status, standard output and standard error."""

    def call(*argv: str, command: str = "", model: str = str(tiny_model)) -> Outcome:
        status = main([*command.split(), "--model", model, "--max-new-tokens", "20", *argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def refused(run: Callable[..., Outcome]) -> Callable[..., str]:
    """Run a command that must refuse its input; returns the one line it wrote."""

    def call(*argv: str, **options: str) -> str:
        status, out, err = run(*argv, **options)
        assert (status, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
        return err

    return call
