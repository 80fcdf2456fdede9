"""python -m kangaroo_jax: what it writes, and how it fails."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import kangaroo_jax
from kangaroo_jax import __main__ as command
from kangaroo_jax import generate
from kangaroo_jax.compare import Pair

PROMPT = "def f(x):"
KEYS = {
    "plain_tokens_per_second",
    "kangaroo_tokens_per_second",
    "speedup",
    "compression_rate",
    "identical",
    "prompts",
    "new_tokens",
}


@pytest.fixture
def run(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command on the tiny model; returns exit status, standard output and standard error."""

    def call(*argv: str, model: str = str(tiny_model)) -> tuple[int, str, str]:
        status = command.main(["--model", model, "--max-new-tokens", "20", *argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def failed(outcome: tuple[int, str, str]) -> str:
    """Return the one line that a command which refused its input wrote."""
    status, out, err = outcome
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    return err


@pytest.mark.parametrize("method", ["kangaroo", "plain"])
def test_the_text_is_streamed_after_its_prompt(run: Any, tiny: kangaroo_jax.Params, method: str) -> None:
    status, out, err = run(PROMPT, "--method", method)
    expected = generate(tiny, PROMPT, max_new_tokens=20, method=method)
    assert status == 0
    # The line's end is no part of the text; standard error has one in front of the figures.
    assert out.removesuffix("\n") == PROMPT + expected.text
    assert f"{expected.stats.rounds} rounds" in err and "20 tokens" in err


def test_json_of_one_text(run: Any, tiny: kangaroo_jax.Params) -> None:
    status, out, err = run(PROMPT, "--json", "--gamma", "3", "--eta", "0.9")
    assert (status, err) == (0, "")
    fields = json.loads(out)
    expected = generate(tiny, PROMPT, max_new_tokens=20, gamma=3, eta=0.9)
    assert (fields["text"], fields["finish_reason"]) == (expected.text, expected.finish_reason)
    assert (fields["gamma"], fields["eta"], fields["new_tokens"]) == (3, 0.9, 20)
    assert fields["accept_lengths"] == list(expected.stats.accept_lengths)
    assert out.count("\n") == 1


def test_json_of_a_comparison(run: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("def f", "class A", "import os")))
    status, out, err = run("--compare", "--json", "--prompts", str(prompts), "--repeats", "2")
    assert (status, err) == (0, "")
    assert out.count("\n") == 1
    figures = json.loads(out)
    assert set(figures) >= KEYS
    assert figures["identical"] is True
    assert (figures["prompts"], figures["new_tokens"]) == (3, 60)
    assert all(figures[name] > 0 for name in KEYS)


def test_table_of_a_comparison(run: Any) -> None:
    status, out, err = run(PROMPT, "--compare", "--repeats", "1")
    assert (status, err) == (0, "")
    assert "identical         yes" in out and "speedup" in out and "gamma 5, eta 0.3" in out


def test_the_texts_of_a_comparison_are_shown(run: Any, tiny: kangaroo_jax.Params) -> None:
    _, out, _ = run(PROMPT, "--compare", "--repeats", "1", "--show")
    assert PROMPT + generate(tiny, PROMPT, max_new_tokens=20).text in out


def test_an_empty_prompt_is_a_prompt(run: Any, tiny: kangaroo_jax.Params) -> None:
    status, out, _ = run("")
    assert status == 0 and out.removesuffix("\n") == generate(tiny, "", max_new_tokens=20).text
    status, out, _ = run("", "--compare", "--json", "--repeats", "1")
    assert status == 0 and json.loads(out)["prompts"] == 1


def test_a_difference_is_reported_and_is_exit_status_1(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = command.compare

    def differing(*args: Any, **options: Any) -> list[Pair]:
        (pair,) = real(*args, **options)
        other = dataclasses.replace(pair.plain, token_ids=(*pair.plain.token_ids[:-1], 0))
        return [dataclasses.replace(pair, plain=other)]

    monkeypatch.setattr(command, "compare", differing)
    status, out, _ = run(PROMPT, "--compare", "--json", "--repeats", "1")
    assert status == 1 and json.loads(out)["identical"] is False
    status, out, _ = run(PROMPT, "--compare", "--repeats", "1")
    assert status == 1 and "identical         NO" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ("no prompt", "--help")),
        ([PROMPT, "--prompts", "x.jsonl"], ("both a prompt and --prompts",)),
        ([PROMPT, "--max-new-tokens", "-1"], ("max_new_tokens is -1", "at least 0")),
        ([PROMPT, "--gamma", "0"], ("gamma is 0", "at least 1")),
        ([PROMPT, "--eta", "-0.1"], ("eta is -0.1", "0 or more")),
        ([PROMPT, "--eta", "nan"], ("eta is nan", "0 or more")),
        ([PROMPT, "--eta", "inf", "--json"], ("eta is inf", "0 or more")),
        ([PROMPT, "--compare", "--repeats", "0"], ("repeats is 0", "at least 1")),
        ([PROMPT, "--compare", "--show", "--repeats", "0"], ("repeats is 0", "at least 1")),
        ([PROMPT, "--compare", "--gamma", "0"], ("gamma is 0", "at least 1")),
        (["x" * 101], ("prompt has 102 tokens", "shorten")),
        (["a\udcff"], ("prompt", "surrogate")),  # what Python makes of a byte that is not UTF-8
        ([PROMPT, "--adapter", "nowhere"], ("nowhere", "train.adapter")),
        (["--compare", "--prompts", "nowhere.jsonl"], ("nowhere.jsonl", "No such file")),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(run: Any, argv: list[str], words: tuple[str, ...]) -> None:
    message = failed(run(*argv))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("content", ["", "not json\n", '{"text": "a"}\n', '{"prompt": 5}\n'])
def test_bad_prompt_files_are_one_line(run: Any, tmp_path: Path, content: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    assert str(file) in failed(run("--compare", "--prompts", str(file)))


def test_an_unknown_model_is_one_line(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path))
    assert "unknown model 'gpt-5'" in failed(run(PROMPT, model="gpt-5"))


def test_a_truncated_model_is_one_line(run: Any, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:999])
    assert str(file) in failed(run(PROMPT, model=str(model)))


def test_a_model_without_an_adapter_is_one_line(run: Any, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "copy", ignore=shutil.ignore_patterns("adapter")))
    assert "has no adapter" in failed(run(PROMPT, model=str(model)))
    assert "has no adapter" in failed(run(PROMPT, "--compare", model=str(model)))
    assert run(PROMPT, "--method", "plain", model=str(model))[0] == 0


def test_options_that_are_no_numbers_are_argparses(run: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run(PROMPT, "--max-new-tokens", "many")
    assert caught.value.code == 2


def test_an_interruption_is_quiet(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kangaroo_jax, "stream", interrupted)
    status, _, err = run(PROMPT)
    assert status == 130 and "Traceback" not in err


def test_a_closed_pipe_is_quiet(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m kangaroo_jax ... | head -1``: whoever reads has read enough."""

    def closed(*args: Any, **options: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(kangaroo_jax, "stream", closed)
    status, _, err = run(PROMPT)
    assert status != 0 and err == ""
