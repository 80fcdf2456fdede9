"""load, generate and stream on a tiny model: what they return, and what they refuse and how."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import kangaroo_jax
from kangaroo_jax import Generation, generate, load, stream
from kangaroo_jax.engine.programs import executables
from kangaroo_jax.model import KangarooConfig, init_adapter
from kangaroo_jax.store import read_config, save_adapter
from train.corpus import BOS

PROMPT = "def f(x):"
PROMPT_IDS = [BOS, *(3 + byte for byte in PROMPT.encode())]
CONTEXT = 101


@pytest.fixture(scope="module")
def plain(tiny: kangaroo_jax.Params) -> Generation:
    return generate(tiny, PROMPT, method="plain")


@pytest.fixture(scope="module")
def kangaroo(tiny: kangaroo_jax.Params) -> Generation:
    return generate(tiny, PROMPT)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the model to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def refused(call: Callable[[], Any]) -> str:
    """Return the message of the ValueError that the call fails with: one line."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def exhausted(pieces: Generator[str, None, Generation]) -> tuple[list[str], Generation]:
    """Return all pieces, and the value the generator returned."""
    ends: list[Generation] = []

    def outer() -> Generator[str, None, None]:
        ends.append((yield from pieces))

    return list(outer()), ends[0]


def test_kangaroo_and_plain_give_the_same_text(plain: Generation, kangaroo: Generation) -> None:
    assert kangaroo.token_ids == plain.token_ids
    assert (kangaroo.text, kangaroo.finish_reason) == (plain.text, plain.finish_reason)
    assert len(set(plain.token_ids)) > 20


def test_fields_of_a_generation(tiny: kangaroo_jax.Params, kangaroo: Generation) -> None:
    assert str(kangaroo) == kangaroo.text
    assert all(type(token) is int for token in kangaroo.token_ids)
    decode = tiny.tokenizer.decode
    assert decode(PROMPT_IDS) + kangaroo.text == decode([*PROMPT_IDS, *kangaroo.token_ids])


def test_stats_agree_with_each_other(kangaroo: Generation) -> None:
    stats = kangaroo.stats
    assert (stats.method, stats.gamma, stats.eta) == ("kangaroo", 5, 0.3)  # the adapter's defaults
    assert stats.new_tokens == len(kangaroo.token_ids)
    assert sum(stats.accept_lengths) == stats.new_tokens - 1
    assert stats.rounds == len(stats.accept_lengths) == len(stats.draft_lengths)
    assert all(
        1 <= committed <= drafted + 1 <= 6
        for committed, drafted in zip(stats.accept_lengths, stats.draft_lengths, strict=True)
    )
    assert stats.compression_rate == sum(stats.accept_lengths) / stats.rounds > 1
    # The last round may have been cut by the end of the context.
    cut = stats.accepted - (sum(stats.accept_lengths) - stats.rounds)
    assert 0 <= cut <= stats.gamma and stats.acceptance_rate == stats.accepted / sum(stats.draft_lengths) > 0
    assert len(stats.ctar) == stats.gamma
    assert list(stats.ctar) == sorted(stats.ctar, reverse=True)
    assert math.isclose(1 + sum(stats.ctar), stats.compression_rate)
    seconds = stats.prefill_seconds + stats.decode_seconds
    assert stats.tokens_per_second == stats.new_tokens / seconds > 0


def test_stats_of_plain_decoding(plain: Generation) -> None:
    stats = plain.stats
    assert (stats.method, stats.gamma, stats.accepted, stats.acceptance_rate, stats.ctar) == ("plain", 0, 0, 0.0, ())
    assert set(stats.accept_lengths) == {1} and set(stats.draft_lengths) == {0}
    assert stats.rounds == stats.new_tokens - 1
    assert stats.compression_rate == 1


def test_stats_survive_json(kangaroo: Generation) -> None:
    fields = kangaroo.stats.as_dict()
    read = json.loads(json.dumps(fields))
    assert read == fields | {
        "accept_lengths": list(fields["accept_lengths"]),
        "draft_lengths": list(fields["draft_lengths"]),
        "ctar": list(fields["ctar"]),
    }
    assert {"rounds", "compression_rate", "acceptance_rate", "ctar", "tokens_per_second"} <= set(read)


