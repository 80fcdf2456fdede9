"""Ends of a text: EOS, stop strings, budget and context fall where they fall in plain decoding, token by token."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import kangaroo_jax
from kangaroo_jax import Generation, generate, stream

PROMPTS = ("def fibonacci(n):", "import os\n", "Ünïcode — ", "class A:\n    ")


@functools.cache
def joey() -> kangaroo_jax.Params:
    return kangaroo_jax.load("joey", dtype="float32")


@functools.cache
def whole(prompt: str) -> Generation:
    """The plain text of a prompt, as long as any budget here."""
    return generate(joey(), prompt, method="plain", max_new_tokens=60, eos_token_id=())


def expected(
    params: kangaroo_jax.Params, prompt: str, ids: tuple[int, ...], eos: list[int], stops: list[str], budget: int
) -> tuple[str, tuple[int, ...], str]:
    """Append token by token and look for every end after each: text, ids and finish reason, by definition."""
    decode, tokenizer = params.tokenizer.decode, params.tokenizer
    before = tokenizer.encode(prompt)
    given = len(decode(before))
    for count in range(1, min(budget, len(ids)) + 1):
        text = decode([*before, *ids[:count]])[given:]
        last = ids[count - 1] in eos or count == budget
        if not last:
            text = text[: len(text) - tokenizer.unfinished(ids[:count])]  # A character may still be completed.
        found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)[1]], ids[:count], "stop"
        if last:
            return text, ids[:count], "stop" if ids[count - 1] in eos else "length"
    return "", (), "length"


def outcome(out: Generation) -> tuple[str, tuple[int, ...], str]:
    return out.text, out.token_ids, out.finish_reason


@settings(max_examples=60)
@given(data=st.data())
def test_every_end_is_where_plain_decoding_ends(data: st.DataObject) -> None:
    prompt = data.draw(st.sampled_from(PROMPTS))
    plain = whole(prompt)
    positions = st.integers(0, len(plain.text) - 1)
    pieces = st.builds(lambda at, size: plain.text[at : at + size], positions, st.integers(1, 9))
    stops = data.draw(st.lists(st.one_of(pieces, st.text(min_size=1, max_size=3)), max_size=3))
    eos = data.draw(st.lists(st.sampled_from(plain.token_ids), max_size=2))
    budget = data.draw(st.integers(0, 60))
    options: dict[str, Any] = {"max_new_tokens": budget, "eos_token_id": eos, "stop_strings": stops}
    should = expected(joey(), prompt, plain.token_ids, eos, stops, budget)
    assert outcome(generate(joey(), prompt, method="plain", **options)) == should
    out = generate(joey(), prompt, eta=data.draw(st.sampled_from([0, 0.2, 0.9])), **options)
    assert outcome(out) == should
    assert sum(out.stats.accept_lengths) == max(len(out.token_ids) - 1, 0)
    assert out.stats.rounds == len(out.stats.draft_lengths) == len(out.stats.accepted_drafts)
    assert "".join(out.token_texts) == out.text and len(out.token_texts) == len(out.token_ids)
    assert "".join(text for text, _ in out.spans()) == out.text
    rounds = data.draw(st.sampled_from([1, 3, 100]))
    pieces_out = list(stream(joey(), prompt, rounds_per_call=rounds, **options))
    assert "".join(pieces_out) == should[0] and "" not in pieces_out


def test_a_stop_string_in_the_prompt_does_not_fire() -> None:
    text = whole("def fibonacci(n):").text
    # It begins in the prompt and ends in the new text, or lies in the prompt as a whole.
    for stop in ("fibonacci", "):" + text[:3], ":" + text[:1]):
        out = generate(joey(), "def fibonacci(n):", stop_strings=stop, max_new_tokens=40)
        assert out.finish_reason == "length" and out.text == text[: len(out.text)]


def test_a_stop_string_across_tokens_and_rounds() -> None:
    text = whole("def fibonacci(n):").text
    stop = text[10:30]  # joey has one token a byte: these are 20 tokens, of many rounds.
    out = generate(joey(), "def fibonacci(n):", stop_strings=[stop], gamma=1)
    at = text.index(stop)
    assert (out.text, len(out.token_ids), out.finish_reason) == (text[:at], at + len(stop), "stop")


def test_stop_strings_of_several_bytes(tiny: kangaroo_jax.Params) -> None:
    """The text of a random model: characters of 1 to 4 bytes, and what is no character at all."""
    plain = generate(tiny, "é", method="plain", max_new_tokens=90, eos_token_id=())
    marks = [mark for mark in dict.fromkeys(plain.text) if len(mark.encode()) > 1]
    assert len(marks) > 2
    for stop in [*marks[:6], "é€", plain.text[-2:]]:
        should = expected(tiny, "é", plain.token_ids, [], [stop], 90)
        for method in ("plain", "kangaroo"):
            out = generate(tiny, "é", method=method, max_new_tokens=90, eos_token_id=(), stop_strings=stop)
            assert outcome(out) == should


@pytest.mark.parametrize(
    ("prompt", "token", "drawn"), [("g", "<unk>", {}), ("a", "<s>", {"do_sample": True, "seed": 0})]
)
def test_a_special_token_as_stop_string(
    tiny: kangaroo_jax.Params, prompt: str, token: str, drawn: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 60, "eos_token_id": (), **drawn}
    plain = generate(tiny, prompt, method="plain", **options)
    ids = plain.token_ids[: plain.token_ids.index(tiny.tokenizer.special_tokens[token]) + 1]
    should = (tiny.tokenizer.decode([*tiny.tokenizer.encode(prompt), *ids])[1:], ids, "stop")
    for stops in (token, ["zzz", f"{token}zzz", token]):
        for method in ("plain",) if drawn else ("plain", "kangaroo"):
            assert outcome(generate(tiny, prompt, method=method, stop_strings=stops, **options)) == should
    assert "".join(stream(tiny, prompt, method="plain", stop_strings=token, **options)) == should[0]
    each = [{"stop_strings": token}, {}, {"stop_strings": [token]}]
    together = generate(tiny, [prompt] * 3, method="plain", per_prompt=each, **options)
    assert [outcome(out) for out in together] == [should, outcome(plain), should]


def test_a_special_token_within_a_stop_string(tiny: kangaroo_jax.Params) -> None:
    plain = generate(tiny, "g", method="plain", max_new_tokens=60, eos_token_id=())
    at = plain.token_ids.index(0)
    before, after = "".join(plain.token_texts[:at]), "".join(plain.token_texts[at + 1 :])
    for size, more in ((1, 0), (2, 1), (0, 2)):
        stop = f"{before[len(before) - size :]}<unk>{after[:more]}"
        texts = itertools.accumulate(plain.token_texts)
        count = next(n for n, text in enumerate(texts, 1) if n > at and len(text) >= len(before) + more)
        for method in ("plain", "kangaroo"):
            out = generate(tiny, "g", method=method, max_new_tokens=60, eos_token_id=(), stop_strings=stop)
            assert outcome(out) == (before[: len(before) - size], plain.token_ids[:count], "stop")


def test_rows_of_a_batch_stop_by_themselves() -> None:
    texts = [whole(prompt).text for prompt in PROMPTS]
    stop = texts[0][5:9]
    together = generate(joey(), list(PROMPTS), max_new_tokens=60, eos_token_id=(), stop_strings=stop)
    for prompt, out in zip(PROMPTS, together, strict=True):
        assert outcome(out) == expected(joey(), prompt, whole(prompt).token_ids, [], [stop], 60)
    assert together[0].finish_reason == "stop" and "length" in {out.finish_reason for out in together}


def test_many_stop_strings_and_one_character() -> None:
    text = whole("import os\n").text
    first = text[0]
    out = generate(joey(), "import os\n", stop_strings=[first, text[:4], "zzz"])
    assert outcome(out) == ("", out.token_ids, "stop") and len(out.token_ids) == 1


class Recorder:
    """What a Hugging Face streamer has: put and end."""

    def __init__(self) -> None:
        self.put_values: list[Any] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        assert not self.ended
        self.put_values.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("method", ["kangaroo", "plain"])
def test_a_streamer_gets_prompt_and_ids_and_the_end(tiny: kangaroo_jax.Params, method: str) -> None:
    streamer = Recorder()
    out = generate(tiny, "def f(x):", method=method, streamer=streamer, max_new_tokens=50)
    prompt, *new = streamer.put_values
    assert prompt.shape == (1, 10) and prompt[0].tolist() == tiny.tokenizer.encode("def f(x):")
    assert tuple(itertools.chain.from_iterable(value.tolist() for value in new)) == out.token_ids
    assert len(new) > 3 and streamer.ended == 1
    assert outcome(out) == outcome(generate(tiny, "def f(x):", method="plain", max_new_tokens=50))


def test_transformers_own_streamer_writes_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = transformers.TextStreamer(joey().tokenizer._backend, skip_prompt=True)
    out = generate(joey(), "import os\n", streamer=streamer, max_new_tokens=40)
    assert capsys.readouterr().out == out.text + "\n"


def test_a_streamer_gets_no_id_beyond_a_stop_string() -> None:
    text, streamer = whole("import os\n").text, Recorder()
    out = generate(joey(), "import os\n", streamer=streamer, stop_strings=text[4:9])
    assert sum(len(value) for value in streamer.put_values[1:]) == len(out.token_ids)


def test_streams_take_one_sequence(tiny: kangaroo_jax.Params) -> None:
    calls: list[Any] = [
        lambda: stream(tiny, ["a", "b"]),
        lambda: stream(tiny, "a", do_sample=True, num_return_sequences=2),
        lambda: generate(tiny, ["a", "b"], streamer=Recorder()),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="one sequence at a time, and here are 2"):
            call()


def test_the_eos_of_generation_config_is_the_default(tiny: kangaroo_jax.Params) -> None:
    plain = generate(tiny, "a", method="plain", eos_token_id=())
    ending = tiny.replace(config=dataclasses.replace(tiny.config, eos_token_id=tuple(plain.token_ids[5:7])))
    assert generate(ending, "a").finish_reason == "stop"


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_sampling_options_without_sampling_are_warned_of(tiny: kangaroo_jax.Params, options: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=f"{next(iter(options))} has no effect: pass do_sample=True") as caught:
        out = generate(tiny, "a", max_new_tokens=9, **options)
    assert caught[0].filename == __file__
    assert outcome(out) == outcome(generate(tiny, "a", max_new_tokens=9))


def test_temperature_0_is_greedy(tiny: kangaroo_jax.Params) -> None:
    greedy = generate(tiny, "a", max_new_tokens=30)
    for temperature in (0, 1e-9):
        assert outcome(generate(tiny, "a", max_new_tokens=30, do_sample=True, temperature=temperature)) == outcome(
            greedy
        )
