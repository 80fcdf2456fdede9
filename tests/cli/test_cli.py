"""Which command the first word names, and how all commands end."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kangaroo_jax
from kangaroo_jax import cli, generate

EACH = pytest.mark.parametrize("command", ["", *cli.COMMANDS])
PROMPTS = {"chat": (), "tune": ()}
"""What each command needs on its command line; a prompt unless it stands here."""


@EACH
def test_each_command_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert out.startswith(f"usage: {f'python -m kangaroo_jax {command}'.rstrip()} ")
    found_out = ("--max-gamma", "--save") if command == "tune" else ("--gamma", "--eta")
    assert all(option in out for option in ("--model", "--adapter", "--dtype", "--max-new-tokens", *found_out))


def test_the_help_of_the_program_names_its_commands() -> None:
    text = importlib.import_module(cli.DEFAULT).build_parser().format_help()
    assert all(f"python -m kangaroo_jax {command} " in text for command in cli.COMMANDS)


def test_a_command_that_is_not_asked_for_is_not_imported() -> None:
    code = "import sys, kangaroo_jax.cli as c; print([m for m in sys.modules if m.startswith(c.__name__ + '.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_a_command_word_can_be_a_prompt(run: Any, tiny: kangaroo_jax.Params, command: str) -> None:
    expected = command + generate(tiny, command, max_new_tokens=20).text + "\n"
    assert run("--", command)[:2] == (0, expected)
    assert run(command)[:2] == (0, expected)  # behind --model, so not the first word


def test_the_two_dashes_may_stand_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m kangaroo_jax -- verify``, with nothing in front."""

    def remember(args: argparse.Namespace) -> int:
        seen.append(args.prompt)
        return 0

    seen: list[str] = []
    monkeypatch.setattr(importlib.import_module(cli.DEFAULT), "run", remember)
    assert cli.main(["--", "verify"]) == 0 and seen == ["verify"]


def test_without_arguments_those_of_the_process_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kangaroo_jax", "verify", "--max-new-tokens", "many"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2 and "invalid int value: 'many'" in capsys.readouterr().err


@EACH
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("gamma is 0"), 2, "error: gamma is 0\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_all_commands_end_alike(
    run: Any, monkeypatch: pytest.MonkeyPatch, command: str, error: BaseException, status: int, words: str
) -> None:
    def failing(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(kangaroo_jax, "load", failing)
    assert run(*PROMPTS.get(command, ("def f(x):",)), command=command) == (status, "", words)


def test_a_reader_who_has_read_enough_is_no_error(tiny_model: Path) -> None:
    """The pipe closes before anything is written, so that only flushing at the end can notice."""
    argv = [sys.executable, "-m", "kangaroo_jax", "--model", str(tiny_model), "--max-new-tokens", "1", "--json", "a"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert b"BrokenPipe" not in process.stderr.read()
    assert process.returncode == 1