def test_a_prompt_of_ids_is_taken_as_it_is(tiny: kangaroo_jax.Params, kangaroo: Generation) -> None:
    as_ids: list[Any] = [PROMPT_IDS, tuple(PROMPT_IDS), np.array(PROMPT_IDS), jax.numpy.array(PROMPT_IDS)]
    for ids in as_ids:
        assert generate(tiny, ids).token_ids == kangaroo.token_ids
    without_bos = generate(tiny, PROMPT_IDS[1:], max_new_tokens=20).token_ids
    assert without_bos == generate(tiny, PROMPT_IDS[1:], max_new_tokens=20, method="plain").token_ids
    assert without_bos != kangaroo.token_ids[:20]


def test_an_empty_text_is_a_prompt_of_bos_alone(tiny: kangaroo_jax.Params) -> None:
    assert generate(tiny, "", max_new_tokens=9).token_ids == generate(tiny, [BOS], max_new_tokens=9).token_ids


@pytest.mark.parametrize("budget", [0, 1, 2, 7])
def test_the_budget_is_exact(tiny: kangaroo_jax.Params, plain: Generation, budget: int) -> None:
    for method in ("plain", "kangaroo"):
        out = generate(tiny, PROMPT, max_new_tokens=budget, method=method)
        assert out.token_ids == plain.token_ids[:budget]
        assert out.finish_reason == "length"
        assert sum(out.stats.accept_lengths) == max(budget - 1, 0)
    same: Any = np.int64(budget)
    assert generate(tiny, PROMPT, max_new_tokens=same).token_ids == plain.token_ids[:budget]


def test_nothing_asked_for_is_an_empty_text(tiny: kangaroo_jax.Params) -> None:
    out = generate(tiny, PROMPT, max_new_tokens=0)
    assert (out.text, out.stats.rounds, out.stats.compression_rate, out.stats.tokens_per_second) == ("", 0, 1.0, 0.0)


@pytest.mark.parametrize("method", ["kangaroo", "plain"])
def test_a_text_ends_with_the_context(tiny: kangaroo_jax.Params, method: str) -> None:
    for length in (len(PROMPT_IDS), CONTEXT - 2, CONTEXT - 1):
        out = generate(tiny, [7] * length, max_new_tokens=10**12, method=method, eos_token_id=())
        assert len(out.token_ids) == CONTEXT - length
        assert out.finish_reason == "length"
    message = refused(lambda: generate(tiny, [7] * CONTEXT, method=method))
    assert f"{CONTEXT} tokens" in message and f"at most {CONTEXT - 1}" in message and "shorten" in message


def test_eos_ends_the_text(tiny: kangaroo_jax.Params, plain: Generation) -> None:
    first, later = plain.token_ids[0], plain.token_ids[13]
    same: Any = np.int64(later)
    upto = plain.token_ids[: plain.token_ids.index(later) + 1]
    for method in ("kangaroo", "plain"):
        out = generate(tiny, PROMPT, method=method, eos_token_id=later)
        assert (out.token_ids, out.finish_reason) == (upto, "stop")
        assert generate(tiny, PROMPT, method=method, eos_token_id=[later]).token_ids == upto
        assert generate(tiny, PROMPT, method=method, eos_token_id=same).token_ids == upto
        out = generate(tiny, PROMPT, method=method, eos_token_id=[later, first])
        assert (out.token_ids, out.finish_reason, out.stats.rounds) == ((first,), "stop", 0)
        # On the last token of the budget, the end of the text counts.
        out = generate(tiny, PROMPT, method=method, eos_token_id=later, max_new_tokens=len(upto))
        assert (out.token_ids, out.finish_reason) == (upto, "stop")
        out = generate(tiny, PROMPT, method=method, eos_token_id=later, max_new_tokens=len(upto) - 1)
        assert (out.token_ids, out.finish_reason) == (upto[:-1], "length")


def test_the_models_own_eos_ends_the_text_unless_told_otherwise(tiny: kangaroo_jax.Params, plain: Generation) -> None:
    later = plain.token_ids[13]
    upto = plain.token_ids[: plain.token_ids.index(later) + 1]
    ending = tiny.replace(config=dataclasses.replace(tiny.config, eos_token_id=(later,)))
    assert generate(ending, PROMPT, method="plain").token_ids == upto
    assert (
        generate(ending, PROMPT, method="plain", eos_token_id=()).token_ids[: len(upto) + 1]
        == plain.token_ids[: len(upto) + 1]
    )


