"""Conversations become the ids that the model was trained on, and what is no conversation is refused."""

from __future__ import annotations

import copy
import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Core

from kangaroo_jax.text import Tokenizer, answers, chat_ids, load_tokenizer
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


def parts(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        (None, "llama", False),
        (None, "vicuna-7b", True),
        (PLAIN, "llama", False),
        (PLAIN + "</s>", "llama", True),
        (PLAIN + "<s>", "llama", False),  # It ends no text.
        (PLAIN + "{{ eos_token }}", "llama", True),
    ],
)
def test_who_ends_answers_answers(llama: Tokenizer, template: str | None, name: str, expected: bool) -> None:
    tokenizer = copy.copy(llama)
    tokenizer.chat_template = template
    assert answers(tokenizer, name, (2,)) is expected


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
        ([{"role": ["user"], "content": "hop"}], r"messages\[0\] has role \['user'\]; pass 'user', 'assistant'"),
        ([{"role": "", "content": "hop"}], r"messages\[0\] has role ''; pass 'user', 'assistant'"),
        ([{"role": "user", "content": 3}], r"messages\[0\] content is 3; pass a string, or a list of"),
        ([{"role": "user", "content": {"text": "hop"}}], r"messages\[0\] content is \{'text': 'hop'\}; pass a string"),
        ([{"role": "user", "content": ["hop"]}], r"messages\[0\] content has the part 'hop'; pass objects like"),
        (
            [{"role": "user", "content": [{"text": "hop"}]}],
            r"messages\[0\] content has the part \{'text'",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            r"messages\[0\] content has the part \{'type'",
        ),
        ([parts("a\udc00")], r"messages\[0\] content has '\\udc00', half of a surrogate pair"),
        ([{"role": "user"}], r"messages\[0\] content is None; pass a string"),
        ([*TURNS[:2], {"role": "user", "content": b"a"}], r"messages\[2\] content is b'a'; pass a string"),
        ([user("a\ud800")], r"messages\[0\] content has '\\ud800', half of a surrogate pair"),
    ],
)
def test_what_is_no_conversation(byte_level: Tokenizer, messages: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}") as caught:
        chat_ids(byte_level, "joey", messages)
    assert "\n" not in str(caught.value)


# As ChatML has it, with Qwen 3's switch; the template of parts as Llama 3.2 and others have it.
CHATML = (
    "{%- for message in messages %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"
    "{%- if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
OF_PARTS = (
    "{%- for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{%- for part in message['content'] %}[{{ part.text or part.type }}]{% endfor %}{% endif %}{% endfor %}"
)


def rendered(tokenizer: Tokenizer, messages: list[dict[str, Any]], template: str, **variables: Any) -> str:
    return tokenizer.decode(chat_ids(tokenizer, "any", messages, template, variables or None))


def test_roles_are_the_templates_affair(byte_level: Tokenizer) -> None:
    messages = [user("a"), user("b"), {"role": "tool", "content": "c"}, {"role": "developer", "content": "d"}]
    whole = "<user>a</s><user>b</s><tool>c</s><developer>d</s><assistant>"
    assert rendered(byte_level, messages, CHATML) == whole
    for wrong in (messages[2], system("late")):
        with pytest.raises(ValueError, match=r"^the chat template fails \(Vicuna knows a system message first"):
            rendered(byte_level, [user("a"), wrong], VICUNA_TEMPLATE)


def test_fields_that_the_template_reads(byte_level: Tokenizer) -> None:
    called = {"role": "assistant", "tool_calls": [{"name": "hop"}], "content": None}
    template = "{% for m in messages %}{{ m.content }}{{ m.tool_calls[0].name if m.tool_calls }};{% endfor %}"
    assert rendered(byte_level, [user("a"), called, user("b")], template) == "a;hop;b;"
    without = {name: value for name, value in called.items() if name != "content"}
    assert rendered(byte_level, [user("a"), without, user("b")], template) == "a;hop;b;"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (CHATML, "<user>a\nb</s><assistant>"),
        (OF_PARTS, "[a][b]"),
        ("{{ messages[0].content | map(attribute='text') | join('+') }}", "a+b"),
        ("{{ messages[0]['content'][1].text }}", "b"),
        ("{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}", "a\nb"),  # Qwen 3.
    ],
)
def test_content_in_parts(byte_level: Tokenizer, template: str, text: str) -> None:
    assert rendered(byte_level, [parts("a", "b")], template) == text


