"""A chat model answers what another one goes on with, in every command; and what is written shows who wrote it."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import kangaroo_jax
from kangaroo_jax import generate
from kangaroo_jax.cli import terminal
from kangaroo_jax.proof import built_in, read_prompts

PROMPT = "def f(x):"
TEMPLATE = "{% for message in messages %}{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}>"


@pytest.fixture(scope="module")
def chatty(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template that ends answers."""
    model = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("chatty") / "model"))
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    return model


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_text_is_answered_and_with_raw_gone_on_with(run: Any, chatty: Path) -> None:
    params = kangaroo_jax.load(chatty)
    answer = generate(params, asked(PROMPT), max_new_tokens=20)
    raw = generate(params, PROMPT, max_new_tokens=20)
    assert answer.token_ids != raw.token_ids
    assert run(PROMPT, model=str(chatty))[:2] == (0, answer.text + "\n")
    assert run(PROMPT, "--raw", model=str(chatty))[:2] == (0, PROMPT + raw.text + "\n")
    for given, expected in (((), answer), (("--raw",), raw)):
        assert json.loads(run(PROMPT, "--json", *given, model=str(chatty))[1])["token_ids"] == [*expected.token_ids]


def test_the_built_in_prompts_of_a_chat_model_are_questions(tiny: kangaroo_jax.Params, chatty: Path) -> None:
    params = kangaroo_jax.load(chatty)
    questions, shown = read_prompts(built_in="questions"), read_prompts(built_in="shown")
    assert built_in(params) == [{**row, "prompt": asked(row["prompt"])} for row in questions]
    assert built_in(params, shown=True) == [{**row, "prompt": asked(row["prompt"])} for row in shown]
    assert built_in(tiny) == built_in(tiny, shown=True) == read_prompts()
    names = [row["name"] for row in (*questions, *shown)]
    assert (len(questions), len(shown), len(set(names))) == (8, 4, 12)


def test_a_comparison_shows_other_questions_than_it_measures(run: Any, chatty: Path) -> None:
    status, out, _ = run("--compare", "--show", "--repeats", "1", model=str(chatty))
    assert status == 0 and "identical: yes" in out
    shown, table = out.split("speedup     CR")
    params = kangaroo_jax.load(chatty)
    for row in built_in(params, shown=True):
        answer = generate(params, row["prompt"], max_new_tokens=512)  # Whole, whatever is measured.
        tokens = f"[{len(answer.token_ids)} tokens: {sum(answer.origins)} drafted and accepted, "
        assert f"--- {row['prompt'][0]['content']}\n{answer.text}\n{tokens}" in shown
    assert all(f"\n{row['name']}  " in table for row in built_in(params))


def test_other_commands_ask_as_well(run: Any, chatty: Path, tmp_path: Path) -> None:
    params = kangaroo_jax.load(chatty)
    ids = [len(generate(params, prompt, max_new_tokens=20).token_ids) for prompt in (asked(PROMPT), asked("a"))]
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": PROMPT}) + "\n" + json.dumps({"prompt": "a"}) + "\n")
    for given in (("--prompts", str(file)), (PROMPT, "a")):
        rows = json.loads(run("--json", *given, command="verify", model=str(chatty))[1])["rows"]
        assert [row["tokens"] for row in rows] == ids
        assert all(row["identical"] for row in rows)
    (row, *_) = json.loads(run("--json", "a\nb", command="verify", model=str(chatty))[1])["rows"]
    assert row["name"] == "a b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_accepted_drafts_are_green_on_a_terminal(tiny: kangaroo_jax.Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    out = terminal.write(tiny, PROMPT, {})
    written = screen.getvalue()
    green = re.findall("\033\\[32m(.*?)\033\\[0m", written, re.DOTALL)
    assert "".join(green) == "".join(text for text, drafted in out.spans() if drafted) != ""
    assert re.sub("\033\\[\\d*m", "", written) == PROMPT + out.text + "\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_there_is_no_colour_where_none_is_wanted(
    tiny: kangaroo_jax.Params, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    out = terminal.write(tiny, PROMPT, {})
    assert screen.getvalue() == PROMPT + out.text + "\n"