def test_an_eos_token_is_no_text(tiny: kangaroo_jax.Params) -> None:
    out = generate(tiny, PROMPT, max_new_tokens=3, eos_token_id=())
    special = generate(tiny, [*PROMPT_IDS, *out.token_ids, 2], max_new_tokens=3)
    assert "</s>" not in special.text


@pytest.mark.parametrize("gamma", [1, 7])
@pytest.mark.parametrize("eta", [0, 0.3, 0.9, 1.1, 2])
def test_gamma_and_eta_change_the_rounds_alone(
    tiny: kangaroo_jax.Params, plain: Generation, gamma: int, eta: float
) -> None:
    out = generate(tiny, PROMPT, gamma=gamma, eta=eta)
    assert out.token_ids == plain.token_ids
    assert (out.stats.gamma, out.stats.eta) == (gamma, eta)
    if eta in (0, 1.1, 2):
        assert set(out.stats.draft_lengths) == {gamma if eta == 0 else 1}


@pytest.mark.parametrize("method", ["kangaroo", "plain"])
@pytest.mark.parametrize("rounds", [1, 3, 1000])
def test_a_stream_is_the_text_in_pieces(tiny: kangaroo_jax.Params, method: str, rounds: int) -> None:
    whole = generate(tiny, PROMPT, method=method)
    pieces, out = exhausted(stream(tiny, PROMPT, method=method, rounds_per_call=rounds))
    assert "".join(pieces) == whole.text == out.text
    assert "" not in pieces
    assert (out.token_ids, out.finish_reason) == (whole.token_ids, whole.finish_reason)
    assert out.stats.accept_lengths == whole.stats.accept_lengths
    assert len(pieces) > 10 if rounds == 1 else len(pieces) < 60


@pytest.mark.parametrize("rounds", [1, 4, 1000])
@pytest.mark.parametrize("stop", [None, (3, 5), (40, 44)])
def test_the_pieces_say_who_wrote_them(tiny: kangaroo_jax.Params, rounds: int, stop: tuple[int, int] | None) -> None:
    text = generate(tiny, PROMPT).text
    strings = None if stop is None else [text[slice(*stop)], "never"]
    pieces, out = exhausted(stream(tiny, PROMPT, rounds_per_call=rounds, stop_strings=strings))
    assert all("".join(text for text, _ in piece.spans) == piece for piece in pieces)
    characters = [(each, drafted) for piece in pieces for text, drafted in piece.spans for each in text]
    assert characters == [(each, drafted) for text, drafted in out.spans() for each in text]
    assert any(drafted for _, drafted in out.spans()) or stop == (3, 5)
    assert [piece.spans for piece in pickle.loads(pickle.dumps(pieces))] == [piece.spans for piece in pieces]


def test_a_stream_takes_the_options_of_generate(tiny: kangaroo_jax.Params, plain: Generation) -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "gamma": 7, "eta": 0.9, "eos_token_id": plain.token_ids[13]}
    _, out = exhausted(stream(tiny, PROMPT, **options))
    whole = generate(tiny, PROMPT, **options)
    assert (out.text, out.token_ids, out.finish_reason) == (whole.text, whole.token_ids, "stop")
    with pytest.raises(TypeError, match=r"stream\(\) got an unexpected keyword argument 'heat'"):
        stream(tiny, PROMPT, heat=1.0)


def test_a_stream_refuses_bad_input_at_the_call(tiny: kangaroo_jax.Params) -> None:
    assert "rounds_per_call is 0" in refused(lambda: stream(tiny, PROMPT, rounds_per_call=0))
    assert "max_new_tokens is -1" in refused(lambda: stream(tiny, PROMPT, max_new_tokens=-1))
    pieces, _ = exhausted(stream(tiny, PROMPT, rounds_per_call=2**40, max_new_tokens=3))
    assert pieces


def test_a_stream_may_be_left(tiny: kangaroo_jax.Params, kangaroo: Generation) -> None:
    pieces = stream(tiny, PROMPT, rounds_per_call=1)
    assert kangaroo.text.startswith(next(pieces))
    pieces.close()
    assert generate(tiny, PROMPT).token_ids == kangaroo.token_ids


