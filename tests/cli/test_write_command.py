"""python -m kangaroo_jax PROMPT: what it writes, and how it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import kangaroo_jax
from kangaroo_jax import generate
from kangaroo_jax.cli.write_command import build_parser

PROMPT = "def f(x):"


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


def test_an_empty_prompt_is_a_prompt(run: Any, tiny: kangaroo_jax.Params) -> None:
    status, out, _ = run("")
    assert status == 0 and out.removesuffix("\n") == generate(tiny, "", max_new_tokens=20).text
    status, out, _ = run("", "--compare", "--json", "--repeats", "1")
    assert status == 0 and json.loads(out)["prompts"] == 1


SAMPLING = {"--temperature": 1.5, "--top-k": 7, "--top-p": 0.9, "--min-p": 0.1, "--seed": 5}


@pytest.mark.parametrize("given", [["--do-sample"], *([option] for option in SAMPLING), [*SAMPLING]])
def test_an_option_of_sampling_draws_tokens(run: Any, monkeypatch: pytest.MonkeyPatch, given: list[str]) -> None:
    def remembering(*args: Any, **options: Any) -> Any:
        seen.append(options)
        return generate(*args, **options)

    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(kangaroo_jax, "generate", remembering)
    argv = [word for option in given for word in (option, *([str(SAMPLING[option])] if option in SAMPLING else []))]
    assert run(PROMPT, "--json", *argv)[0] == 0
    values = {option[2:].replace("-", "_"): SAMPLING[option] for option in given if option in SAMPLING}
    unset = {"max_new_tokens": 20, **dict.fromkeys(("gamma", "eta", "siblings", "lookup", "method", "stop_strings"))}
    assert seen == [unset | {"do_sample": True} | values]


def test_a_seed_gives_the_same_text_again(run: Any, tiny: kangaroo_jax.Params) -> None:
    argv = (PROMPT, "--temperature", "2", "--seed", "5")
    expected = generate(tiny, PROMPT, max_new_tokens=20, do_sample=True, temperature=2, seed=5).text
    assert run(*argv)[1] == run(*argv)[1] == PROMPT + expected + "\n"
    assert expected != generate(tiny, PROMPT, max_new_tokens=20).text


def test_the_text_ends_before_a_stop_string(run: Any, tiny: kangaroo_jax.Params) -> None:
    text = generate(tiny, PROMPT, max_new_tokens=20).text
    stop = text[9:11]
    assert text.index(stop) == 9
    assert run(PROMPT, "--stop", "never", "--stop", stop)[1] == PROMPT + text[:9] + "\n"
    fields = json.loads(run(PROMPT, "--stop", stop, "--json")[1])
    assert (fields["text"], fields["finish_reason"]) == (text[:9], "stop")


@pytest.mark.parametrize(
    ("typed", "meant"), [(r"\nUser:", "\nUser:"), (r"a\tb", "a\tb"), (r"\\n", r"\n"), (r"\d\x", r"\d\x"), ("\\", "\\")]
)
def test_line_breaks_can_be_typed_in_a_stop_string(typed: str, meant: str) -> None:
    assert build_parser().parse_args(["--stop", typed]).stop == [meant]


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
        ([PROMPT, "--temperature", "-1"], ("temperature is -1", "0 or more")),
        ([PROMPT, "--top-p", "0"], ("top_p is 0",)),
        ([PROMPT, "--seed", "-1"], ("seed is -1", "at least 0")),
        ([PROMPT, "--stop", ""], ("stop_strings", "empty")),
        (["--compare", "--stop", "x", "--temperature", "0"], ("--compare", "leave out --stop, --temperature")),
        ([PROMPT, "--compare", "--do-sample"], ("greedy", "leave out --do-sample")),
        (["x" * 101], ("prompt has 102 tokens", "shorten")),
        (["a\udcff"], ("prompt", "surrogate")),  # what Python makes of a byte that is not UTF-8
        ([PROMPT, "--adapter", "nowhere"], ("nowhere", "train.adapter")),
        (["--compare", "--prompts", "nowhere.jsonl"], ("nowhere.jsonl", "No such file")),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(refused: Any, argv: list[str], words: tuple[str, ...]) -> None:
    message = refused(*argv)
    assert all(word in message for word in words), message


def test_an_unknown_model_is_one_line(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path))
    assert "unknown model 'gpt-5'" in refused(PROMPT, model="gpt-5")


def test_a_truncated_model_is_one_line(refused: Any, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:999])
    assert str(file) in refused(PROMPT, model=str(model))


def test_a_model_without_an_adapter_is_one_line(run: Any, refused: Any, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "copy", ignore=shutil.ignore_patterns("adapter")))
    assert "has no adapter" in refused(PROMPT, model=str(model))
    assert "has no adapter" in refused(PROMPT, "--compare", model=str(model))
    assert run(PROMPT, "--method", "plain", model=str(model))[0] == 0


def test_options_that_are_no_numbers_are_argparses(run: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run(PROMPT, "--max-new-tokens", "many")
    assert caught.value.code == 2
