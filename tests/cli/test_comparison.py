"""python -m kangaroo_jax --compare: what it prints, and its exit status."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest

import kangaroo_jax
from kangaroo_jax import generate
from kangaroo_jax.cli import comparison as command
from kangaroo_jax.proof.compare import Pair

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
    assert "identical: yes" in out and "speedup" in out and "gamma 5, eta 0.3" in out


def test_where_drafting_does_not_pay_it_says_what_does(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = command.compare

    def timed(seconds: float, *args: Any, **options: Any) -> list[Pair]:
        taken = {"plain_seconds": (1.0,), "kangaroo_seconds": (seconds,)}
        return [dataclasses.replace(pair, **taken) for pair in real(*args, **options)]

    for seconds in (0.9, 1.1):
        monkeypatch.setattr(command, "compare", functools.partial(timed, seconds))
        out = run(PROMPT, "--compare", "--repeats", "1", "--kernels", "xla")[1]
        slower = seconds > 1
        assert ("`--method plain` is faster" in out) is slower and ("see docs/kernels.md" in out) is slower


def test_the_texts_of_a_comparison_are_shown(run: Any, tiny: kangaroo_jax.Params) -> None:
    _, out, _ = run(PROMPT, "--compare", "--repeats", "1", "--show")
    assert PROMPT + generate(tiny, PROMPT, max_new_tokens=20).text in out


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
    assert status == 1 and "identical: NO" in out


@pytest.mark.parametrize("content", ["", "not json\n", '{"text": "a"}\n', '{"prompt": 5}\n'])
def test_bad_prompt_files_are_one_line(refused: Any, tmp_path: Path, content: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    assert str(file) in refused("--compare", "--prompts", str(file))