def test_the_first_call_compiles_and_the_second_does_not(tiny: kangaroo_jax.Params) -> None:
    # Another context length is another program; nobody else has compiled this one.
    params = tiny.replace(config=dataclasses.replace(tiny.config, max_position_embeddings=97))
    before = executables()
    first = generate(params, PROMPT, gamma=3, max_new_tokens=20).stats
    assert first.compile_seconds > 0 and executables() == before + 3  # caches, prefill and loop
    # Compilation is in no other figure.
    assert first.prefill_seconds + first.decode_seconds < first.compile_seconds
    for prompt, options in (
        (PROMPT, {}),
        (PROMPT, {"eta": 0.9}),
        (PROMPT, {"eta": 0}),
        (PROMPT, {"max_new_tokens": 41}),
        (PROMPT, {"max_new_tokens": 0}),
        (PROMPT, {"eos_token_id": 77}),
        ("another text", {}),
        ([7], {}),
    ):
        stats = generate(params, prompt, **({"gamma": 3, "max_new_tokens": 20} | options)).stats
        assert stats.compile_seconds == 0
    _, streamed = exhausted(stream(params, PROMPT, gamma=3, max_new_tokens=20, rounds_per_call=2))
    assert streamed.stats.compile_seconds == 0
    assert executables() == before + 3


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, ("prompt is an empty list", "at least one prompt")),
        ([[]], {}, ("prompt 0 is empty", "at least one token")),
        (None, {}, ("prompt is None", "a string, a list of token ids")),
        (5, {}, ("prompt is 5", "a string, a list of token ids")),
        ([1.0, 2.0], {}, ("prompt is [1.0, 2.0]", "a string, a list of token ids")),
        (np.ones((2, 2)), {}, ("prompt 0 is [1.0, 1.0]", "a list of token ids")),
        ([[[1]]], {}, ("prompt 0 is ", "a list of token ids")),
        (b"abc", {}, ("prompt is b'abc'", "a string, a list of token ids")),
        ([b"abc"], {}, ("prompt is [b'abc']", "a string, a list of token ids")),
        ({"role": "user", "content": "a"}, {}, ("prompt is {'role'", "a list of messages")),
        ([PROMPT, [1, 2]], {}, ("prompt mixes text and list",)),
        ([PROMPT, 1], {}, ("prompt mixes text and token id",)),
        ([1, None], {}, ("prompt is [1, None]", "a list of token ids")),
        ([True, False], {}, ("prompt is [True, False]", "a list of token ids")),
        (np.array([True, False]), {}, ("prompt is [True, False]", "a list of token ids")),
        (np.array(1), {}, ("prompt is 1", "a list of token ids")),
        ([[{"role": "user", "content": "a"}], [1, 2]], {}, ("prompt mixes list of messages and list of token ids",)),
        ([PROMPT, None], {}, ("prompt is ['def f(x):', None]",)),
        ([[1], []], {}, ("prompt 1 is empty", "at least one token")),
        ([[1], [1, 259]], {}, ("prompt 1 has token id 259", "0 to 258")),
        ([PROMPT, "x" * 100], {}, ("prompt 1 has 101 tokens", "at most 100")),
        ([{"content": "a"}], {}, ("messages[0]", "without a role")),
        ([{"role": "user"}], {}, ("messages[0] content is None", "a string")),
        ([{"role": "user", "content": "a"}, "b"], {}, ("prompt mixes message and text",)),
        ("a\udcffb", {}, ("prompt", "surrogate")),
        ([1, 259], {}, ("token id 259", "0 to 258")),
        ([1, -1], {}, ("token id -1", "0 to 258")),
        ("x" * 100, {}, ("prompt has 101 tokens", "at most 100", "shorten")),
        (PROMPT, {"max_new_tokens": -1}, ("max_new_tokens is -1", "at least 0")),
        (PROMPT, {"max_new_tokens": "3"}, ("max_new_tokens is '3'", "whole number")),
        (PROMPT, {"max_new_tokens": 1.5}, ("max_new_tokens is 1.5", "whole number")),
        (PROMPT, {"max_new_tokens": None}, ("max_new_tokens is None", "whole number")),
        (PROMPT, {"max_new_tokens": True}, ("max_new_tokens is True", "whole number")),
        (PROMPT, {"gamma": 0}, ("gamma is 0", "at least 1")),
        (PROMPT, {"gamma": -2}, ("gamma is -2", "at least 1")),
        (PROMPT, {"gamma": "6"}, ("gamma is '6'", "whole number")),
        (PROMPT, {"gamma": 1.5}, ("gamma is 1.5", "whole number")),
        (PROMPT, {"gamma": True}, ("gamma is True", "whole number")),
        (PROMPT, {"gamma": 10**9}, ("gamma is 1000000000", "at most")),
        (PROMPT, {"gamma": 0, "method": "plain"}, ("gamma is 0", "at least 1")),
        (PROMPT, {"eta": -0.1}, ("eta is -0.1", "0 or more")),
        (PROMPT, {"eta": 10**400}, ("eta is 1000", "0 or more")),
        (PROMPT, {"eta": True}, ("eta is True", "0 or more")),
        (PROMPT, {"eta": math.nan}, ("eta is nan", "0 or more")),
        (PROMPT, {"eta": math.inf}, ("eta is inf", "0 or more")),
        (PROMPT, {"eta": "0.5"}, ("eta is '0.5'", "0 or more")),
        (PROMPT, {"eta": [0.5]}, ("eta is [0.5]", "0 or more")),
        (PROMPT, {"method": "eagle"}, ("method is 'eagle'", "kangaroo, plain")),
        (PROMPT, {"method": 5}, ("method is 5", "kangaroo, plain")),
        (PROMPT, {"eos_token_id": "2"}, ("eos_token_id is ['2']", "token id")),
        (PROMPT, {"eos_token_id": 1.5}, ("eos_token_id is [1.5]", "token id")),
        (PROMPT, {"eos_token_id": np.array(1.0)}, ("eos_token_id is [1.0]", "token id")),
        (PROMPT, {"eos_token_id": True}, ("eos_token_id is [True]", "token id")),
        (PROMPT, {"eos_token_id": [1.5]}, ("eos_token_id is [1.5]", "token id")),
        (PROMPT, {"eos_token_id": ["2"]}, ("eos_token_id is ['2']", "token id")),
        (PROMPT, {"eos_token_id": 2**40}, (f"eos_token_id has token id {2**40}", "0 to 258")),
        (PROMPT, {"eos_token_id": -1}, ("eos_token_id has token id -1", "0 to 258")),
        (PROMPT, {"stop_strings": ""}, ("stop_strings has an empty string", "none of them empty")),
        (PROMPT, {"stop_strings": ["a", ""]}, ("stop_strings has an empty string", "none of them empty")),
        (PROMPT, {"stop_strings": 5}, ("stop_strings is 5", "a list of strings")),
        (PROMPT, {"stop_strings": ["a", 5]}, ("stop_strings is ['a', 5]", "a list of strings")),
        (PROMPT, {"stop_strings": ["a", "\ud800"]}, ("stop_strings has '\\ud800'", "surrogate")),
        (PROMPT, {"stop_strings": b"a"}, ("stop_strings is b'a'", "a list of strings")),
        (PROMPT, {"do_sample": 1}, ("do_sample is 1", "True or False")),
        (PROMPT, {"do_sample": "yes"}, ("do_sample is 'yes'", "True or False")),
        (PROMPT, {"temperature": -0.1}, ("temperature is -0.1", "0 or more")),
        (PROMPT, {"temperature": 10**400}, ("temperature is 1000", "0 or more")),
        (PROMPT, {"temperature": math.nan}, ("temperature is nan", "0 or more")),
        (PROMPT, {"temperature": math.inf}, ("temperature is inf", "0 or more")),
        (PROMPT, {"temperature": None}, ("temperature is None", "0 or more")),
        (PROMPT, {"temperature": "1"}, ("temperature is '1'", "0 or more")),
        (PROMPT, {"top_p": 0}, ("top_p is 0", "above 0 and up to 1")),
        (PROMPT, {"top_p": 1.01}, ("top_p is 1.01", "above 0 and up to 1")),
        (PROMPT, {"top_p": -1}, ("top_p is -1", "above 0 and up to 1")),
        (PROMPT, {"top_p": True}, ("top_p is True", "above 0 and up to 1")),
        (PROMPT, {"top_k": -1}, ("top_k is -1", "at least 0")),
        (PROMPT, {"top_k": 2.5}, ("top_k is 2.5", "whole number")),
        (PROMPT, {"min_p": -0.1}, ("min_p is -0.1", "0 to 1")),
        (PROMPT, {"min_p": 1.5}, ("min_p is 1.5", "0 to 1")),
        (PROMPT, {"seed": 1.5}, ("seed is 1.5", "whole number")),
        (PROMPT, {"seed": "1"}, ("seed is '1'", "whole number")),
        (PROMPT, {"seed": -1}, ("seed is -1", "at least 0")),
        (PROMPT, {"streamer": 1}, ("streamer is 1", "put(ids) and end()")),
        (PROMPT, {"num_return_sequences": 10**30, "do_sample": True}, ("at most", "at a time")),
        (PROMPT, {"num_return_sequences": 0}, ("num_return_sequences is 0", "at least 1")),
        (PROMPT, {"num_return_sequences": 2}, ("num_return_sequences is 2", "do_sample=True")),
        (PROMPT, {"num_return_sequences": 2, "do_sample": True, "temperature": 0}, ("greedy", "above 0")),
    ],
    ids=repr,
)
def test_bad_input_is_refused_in_one_line(tiny: kangaroo_jax.Params, prompt: Any, options: Any, words: Any) -> None:
    before = executables()
    message = refused(lambda: generate(tiny, prompt, **options))
    assert all(word in message for word in words), message
    assert len(message) < 300
    assert executables() == before, "something was compiled before the input was looked at"


