"""python -m kangaroo_jax verify: what it prints, and its exit status."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import kangaroo_jax
from kangaroo_jax import Generation
from kangaroo_jax.cli import verify_command as verify
from kangaroo_jax.proof import lossless
from kangaroo_jax.proof.compare import read_prompts

PROMPT = "def f(x):"


@pytest.fixture
def run(run: Any) -> Any:
    return partial(run, command="verify")


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the last token of Kangaroo's texts another one."""

    def generate(*args: Any, method: str, **options: Any) -> Generation:
        out = kangaroo_jax.generate(*args, method=method, **options)
        other = (*out.token_ids[:-1], (out.token_ids[-1] + 1) % 256)
        return dataclasses.replace(out, token_ids=other) if method == "kangaroo" else out

    monkeypatch.setattr(lossless, "generate", generate)


def test_table_of_some_prompts(run: Any) -> None:
    status, out, err = run(PROMPT, "import os", "--gamma", "3", "--eta", "0.9")
    assert (status, err) == (0, "")
    assert PROMPT in out and "import os" in out
    assert "gamma 3, eta 0.9" in out and "compared    40 tokens of 2 prompts" in out and "lossless    yes" in out


def test_json_of_a_file_of_prompts(run: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "def f"}\n{"prompt": "class A", "name": "second"}\n')
    status, out, err = run("--prompts", str(prompts), "--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    fields = json.loads(out)
    assert (fields["identical"], fields["lossless"], fields["tokens"], fields["tie_rate"]) == (True, True, 40, 0)
    assert [row["name"] for row in fields["rows"]] == ["prompt 1", "second"]
    assert fields["dtype"] == "float32"


def test_prompts_may_come_through_a_pipe(run: Any, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"prompt": "def f"}\n',), daemon=True)
    writer.start()
    status, out, err = run("--prompts", str(pipe), "--json")
    assert (status, err) == (0, "") and len(json.loads(out)["rows"]) == 1


def test_the_dtype_is_that_of_the_option(run: Any) -> None:
    status, out, _ = run(PROMPT, "--dtype", "bfloat16", "--json")
    assert status == 0 and json.loads(out)["dtype"] == "bfloat16"


def test_the_built_in_prompts_are_the_default(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def remembering(params: Any, prompts: Any, **options: Any) -> Any:
        seen.update(options, prompts=prompts)
        return lossless.verify_lossless(params, PROMPT, max_new_tokens=1)

    monkeypatch.setattr(verify, "verify_lossless", remembering)
    assert run()[0] == 0
    rows = read_prompts()
    assert seen["prompts"] == [row["prompt"] for row in rows] and seen["names"] == [row["name"] for row in rows]


@pytest.mark.usefixtures("wrong")
def test_a_difference_is_exit_status_1(run: Any) -> None:
    status, out, _ = run(PROMPT)
    assert status == 1 and "lossless    NO" in out and "gap" in out
    status, out, _ = run(PROMPT, "--json")
    (row,) = json.loads(out)["rows"]
    assert (status, row["first_difference"], row["tie"]) == (1, 19, False)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a", "--prompts", "x.jsonl"], ("both prompts and --prompts",)),
        (["--prompts", "nowhere.jsonl"], ("nowhere.jsonl", "No such file")),
        ([PROMPT, "--gamma", "0"], ("gamma is 0", "at least 1")),
        ([PROMPT, "--max-new-tokens", "-1"], ("max_new_tokens is -1", "at least 0")),
        (["x" * 101], ("prompt 0 has 102 tokens", "shorten")),
        (["a\udcff"], ("prompt", "surrogate")),
        ([PROMPT, "--adapter", "nowhere"], ("nowhere", "train.adapter")),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(refused: Any, argv: list[str], words: tuple[str, ...]) -> None:
    message = refused(*argv, command="verify")
    assert all(word in message for word in words), message
