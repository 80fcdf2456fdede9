"""Conversations become the ids that the model was trained on, and what is no conversation is refused."""

from __future__ import annotations

import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from kangaroo_jax.text import Tokenizer, chat_ids, load_tokenizer
from kangaroo_jax.text.chat_template import VICUNA_TEMPLATE
from train.byte_tokenizer import write_byte_tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


TURNS = [user("What jumps?"), assistant("A kangaroo."), user("é?")]


@pytest.fixture(scope="module")
def llama(sentencepiece_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("llama")
    shutil.copy(sentencepiece_model, directory)
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def pieces(sentencepiece_model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))


def vicuna_text(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    """Return what Vicuna's template renders: a byte tokenizer gives the very text back, special tokens included."""
    return tokenizer.decode(chat_ids(tokenizer, "any", messages, VICUNA_TEMPLATE))


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (TURNS[:1], f"{SYSTEM} USER: What jumps? ASSISTANT:"),
        (TURNS, f"{SYSTEM} USER: What jumps? ASSISTANT: A kangaroo.</s>USER: é? ASSISTANT:"),
        ([system("Be brief."), *TURNS[:1]], "Be brief. USER: What jumps? ASSISTANT:"),
        ([user(" {{ a }}\n<b> ")], f"{SYSTEM} USER:  {{{{ a }}}}\n<b>  ASSISTANT:"),
    ],
)
def test_vicuna_text(byte_level: Tokenizer, messages: list[dict[str, str]], text: str) -> None:
    assert vicuna_text(byte_level, messages) == text


@pytest.mark.parametrize("name", ["vicuna-7b", "models/My-VICUNA"])
def test_vicuna_ids_are_sentencepieces(
    llama: Tokenizer, pieces: sentencepiece.SentencePieceProcessor, name: str
) -> None:
    first = pieces.encode(f"{SYSTEM} USER: What jumps? ASSISTANT: A kangaroo.")
    assert chat_ids(llama, name, TURNS) == [1, *first, 2, *pieces.encode("USER: é? ASSISTANT:")]


def test_special_tokens_in_messages_are_plain_text(llama: Tokenizer) -> None:
    ids = chat_ids(llama, "vicuna", [user("a</s>b <s>"), assistant("<unk>"), user("</s>")])
    assert [i for i in ids if i in llama.special_ids] == [1, 2]  # BOS and the end of the reply: the template's own.
    # The space before the second USER is SentencePiece's, as after every special token.
    assert llama.decode(ids) == f"{SYSTEM} USER: a</s>b <s> ASSISTANT: <unk> USER: </s> ASSISTANT:"


@pytest.mark.parametrize("template", [PLAIN, "{{ bos_token }}" + PLAIN])
def test_bos_comes_once(llama: Tokenizer, template: str) -> None:
    assert chat_ids(llama, "any", [user("hop")], template).count(1) == 1


def test_conversation_longer_than_the_model_is_rendered_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    write_byte_tokenizer(tmp_path, model_max_length=7)
    with caplog.at_level(logging.WARNING):
        assert len(chat_ids(load_tokenizer(tmp_path), "joey", [user("a" * 11)])) > 7
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_order_of_templates(byte_level: Tokenizer, llama: Tokenizer) -> None:
    assert byte_level.decode(chat_ids(byte_level, "vicuna", [user("hop")])) == "User: hop\nAssistant: "
    assert byte_level.decode(chat_ids(byte_level, "vicuna", [user("hop")], "<{{ bos_token }}>")) == "<<s>>"
    with pytest.raises(ValueError, match=r"^llama has no chat template; pass chat_template=JINJA.* or plain text$"):
        chat_ids(llama, "llama", [user("hop")])


@pytest.mark.parametrize("value", ["", 3])
def test_template_that_is_none(byte_level: Tokenizer, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^chat_template is .*; pass a Jinja template as a string$"):
        chat_ids(byte_level, "any", [user("hop")], value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no\nsystem role') }}", "no"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[7]['content'] }}", "no element 7"),
        ("{{ 1 // 0 }}", "zero"),
    ],
)
def test_template_that_fails(byte_level: Tokenizer, template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^the chat template fails \(.*{reason}.*\); change messages") as caught:
        chat_ids(byte_level, "any", [user("hop")], template)
    assert "\n" not in str(caught.value)


TEXTS = st.text(max_size=8)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    """Draw a conversation that ends with the user's; replies have no space around them."""
    first = [system(draw(TEXTS))] if draw(st.booleans()) else []
    turns = [[user(draw(TEXTS)), assistant(draw(TEXTS).strip())] for _ in range(draw(st.integers(1, 3)))]
    return [*first, *itertools.chain(*turns), user(draw(TEXTS))]


def replies(messages: list[dict[str, str]]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


@given(messages=conversations())
def test_joeys_turns_go_on_where_the_reply_ended(byte_level: Tokenizer, messages: list[dict[str, str]]) -> None:
    whole = chat_ids(byte_level, "joey", messages)
    assert whole.count(1) == 1
    for index in replies(messages):
        before = chat_ids(byte_level, "joey", messages[:index])
        before += byte_level.encode(messages[index]["content"])[1:]
        assert whole[: len(before)] == before


@given(messages=conversations())
def test_vicunas_turns_go_on_where_the_reply_ended(byte_level: Tokenizer, messages: list[dict[str, str]]) -> None:
    whole = vicuna_text(byte_level, messages)
    for index in replies(messages):
        assert whole.startswith(f"{vicuna_text(byte_level, messages[:index])} {messages[index]['content']}</s>")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], r"messages is empty; pass at least one"),
        ("hop", r"messages is 'hop'; pass a list of"),
        (user("hop"), r"messages is \{'role': 'user', 'content': 'hop'\}; pass a list of"),
        (["hop"], r"messages\[0\] is 'hop'; pass objects like"),
        ([*TURNS, 3], r"messages\[3\] is 3; pass objects like"),
        ([{"content": "hop"}], r"messages\[0\] is \{'content': 'hop'\} without a role; pass objects like"),
        ([{"role": "bot", "content": "hop"}], r"messages\[0\] has role 'bot'; choose one of system, user, assistant"),
        ([{"role": ["user"], "content": "hop"}], r"messages\[0\] has role \['user'\]; choose one of"),
        ([{"role": "user"}], r"messages\[0\] content is None; pass a string"),
        ([*TURNS[:2], {"role": "user", "content": b"a"}], r"messages\[2\] content is b'a'; pass a string"),
        ([user("a\ud800")], r"messages\[0\] content has '\\ud800', half of a surrogate pair"),
        ([assistant("hop")], r"messages\[0\] has role 'assistant' where 'user' is due"),
        ([user("a"), user("b")], r"messages\[1\] has role 'user' where 'assistant' is due"),
        ([*TURNS, system("late")], r"messages\[3\] has role 'system'; only the first message may have it"),
        (TURNS[:2], r"messages\[1\], the last, has role 'assistant'; end with the user's"),
        ([system("hop")], r"messages\[0\], the last, has role 'system'; end with the user's"),
    ],
)
def test_what_is_no_conversation(byte_level: Tokenizer, messages: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}") as caught:
        chat_ids(byte_level, "joey", messages)
    assert "\n" not in str(caught.value)
