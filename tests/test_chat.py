"""Chat: each turn is what decoding from scratch gives, whatever is kept between turns and however turns end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kangaroo_jax
from kangaroo_jax import Chat, Generation, decode, generate
from kangaroo_jax.engine.plan import Options, plan
from kangaroo_jax.engine.programs import executables
from kangaroo_jax.engine.prompts import prompt_ids
from kangaroo_jax.engine.run import Kept, Run
from kangaroo_jax.text import chat_ids
from train.corpus import BYTE_OFFSET

CONTEXT = 401
SHORTER = 376  # With the 8 rows of gamma 5 a cache of 384 slots, with the 16 of gamma 13 one of 512.
NEW = 23
LETTERS = [BYTE_OFFSET + byte for byte in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
# The very first words change with every turn: no prompt begins with the one before.
COUNTING = (
    "{{ messages | length }} messages\n"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def garbler(tiny: kangaroo_jax.Params) -> kangaroo_jax.Params:
    """The tiny model with room for a conversation; its replies are random bytes, most of them no UTF-8."""
    return tiny.replace(config=dataclasses.replace(tiny.config, max_position_embeddings=CONTEXT))


@pytest.fixture(scope="module")
def with_head(garbler: kangaroo_jax.Params, tiny_arrays: kangaroo_jax.Params, as_loaded: Any) -> Any:
    """Return a function that makes the same with another LM head, from a function of its kernel."""

    def change(of: Callable[[jax.Array], jax.Array]) -> kangaroo_jax.Params:
        kernel = of(tiny_arrays.target["lm_head"]["kernel"])
        changed = as_loaded(tiny_arrays.replace(target=tiny_arrays.target | {"lm_head": {"kernel": kernel}}))
        return changed.replace(config=garbler.config)

    return change


@pytest.fixture(scope="module")
def speaker(with_head: Any) -> kangaroo_jax.Params:
    """The same, writing letters only: what it says reads back as the very tokens."""

    def letters(kernel: jax.Array) -> jax.Array:
        return kernel.at[:, np.setdiff1d(np.arange(kernel.shape[1]), LETTERS)].set(0)

    return with_head(letters)


@pytest.fixture
def chat(speaker: kangaroo_jax.Params) -> Chat:
    return Chat(speaker, max_new_tokens=NEW)


def ended(out: Generation) -> tuple[str, tuple[int, ...], str]:
    return out.text, out.token_ids, out.finish_reason


def scratch(params: kangaroo_jax.Params, messages: Any, **options: Any) -> Generation:
    """Return what ``generate(..., method="plain")`` does, with one cache length for all prompts: it compiles once."""
    asked: dict[str, Any] = {"method": "plain", "max_new_tokens": NEW} | options
    checked = plan(params, Options(**asked))
    run = Run(params, prompt_ids(params, messages)[0], checked, Kept(slots=512, chunk=128))
    while not run.finished:
        run.advance()
    return run.results()[0]


def exhausted(pieces: Generator[str, None, Generation]) -> tuple[list[str], Generation]:
    """Return all pieces, and the value the generator returned."""
    ends: list[Generation] = []

    def outer() -> Generator[str, None, None]:
        ends.append((yield from pieces))

    return list(outer()), ends[0]


def refused(call: Callable[[], Any]) -> str:
    """Return the message of the ValueError that the call fails with: one line."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def still_right(chat: Chat, params: kangaroo_jax.Params) -> None:
    """The next turn is what decoding from scratch gives."""
    answer = chat.send("And now?")
    assert ended(answer) == ended(scratch(params, chat.history[:-1]))


@pytest.mark.parametrize("model", ["speaker", "garbler"])
def test_every_turn_is_what_decoding_from_scratch_gives(model: str, request: pytest.FixtureRequest) -> None:
    params = request.getfixturevalue(model)
    chat = Chat(params, max_new_tokens=NEW)
    texts, replies = ["Hello", "", " \u00e9\U0001f998 ", "x" * 70, "bye </s>"], []
    for text in texts:
        answer = chat.send(text)
        replies.append(answer.text.strip())
        assert ended(answer) == ended(scratch(params, chat.history[:-1]))
    said = [{"role": "user", "content": text} for text in texts]
    answered = [{"role": "assistant", "content": reply} for reply in replies]
    assert chat.history == [message for pair in zip(said, answered, strict=True) for message in pair]
    assert len(set(replies)) == len(replies)