def test_parts_that_are_no_text(byte_level: Tokenizer) -> None:
    picture = [{"role": "user", "content": [{"type": "image", "url": "x"}, {"type": "text", "text": "a"}]}]
    assert rendered(byte_level, picture, OF_PARTS) == "[image][a]"
    with pytest.raises(ValueError, match=r"content has a part of type 'image'; the chat template takes text$"):
        rendered(byte_level, picture, CHATML)


@pytest.mark.parametrize(
    ("template", "reply", "text"),
    [
        (CHATML, "Sure, ", "<user>a</s><assistant>Sure, "),
        (CHATML, "", "<user>a</s><assistant>"),
        (VICUNA_TEMPLATE, "Sure,", f"{SYSTEM} USER: a ASSISTANT: Sure,"),
        (CHATML.replace("message.content", "message.content | trim"), "Sure, ", "<user>a</s><assistant>Sure,"),
    ],
)
def test_the_assistants_last_message_is_continued(byte_level: Tokenizer, template: str, reply: str, text: str) -> None:
    assert rendered(byte_level, [user("a"), assistant(reply)], template) == text


def test_parts_of_the_last_message_are_continued(byte_level: Tokenizer) -> None:
    last = {"role": "assistant", "content": [{"type": "text", "text": "Sure"}]}
    assert rendered(byte_level, [user("a"), last], OF_PARTS) == "a[Sure"
    assert rendered(byte_level, [user("a"), last], CHATML) == "<user>a</s><assistant>Sure"


def test_a_last_message_that_the_template_leaves_out(byte_level: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^the chat template fails \(continue_final_message") as caught:
        rendered(byte_level, [user("a"), assistant("Sure")], "{{ messages[0].content }}")
    assert "\n" not in str(caught.value)


def test_variables_for_the_template(byte_level: Tokenizer, recwarn: pytest.WarningsRecorder) -> None:
    assert rendered(byte_level, [user("a")], CHATML) == "<user>a</s><assistant>"
    assert rendered(byte_level, [user("a")], CHATML, enable_thinking=True) == "<user>a</s><assistant>"
    off = "<user>a</s><assistant><think></think>"
    assert rendered(byte_level, [user("a")], CHATML, enable_thinking=False) == off
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"^the chat template does not read enable_thinkng of chat_template_kwargs$"):
        rendered(byte_level, [user("a")], CHATML, enable_thinkng=False)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ("x", "chat_template_kwargs is 'x'; pass an object like"),
        ({3: 4}, r"chat_template_kwargs is \{3: 4\}; pass an object like"),
        ({"a": ["\ud800"]}, r"chat_template_kwargs has '\\ud800'"),
        ({"messages": []}, "chat_template_kwargs has 'messages', which is no variable of templates; leave it out"),
        ({"tokenize": False}, "chat_template_kwargs has 'tokenize', which is no variable"),
        ({"add_generation_prompt": False}, "chat_template_kwargs has 'add_generation_prompt', which is no variable"),
    ],
)
def test_what_are_no_variables(byte_level: Tokenizer, variables: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        chat_ids(byte_level, "any", [user("a")], CHATML, variables)


def test_special_tokens_in_variables_are_plain_text_and_other_added_ones_tokens(llama: Tokenizer) -> None:
    ids = chat_ids(llama, "any", [user("a")], "{{ note }}</s>", {"note": "x</s>"})
    assert ids.count(2) == 1 and llama.decode(ids) == "x</s>"


def test_thoughts_stay_the_tokens_that_the_model_writes() -> None:
    core = Core(
        models.BPE({**{c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, "<think>": 256}, [])
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_tokens([AddedToken("<think>", special=False)])
    core.add_special_tokens(["<end>"])
    tokenizer = Tokenizer(core, {"eos_token": "<end>"})
    messages = [user("<end>"), assistant("<think>hm<end>"), user("and?")]
    ids = chat_ids(tokenizer, "any", messages, "{% for m in messages %}{{ m.content }}<end>{% endfor %}<think>")
    assert (ids.count(256), ids.count(257)) == (2, 3)