def test_a_name_instead_of_a_model_is_refused() -> None:
    assert "load" in refused(lambda: generate("joey", PROMPT))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpt-5", "", "no/such/folder"])
def test_an_unknown_model_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path))
    message = refused(lambda: load(name))
    assert repr(name) in message and "joey" in message and "convert.hf_to_flax" in message


def test_a_model_without_an_adapter_decodes_plainly_only(copy: Path, plain: Generation) -> None:
    shutil.rmtree(copy / "adapter")
    params = load(copy)
    assert params.draft is None and params.adapter is None
    message = refused(lambda: generate(params, PROMPT))
    assert "no adapter" in message and "train.adapter" in message and "method='plain'" in message
    assert generate(params, PROMPT, method="plain").token_ids == plain.token_ids


def test_an_adapter_may_lie_elsewhere(copy: Path, tmp_path: Path, plain: Generation) -> None:
    elsewhere = (copy / "adapter").rename(tmp_path / "elsewhere")
    out = generate(load(copy, adapter=elsewhere), PROMPT)
    assert (out.token_ids, out.stats.gamma) == (plain.token_ids, 5)
    assert "nowhere" in refused(lambda: load(copy, adapter=tmp_path / "nowhere"))
    assert "train.adapter" in refused(lambda: load(copy, adapter="~/no such adapter"))