def test_a_turn_is_what_generate_makes_of_the_conversation(chat: Chat, speaker: kangaroo_jax.Params) -> None:
    for text in ("Hello", "And a wallaby?"):
        answer = chat.send(text)
        assert ended(answer) == ended(generate(speaker, chat.history[:-1], method="plain", max_new_tokens=NEW))


def test_a_turn_prefills_only_what_is_new(chat: Chat) -> None:
    first = chat.send("Hello").stats
    assert first.prefilled_tokens == first.prompt_tokens == len("<User: Hello\nAssistant: ")  # "<" for BOS
    second = chat.send("And a wallaby?").stats
    # The last token of the reply has been chosen, and was never fed to the model.
    assert second.prefilled_tokens == 1 + len("\nUser: And a wallaby?\nAssistant: ")
    assert second.prompt_tokens == first.prompt_tokens + NEW - 1 + second.prefilled_tokens


def test_a_reply_that_reads_back_as_other_tokens_is_prefilled_from_there(garbler: kangaroo_jax.Params) -> None:
    chat = Chat(garbler, max_new_tokens=NEW)
    first = chat.send("Hello")
    before = chat_ids(garbler.tokenizer, "tiny", chat.history[:1]) + list(first.token_ids)
    second = chat.send("Hello")
    after = chat_ids(garbler.tokenizer, "tiny", chat.history[:3])
    same = next(place for place, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    assert first.stats.prompt_tokens <= same < len(before) - 1
    assert second.stats.prefilled_tokens == len(after) - same


def test_turns_do_not_compile(chat: Chat) -> None:
    assert chat.send("Hello").stats.new_tokens == NEW
    compiled = executables()
    changes: list[dict[str, Any]] = [
        {"eta": 0.9},
        {"stop_strings": ["e", "Q"]},
        {"max_new_tokens": 1},
        {"max_new_tokens": 0},
        {"eos_token_id": LETTERS[:3]},
        {"seed": 3},
    ]
    for length, options in enumerate(changes):
        assert chat.send("x" * 5 * length, **options).stats.compile_seconds == 0
    exhausted(chat.send("streamed", stream=True))
    chat.reset()
    chat.send("x" * 200)
    assert executables() == compiled


def test_sampled_turns_do_not_compile(speaker: kangaroo_jax.Params) -> None:
    chat = Chat(speaker, max_new_tokens=NEW, do_sample=True)
    chat.send("Hello")
    compiled = executables()
    chat.send("once more", temperature=0.3, top_k=7, top_p=0.8, min_p=0.01, seed=5)
    exhausted(chat.send("streamed", stream=True, temperature=2.0, eta=0.9))
    assert executables() == compiled


@pytest.mark.parametrize("how", ["length", "stop string", "eos", "nothing", "white space"])
def test_the_turn_after_a_reply_that_ended(speaker: kangaroo_jax.Params, how: str) -> None:
    reply = Chat(speaker, max_new_tokens=NEW).send("Hello")
    options: dict[str, Any] = {
        "length": {"max_new_tokens": 7},
        "stop string": {"stop_strings": reply.text[9:12]},
        "eos": {"eos_token_id": reply.token_ids[6]},
        "nothing": {"max_new_tokens": 0},
        "white space": {"stop_strings": reply.text[:2]},
    }[how]
    chat = Chat(speaker, max_new_tokens=NEW)
    answer = chat.send("Hello", **options)
    assert ended(answer) == ended(scratch(speaker, chat.history[:1], **options))
    assert answer.finish_reason == ("length" if how in ("length", "nothing") else "stop")
    assert chat.history[1] == {"role": "assistant", "content": answer.text}
    assert len(answer.text) < len(reply.text) and bool(answer.text) == (how not in ("nothing", "white space"))
    still_right(chat, speaker)
    assert len(chat.history) == 4


def test_white_space_around_a_reply_is_not_in_the_history(with_head: Any) -> None:
    """A reply of white space alone is an empty one."""

    def blank(kernel: jax.Array) -> jax.Array:
        some = kernel[:, LETTERS[0]]
        return (0 * kernel).at[:, BYTE_OFFSET + ord(" ")].set(some).at[:, BYTE_OFFSET + ord("\n")].set(-some)

    params = with_head(blank)
    chat = Chat(params, max_new_tokens=NEW)
    answer = chat.send("Hello")
    assert len(answer.text) == NEW and set(answer.text) == {" ", "\n"}
    assert chat.history[1] == {"role": "assistant", "content": ""}
    still_right(chat, params)


def test_an_ending_that_the_template_repeats_is_kept_too(speaker: kangaroo_jax.Params) -> None:
    """A stop string lies behind the text, and what is beyond it counts only as far as the next prompt says the same."""
    reply = Chat(speaker, max_new_tokens=NEW).send("Hello")
    chat = Chat(speaker, max_new_tokens=NEW)
    answer = chat.send("Hello", stop_strings=reply.text[9:12])
    second = chat.send("And now?").stats
    kept = second.prompt_tokens - second.prefilled_tokens
    assert kept == answer.stats.prompt_tokens + len(answer.text)


def test_a_template_that_begins_anew_each_time(speaker: kangaroo_jax.Params) -> None:
    chat = Chat(speaker, chat_template=COUNTING, max_new_tokens=NEW)
    for text in ("Hello", "and now?", "and now?"):
        answer = chat.send(text)
        ids = chat_ids(speaker.tokenizer, "tiny", chat.history[:-1], COUNTING)
        assert ended(answer) == ended(scratch(speaker, ids))
        kept = answer.stats.prompt_tokens - answer.stats.prefilled_tokens
        assert kept == (0 if text == "Hello" else 1)  # BOS


def test_streaming_gives_what_returning_gives(speaker: kangaroo_jax.Params) -> None:
    returned, streamed = Chat(speaker, max_new_tokens=NEW), Chat(speaker, max_new_tokens=NEW)
    for text in ("Hello", "and now?"):
        expected = returned.send(text)
        pieces, answer = exhausted(streamed.send(text, stream=True))
        assert ended(answer) == ended(expected) and "".join(pieces) == answer.text and len(pieces) > 1
        assert streamed.history == returned.history


def test_a_stream_that_is_closed_keeps_what_came(chat: Chat, speaker: kangaroo_jax.Params) -> None:
    chat.send("Hello")
    pieces = chat.send("Tell me more", stream=True)
    given = next(pieces) + next(pieces)
    pieces.close()
    assert chat.history[2:] == [
        {"role": "user", "content": "Tell me more"},
        {"role": "assistant", "content": given},
    ]
    assert scratch(speaker, chat.history[:-1]).text.startswith(given)
    still_right(chat, speaker)


def test_an_answer_that_is_being_given_is_in_the_history_as_far_as_it_came(chat: Chat) -> None:
    """Nobody closes a stream that a loop was left with ``break``."""
    given = ""
    for number, piece in enumerate(chat.send("Hello", stream=True)):
        given += piece
        assert chat.history == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": given}]
        if number == 1:  # After the prefill's token and one round, however fast the machine is.
            break
    assert len(chat.history) == 2 and len(given) < NEW


def test_a_new_message_ends_an_open_answer(chat: Chat, speaker: kangaroo_jax.Params) -> None:
    pieces = chat.send("Hello", stream=True)
    given = next(pieces)
    still_right(chat, speaker)
    assert list(pieces) == []
    assert [message["content"] for message in chat.history[:3]] == ["Hello", given, "And now?"]


def test_a_stream_that_was_never_asked_for_a_piece_was_never_said(chat: Chat, speaker: kangaroo_jax.Params) -> None:
    pieces = chat.send("Hello", stream=True)
    assert chat.history == []
    still_right(chat, speaker)
    assert list(pieces) == []
    assert [message["content"] for message in chat.history[:1]] == ["And now?"]


def test_reset(chat: Chat, speaker: kangaroo_jax.Params) -> None:
    first = chat.send("Hello")
    pieces = chat.send("And a wallaby?", stream=True)
    next(pieces)
    chat.reset()
    assert chat.history == [] and list(pieces) == [] and chat.history == []
    assert ended(chat.send("Hello")) == ended(first)
    still_right(chat, speaker)


def test_a_system_message(speaker: kangaroo_jax.Params) -> None:
    system = {"role": "system", "content": "Be brief."}
    chat = Chat(speaker, system="Be brief.", max_new_tokens=NEW)
    assert chat.history == [system]
    chat.send("Hello")
    still_right(chat, speaker)
    assert chat.history[0] == system and len(chat.history) == 5
    chat.reset()
    assert chat.history == [system]


def test_the_history_is_a_copy(chat: Chat, speaker: kangaroo_jax.Params) -> None:
    chat.send("Hello")
    history = chat.history
    history[0]["content"] = "other"
    history.clear()
    assert chat.history[0] == {"role": "user", "content": "Hello"}
    still_right(chat, speaker)


@pytest.mark.parametrize(
    ("program", "said"), [("allocate", 0), ("prefill", 0), ("prefill", 1), ("decode", 0), ("decode", 1)]
)
def test_an_interrupted_program_leaves_a_chat_that_works(
    chat: Chat, speaker: kangaroo_jax.Params, monkeypatch: pytest.MonkeyPatch, program: str, said: int
) -> None:
    """Ctrl-C is heard when a program has been run, before its result is noted: what it was given is gone."""

    def call(self: Run, function: Any, *args: Any) -> Any:
        done = real(self, function, *args)
        if function is getattr(decode, program):
            raise KeyboardInterrupt
        return done

    for _ in range(said):
        chat.send("Hello")
    before, real = chat.history, Run._launch
    monkeypatch.setattr(Run, "_launch", call)
    with pytest.raises(KeyboardInterrupt):
        chat.send("Tell me more")
    monkeypatch.undo()
    if program == "decode":  # The prefill had given the first letter.
        assert [len(message["content"]) for message in chat.history[-2:]] == [len("Tell me more"), 1]
    else:
        assert chat.history == before
    still_right(chat, speaker)


def test_an_interrupt_while_a_program_runs_keeps_the_caches(
    chat: Chat, speaker: kangaroo_jax.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is heard while the host waits: what the program will have computed is noted already."""
    waits = iter(range(2))  # For the prefill, then for the first rounds.

    def wait(tree: Any) -> Any:
        if next(waits) == 1:
            raise KeyboardInterrupt
        return real(tree)

    real = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", wait)
    with pytest.raises(KeyboardInterrupt):
        chat.send("Hello")
    monkeypatch.undo()
    assert len(chat.history[1]["content"]) == 1
    still_right(chat, speaker)
    chat.reset()
    chat.send("Hello")
    assert chat.send("and now?").stats.prefilled_tokens < 50


def test_an_interrupt_between_programs_keeps_the_caches(
    chat: Chat, speaker: kangaroo_jax.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance(self: Run, *_: Any) -> list[str]:
        if self.new_tokens(0)[4:]:
            raise KeyboardInterrupt
        return real(self, 1)

    real = Run.advance
    monkeypatch.setattr(Run, "advance", advance)
    with pytest.raises(KeyboardInterrupt):
        chat.send("Hello")
    monkeypatch.undo()
    partial = chat.history[1]["content"]
    assert 4 < len(partial) < NEW
    still_right(chat, speaker)
    stats = chat.send("Hello").stats
    assert stats.prefilled_tokens == 1 + len("\nUser: Hello\nAssistant: ")


def test_a_conversation_that_is_too_long_is_refused_and_forgotten(speaker: kangaroo_jax.Params) -> None:
    chat = Chat(speaker, max_new_tokens=NEW, context=SHORTER)
    chat.send("Hello")
    pieces = chat.send("and now?", stream=True)
    next(pieces)
    before = chat.history
    message = refused(lambda: chat.send("x" * 320))
    assert "tokens with this message" in message and f"holds {SHORTER - 1}" in message
    assert "reset()" in message and f"up to {CONTEXT}" in message
    assert chat.history == before
    assert next(pieces)  # A message that is refused does not even end the answer that is being given.
    pieces.close()
    # A turn may run to the very end of the context.
    out = chat.send("x" * 200, max_new_tokens=CONTEXT)
    assert out.finish_reason == "length" and out.stats.prompt_tokens + out.stats.new_tokens == SHORTER
    assert f"holds {SHORTER - 1}" in refused(lambda: chat.send("x"))
    chat.reset()
    assert ended(chat.send("Hello")) == ended(scratch(speaker, [{"role": "user", "content": "Hello"}]))


def test_the_context_is_the_models_and_no_larger_one_is_advised(speaker: kangaroo_jax.Params) -> None:
    chat = Chat(speaker, max_new_tokens=10**9)
    assert "start a chat" not in refused(lambda: chat.send("x" * CONTEXT))
    out = chat.send("x" * 340)
    assert out.stats.prompt_tokens + out.stats.new_tokens == CONTEXT


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (5, {}, ("text is 5", "string")),
        (None, {}, ("text is None", "string")),
        (b"hop", {}, ("text is b'hop'", "string")),
        ("a\udcff", {}, ("text", "'\\udcff'", "surrogate")),
        ("a", {"gamma": 0}, ("gamma is 0", "at least 1")),
        ("a", {"temperature": -1, "do_sample": True}, ("temperature is -1",)),
        ("a", {"stop_strings": ""}, ("empty string",)),
        ("a", {"do_sample": True, "num_return_sequences": 2}, ("num_return_sequences is 2", "one answer")),
    ],
)
def test_what_is_refused_changes_nothing(
    chat: Chat, speaker: kangaroo_jax.Params, text: Any, options: dict[str, Any], words: tuple[str, ...]
) -> None:
    chat.send("Hello")
    before = chat.history
    message = refused(lambda: chat.send(text, **options))
    assert all(word in message for word in words), message
    assert chat.history == before
    still_right(chat, speaker)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eta": -1}, ("eta is -1",)),
        ({"context": 1}, ("context is 1", "at least 2")),
        ({"context": CONTEXT + 1}, (f"context is {CONTEXT + 1}", f"at most {CONTEXT}")),
        ({"context": 12}, ("holds 11", f"up to {CONTEXT}")),
        ({"system": 5}, ("system is 5", "string")),
        ({"system": "\ud800"}, ("system", "surrogate")),
        ({"system": "x" * CONTEXT}, ("tokens",)),
        ({"chat_template": ""}, ("chat_template",)),
        ({"chat_template": "{% nonsense"}, ("the chat template fails",)),
        ({"do_sample": True, "num_return_sequences": 2}, ("num_return_sequences is 2", "one answer")),
    ],
)
def test_a_chat_that_cannot_be_is_refused_at_once(
    speaker: kangaroo_jax.Params, options: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = refused(lambda: Chat(speaker, **options))
    assert all(word in message for word in words), message


def test_an_unknown_option_is_named_with_its_caller(speaker: kangaroo_jax.Params, chat: Chat) -> None:
    with pytest.raises(TypeError, match=r"^Chat\(\) got an unexpected keyword argument 'streamer'$"):
        Chat(speaker, streamer=None)
    with pytest.raises(TypeError, match=r"^send\(\) got an unexpected keyword argument 'beams'$"):
        chat.send("Hello", beams=3)


def test_a_model_without_a_template_needs_one(speaker: kangaroo_jax.Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker.tokenizer, "chat_template", None)
    assert "no chat template" in refused(lambda: Chat(speaker))
    chat = Chat(speaker, chat_template=COUNTING, max_new_tokens=NEW)
    assert chat.send("Hello").stats.new_tokens == NEW


def test_plain_decoding_says_the_same(speaker: kangaroo_jax.Params) -> None:
    kangaroo, plain = (Chat(speaker, max_new_tokens=NEW, method=method) for method in ("kangaroo", "plain"))
    for text in ("Hello", "and now?"):
        first, second = kangaroo.send(text), plain.send(text)
        assert ended(first) == ended(second)
        assert first.stats.prefilled_tokens == second.stats.prefilled_tokens
    assert (plain.send("a").stats.method, kangaroo.send("a", method="plain").stats.method) == ("plain", "plain")
    assert kangaroo.history == plain.history
    assert kangaroo.send("b").stats.method == "kangaroo"
    still_right(kangaroo, speaker)


def test_gamma_may_change_between_turns(speaker: kangaroo_jax.Params) -> None:
    chat = Chat(speaker, max_new_tokens=NEW, context=SHORTER)
    for turn, gamma in enumerate((None, 3, 13)):
        answer = chat.send("Hello", gamma=gamma)
        assert answer.stats.gamma == (gamma or 5)
        assert ended(answer) == ended(scratch(speaker, chat.history[:-1]))
        # Caches of another size are new ones.
        assert (answer.stats.prefilled_tokens < answer.stats.prompt_tokens) == (turn == 1)


def test_sampling_with_a_seed_is_what_generate_draws(speaker: kangaroo_jax.Params) -> None:
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "seed": 11, "max_new_tokens": NEW}
    chat, again = Chat(speaker, **options), Chat(speaker, **options)
    for text in ("Hello", "Hello"):
        answer = chat.send(text)
        assert ended(again.send(text)) == ended(answer)
        assert ended(scratch(speaker, chat.history[:-1], **options, method="kangaroo")) == ended(answer)
    assert ended(scratch(speaker, chat.history[:-1])) != ended(answer)
    assert ended(again.send("Hello", seed=12)) != ended(chat.send("Hello"))


TURNS = st.lists(
    st.tuples(
        st.text(max_size=6),
        st.sampled_from(["return", "close", "leave", "interrupt"]),
        st.integers(0, 4),
        st.sampled_from(
            [{}, {}, {"eta": 0.9}, {"method": "plain"}, {"stop_strings": ["e", "\ufffd\ufffd"]}, {"max_new_tokens": 2}]
        ),
    ),
    min_size=2,
    max_size=3,
)


def partly(chat: Chat, text: str, how: str, steps: int, options: dict[str, Any]) -> None:
    """Say something and stop listening: after some pieces, or after some device calls, by Ctrl-C."""
    if how == "interrupt":
        calls = iter(range(steps))

        def advance(self: Run, *_: Any) -> list[str]:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return real(self, 4)

        real = Run.advance
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Run, "advance", advance)
            chat.send(text, **options)
        return
    pieces = chat.send(text, stream=True, **options)
    for _ in range(steps):
        next(pieces, None)
    if how == "close":
        pieces.close()


@settings(max_examples=30)
@given(turns=TURNS, letters=st.booleans())
def test_any_conversation(
    speaker: kangaroo_jax.Params, garbler: kangaroo_jax.Params, turns: list[Any], letters: bool
) -> None:
    params = speaker if letters else garbler
    chat = Chat(params, max_new_tokens=NEW)
    for text, how, steps, options in turns:
        before = chat.history
        if how == "return":
            answer = chat.send(text, **options)
            assert ended(answer) == ended(scratch(params, chat.history[:-1], **options | {"method": "plain"}))
        else:
            partly(chat, text, how, steps, options)
        if chat.history != before:
            *prompt, reply = chat.history
            assert prompt == [*before, {"role": "user", "content": text}]
            whole = scratch(params, prompt, **options | {"method": "plain"}).text
            assert whole.strip() == reply["content"] or (how != "return" and whole.strip().startswith(reply["content"]))
    still_right(chat, params)


def test_an_answer_goes_on_with_what_it_is_given(speaker: kangaroo_jax.Params) -> None:
    chat = Chat(speaker, max_new_tokens=NEW)
    answer = chat.send([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well"}])
    prompt = chat_ids(speaker.tokenizer, "tiny", [{"role": "user", "content": "Hello"}])
    assert ended(answer) == ended(scratch(speaker, prompt + speaker.tokenizer.encode("Well")[1:]))
    assert chat.history[1:] == [{"role": "assistant", "content": "Well" + answer.text}]
    after = chat.send("and now?")
    assert ended(after) == ended(scratch(speaker, chat_ids(speaker.tokenizer, "tiny", chat.history[:-1])))
    assert after.stats.prefilled_tokens < after.stats.prompt_tokens - len(prompt)


def test_messages_of_other_roles_and_content_in_parts(speaker: kangaroo_jax.Params) -> None:
    chat = Chat(speaker, max_new_tokens=NEW)
    parts = [{"type": "text", "text": "Hello"}]
    for said in (parts, {"role": "tool", "content": "3"}, ({"role": "tool", "content": "4"},)):
        answer = chat.send(said)
        assert ended(answer) == ended(scratch(speaker, chat_ids(speaker.tokenizer, "tiny", chat.history[:-1])))
    assert [message["role"] for message in chat.history] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert chat.history[0]["content"] == parts


# Thoughts are asked for in the last turn only, and left out of what was said before it.
FORGETFUL = (
    "{% for m in messages %}{{ m.role }}:{{ m.content[7:] if m.role == 'assistant' else m.content }}\n{% endfor %}"
    "{% if thoughts is false %}!{% endif %}"
)


def test_a_template_that_changes_what_was_said_and_variables_of_a_turn(speaker: kangaroo_jax.Params) -> None:
    chat = Chat(speaker, chat_template=FORGETFUL, chat_template_kwargs={"thoughts": False}, max_new_tokens=NEW)
    for text, variables in (("Hello", None), ("and now?", {"thoughts": True}), ("and then?", None)):
        answer = chat.send(text, chat_template_kwargs=variables)
        given = variables or {"thoughts": False}
        ids = chat_ids(speaker.tokenizer, "tiny", chat.history[:-1], FORGETFUL, given)
        assert (ids[-1] == speaker.tokenizer.encode("!")[-1]) == (not given["thoughts"])
        assert ended(answer) == ended(scratch(speaker, ids))


@pytest.mark.parametrize("said", [3, b"x", [], ["Hello"], [{"role": "user"}], [{"content": "x"}]])
def test_what_is_nothing_to_say(chat: Chat, said: Any) -> None:
    assert "; pass " in refused(lambda: chat.send(said))
    assert chat.history == []
