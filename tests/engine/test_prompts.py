"""Prompts: text as the tokenizer takes it, conversations as the template takes them, and no id that the model lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core

import kangaroo_jax
from bench.question_set import Question, prompt_of
from kangaroo_jax.engine import prompt_ids
from kangaroo_jax.text import chat_ids, load_tokenizer
from train.byte_tokenizer import write_byte_tokenizer
from train.data import Shape, load_data

START = "<|im_start|>"
BEYOND = r"^(question 1, turn 1: )?'<\|im_start\|>' has token id 259, and ids of this model go from 0 to 258"
SAID = [{"role": "user", "content": "hop"}]
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ kind }};{% endfor %}"


@pytest.fixture(scope="module")
def wider(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose tokenizer has been given a token for which nobody has given the model an embedding."""
    directory = tmp_path_factory.mktemp("wider") / "model"
    shutil.copytree(tiny_model, directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"split_special_tokens": False, "chat_template": START + "{{ messages[0].content }}"}
    core = Core.from_file(str(directory / "tokenizer.json"))
    core.add_special_tokens([START])
    core.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    "call",
    [
        lambda params: kangaroo_jax.generate(params, START),
        lambda params: kangaroo_jax.generate(params, ["hop", START]),
        lambda params: kangaroo_jax.generate(params, SAID),
        lambda params: kangaroo_jax.stream(params, "a" + START),
        lambda params: kangaroo_jax.Chat(params),
        lambda params: prompt_of(params, Question(1, "qa", (START,)), [], chat=False),
        lambda params: prompt_of(params, Question(1, "qa", ("hop",)), [], chat=True),
    ],
)
def test_tokens_without_an_embedding_are_refused_by_name(call: Callable[..., Any], wider: Path) -> None:
    with pytest.raises(ValueError, match=BEYOND) as caught:
        call(kangaroo_jax.load(wider))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [{"text": "a" + START}, {"messages": [*SAID, {"role": "assistant", "content": "hop"}]}])
def test_so_are_they_in_training_data(row: dict[str, Any], wider: Path, tmp_path: Path) -> None:
    params = kangaroo_jax.load(wider)
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 9)
    with pytest.raises(ValueError, match=r"'<\|im_start\|>' has token id 259, and ids of this model go from 0 to 258"):
        load_data([str(tmp_path / "rows.jsonl")], params.tokenizer, Shape(1, 31), model="x", eos_ids=[2])


def test_text_that_begins_with_bos_gets_a_second_one_and_a_warning(tiny: kangaroo_jax.Params, tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"split_special_tokens": False}))
    params = tiny.replace(tokenizer=load_tokenizer(tmp_path))
    with pytest.warns(UserWarning, match="^a prompt begins with BOS twice: its text has one, and the") as caught:
        ids, _ = prompt_ids(params, ["<s>hop", "<s>hop", "hop"])
    assert [row[:2].count(1) for row in ids] == [2, 2, 1]
    assert len(caught) == 1


def test_a_template_and_its_variables(tiny: kangaroo_jax.Params, recwarn: pytest.WarningsRecorder) -> None:
    options: dict[str, Any] = {"chat_template": TEMPLATE, "chat_template_kwargs": {"kind": "!"}}
    expected = tiny.tokenizer.encode("user:hop!;")
    assert prompt_ids(tiny, SAID, **options) == ([expected], False)
    assert prompt_ids(tiny, [SAID, SAID], **options) == ([expected] * 2, True)
    given = {"max_new_tokens": 3}
    result = kangaroo_jax.generate(tiny, SAID, **given, **options)
    assert result.token_ids == kangaroo_jax.generate(tiny, expected, **given).token_ids
    assert "".join(kangaroo_jax.stream(tiny, SAID, **given, **options)) == result.text
    assert not recwarn.list


def test_the_assistants_message_goes_on(tiny: kangaroo_jax.Params) -> None:
    begun = [*SAID, {"role": "assistant", "content": "Well"}]
    assert prompt_ids(tiny, begun)[0] == [chat_ids(tiny.tokenizer, "x", SAID) + tiny.tokenizer.encode("Well")[1:]]


def test_a_template_for_text_has_no_effect(tiny: kangaroo_jax.Params) -> None:
    with pytest.warns(UserWarning, match="^chat_template, chat_template_kwargs has no effect: pass messages"):
        ids, _ = prompt_ids(tiny, "hop", TEMPLATE, {"kind": "!"})
    assert ids == [tiny.tokenizer.encode("hop")]