def test_an_adapter_of_another_model_is_refused(copy: Path) -> None:
    config = read_config(copy)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"hidden_size": 36}, "hidden_size 36"),
        ({"num_hidden_layers": 5}, "is for target llama-"),
    ]
    for changes, word in cases:
        other = dataclasses.replace(config, **changes)
        adapter = jax.device_get(init_adapter(other, jax.random.key(0)))
        save_adapter(copy / "adapter", other, KangarooConfig(1), adapter, {})
        message = refused(lambda: load(copy))
        assert word in message and "use the adapter trained for this model" in message


@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter.safetensors"])
def test_a_truncated_file_is_refused(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    message = refused(lambda: load(copy))
    assert str(copy / name) in message and "again" in message


def test_dtype_is_that_of_all_weights(tiny_model: Path) -> None:
    params = load(tiny_model, dtype="bfloat16", draft_weights="full")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert len(generate(params, PROMPT, max_new_tokens=5, method="plain").token_ids) == 5
    assert "int8" in refused(lambda: load(tiny_model, dtype="int8"))


def test_params_are_a_pytree_of_weights(tiny: kangaroo_jax.Params) -> None:
    halved = jax.tree.map(lambda leaf: leaf / 2, tiny)
    assert halved.config == tiny.config and halved.name == tiny.name
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tiny))


@pytest.mark.full
def test_what_a_user_has_set_for_jax_changes_nothing(tiny_model: Path, tiny: kangaroo_jax.Params) -> None:
    flags = {
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
    }
    code = (
        "import sys, kangaroo_jax\n"
        "for kernels in 'auto', 'xla':\n"
        "    params = kangaroo_jax.load(sys.argv[1], kernels=kernels)\n"
        "    for options in ({}, {'do_sample': True, 'seed': 3}):\n"
        "        print(list(kangaroo_jax.generate(params, 'def', max_new_tokens=9, **options).token_ids))\n"
    )
    command = [sys.executable, "-c", code, str(tiny_model)]
    out = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, check=True).stdout
    drawn = generate(tiny, "def", max_new_tokens=9, do_sample=True, seed=3)
    expected = [generate(tiny, "def", max_new_tokens=9), drawn]
    assert out.splitlines() == [str(list(each.token_ids)) for each in expected * 2]
