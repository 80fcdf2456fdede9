"""Lists of prompts: every row is what its prompt gives alone, whatever the batch around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kangaroo_jax
from kangaroo_jax import Generation, generate
from kangaroo_jax.engine.programs import executables

CONTEXT = 101


def random_prompts(count: int, seed: int, longest: int = 60) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 259, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def ended(out: Generation) -> tuple[Any, ...]:
    return out.text, out.token_ids, out.finish_reason


@pytest.mark.parametrize("size", [1, 2, 5, 16])
@pytest.mark.parametrize("method", ["kangaroo", "plain"])
def test_rows_are_what_plain_decoding_gives_alone(tiny: kangaroo_jax.Params, size: int, method: str) -> None:
    prompts = random_prompts(size, seed=size)
    together = generate(tiny, prompts, method=method, max_new_tokens=40)
    assert len(together) == size
    for prompt, out in zip(prompts, together, strict=True):
        alone = generate(tiny, prompt, method="plain", max_new_tokens=40)
        assert ended(out) == ended(alone)
        assert (out.stats.batch_size, out.stats.prompt_tokens) == (size, len(prompt))
        assert sum(out.stats.accept_lengths) == out.stats.new_tokens - 1


@settings(max_examples=15)
@given(data=st.data())
def test_rows_have_their_own_drafts_and_ends(tiny: kangaroo_jax.Params, data: st.DataObject) -> None:
    prompts = random_prompts(3, data.draw(st.integers(0, 99)))
    texts = [generate(tiny, prompt, method="plain", eos_token_id=()).token_ids for prompt in prompts]
    options = {
        "max_new_tokens": data.draw(st.integers(0, 120)),
        "eos_token_id": data.draw(st.lists(st.sampled_from(sorted({*texts[0], *texts[1]})), max_size=3)),
        "gamma": data.draw(st.sampled_from([1, 5])),
        "eta": data.draw(st.sampled_from([0, 0.3, 0.9])),
    }
    for prompt, out in zip(prompts, generate(tiny, prompts, **options), strict=True):
        alone = generate(tiny, prompt, **options)
        assert ended(out) == ended(alone)
        # The rounds are the same, too: finished neighbours and longer drafts beside a row are not counted.
        assert out.stats.accept_lengths == alone.stats.accept_lengths
        assert out.stats.draft_lengths == alone.stats.draft_lengths


def test_lists_of_text_ids_and_messages(tiny: kangaroo_jax.Params) -> None:
    texts, options = ["def f(x):", "import os\n", "a"], {"max_new_tokens": 9}
    singles = [generate(tiny, text, **options) for text in texts]
    ids: list[Any] = [tiny.tokenizer.encode(text) for text in texts]
    array = np.array([row[:2] for row in ids])
    assert [ended(out) for out in generate(tiny, texts, **options)] == [ended(out) for out in singles]
    assert [ended(out) for out in generate(tiny, ids, **options)] == [ended(out) for out in singles]
    assert [ended(out) for out in generate(tiny, tuple(texts), **options)] == [ended(out) for out in singles]
    (first, *_) = generate(tiny, array, **options)
    assert ended(first) == ended(generate(tiny, ids[0][:2], **options))
    chats: list[Any] = [[{"role": "user", "content": text}] for text in texts]
    together = generate(tiny, chats, **options)
    assert [ended(out) for out in together] == [ended(generate(tiny, chat, **options)) for chat in chats]
    assert together[0].token_ids != singles[0].token_ids


def test_one_prompt_in_a_list_is_a_list(tiny: kangaroo_jax.Params) -> None:
    (out,) = generate(tiny, ["def f(x):"], max_new_tokens=5)
    assert ended(out) == ended(generate(tiny, "def f(x):", max_new_tokens=5))


def test_what_a_sequence_draws_does_not_depend_on_its_batch(tiny: kangaroo_jax.Params) -> None:
    options = {"do_sample": True, "seed": 11, "max_new_tokens": 30, "temperature": 2.0}
    prompts = random_prompts(4, seed=3, longest=20)
    alone = [ended(generate(tiny, prompt, **options)) for prompt in prompts]
    assert [ended(out) for out in generate(tiny, prompts, **options)] == alone
    assert [ended(out) for out in generate(tiny, prompts[::-1], **options)] == alone[::-1]
    assert ended(generate(tiny, prompts[0], **(options | {"seed": 12}))) != alone[0]


def test_num_return_sequences(tiny: kangaroo_jax.Params) -> None:
    options: dict[str, Any] = {"do_sample": True, "seed": 5, "max_new_tokens": 20, "temperature": 2.0}
    copies = generate(tiny, "def f(x):", num_return_sequences=3, **options)
    assert len({out.token_ids for out in copies}) == 3
    # The first copy is the one a single call gives; lists are prompt by prompt.
    assert ended(copies[0]) == ended(generate(tiny, "def f(x):", **options))
    both = generate(tiny, ["import os\n", "def f(x):"], num_return_sequences=3, **options)
    assert [ended(out) for out in both[3:]] == [ended(out) for out in copies]
    assert isinstance(generate(tiny, "def f(x):", num_return_sequences=1, **options), Generation)


def test_without_a_seed_every_call_and_row_is_another(tiny: kangaroo_jax.Params) -> None:
    options = {"do_sample": True, "max_new_tokens": 20, "temperature": 2.0}
    rows = [*generate(tiny, ["def f(x):"] * 3, **options), generate(tiny, "def f(x):", **options)]
    assert len({out.token_ids for out in rows}) == 4


def test_a_batch_size_compiles_once(tiny: kangaroo_jax.Params) -> None:
    generate(tiny, random_prompts(3, seed=0, longest=16), max_new_tokens=40)
    before = executables()
    for seed, budget in ((1, 40), (2, 3), (3, 0)):
        generate(tiny, random_prompts(3, seed=seed, longest=16), max_new_tokens=budget)
    assert executables() == before


def test_a_batch_beyond_the_memory_says_what_would_fit(
    tiny: kangaroo_jax.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A context of its own, so that nothing is compiled yet.
    params = tiny.replace(config=dataclasses.replace(tiny.config, max_position_embeddings=CONTEXT - 1))
    monkeypatch.setattr("kangaroo_jax.engine.memory.free_bytes", lambda: 10_000_000)
    before = executables()
    with pytest.raises(
        ValueError, match=r"^1000 sequences of up to 128 tokens need about .* GiB .*at most \d+ at"
    ) as e:
        generate(params, [[7]] * 1000)
    assert executables() == before
    fits = int(str(e.value).split("at most ")[1].split()[0])
    assert 1 < fits < 1000
    assert len(generate(params, [[7]] * fits, max_new_tokens=2)) == fits
    monkeypatch.setattr("kangaroo_jax.engine.memory.free_bytes", lambda: 1000)
    with pytest.raises(ValueError, match=r"1 sequence of .*a shorter prompt or a smaller max_new_tokens"):
        generate(params, [7])


@pytest.mark.full
@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_joey_on_prompts_of_1_to_500_tokens(size: int) -> None:
    joey = kangaroo_jax.load("joey", dtype="float32")
    rng = np.random.default_rng(size)
    source = "\n".join(out.text for out in generate(joey, ["import os\n", "class A:", "# The"], max_new_tokens=400))
    ids = joey.tokenizer.encode(source)
    prompts = []
    for _ in range(size):
        start, length = rng.integers(0, len(ids) - 500), rng.integers(1, 501)
        prompts.append(ids[start : start + length])
    for prompt, out in zip(prompts, generate(joey, prompts), strict=True):
        assert ended(out) == ended(generate(joey, prompt, method="plain"))


MIXED: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": True, "seed": 3, "temperature": 0.7},
    {"eta": 0.9, "max_new_tokens": 17},
    {"do_sample": True, "seed": 3, "top_k": 5, "top_p": 0.8, "temperature": 1.3, "eta": 0.0},
    {"do_sample": True, "seed": 4, "top_k": 0, "min_p": 0.2, "stop_strings": ["e", "a"]},
    {"eos_token_id": [4, 8, 15, 16, 23, 42, 100, 101, 104], "eta": 0.0},
    {"do_sample": True, "temperature": 0, "max_new_tokens": 0},
)


@pytest.mark.parametrize("method", ["kangaroo", pytest.param("plain", marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "which",
    [
        pytest.param(range(len(MIXED)), id="all"),
        pytest.param((0, 2, 5), id="greedy", marks=pytest.mark.full),
        pytest.param((1, 4), id="sampled", marks=pytest.mark.full),
    ],
)
def test_prompts_with_settings_of_their_own(tiny: kangaroo_jax.Params, method: str, which: Sequence[int]) -> None:
    """Greedy and sampled rows, budgets, ends, eta and seeds in one batch: each is what its prompt gives alone."""
    prompts, shared = random_prompts(len(which), seed=7), {"method": method, "max_new_tokens": 30}
    settings = [MIXED[index] for index in which]
    for prompt, own, out in zip(prompts, settings, generate(tiny, prompts, per_prompt=settings, **shared), strict=True):
        alone = generate(tiny, prompt, **{**shared, **own})
        assert ended(out) == ended(alone)
        assert out.stats.accept_lengths == alone.stats.accept_lengths
        assert out.stats.draft_lengths == alone.stats.draft_lengths
        assert out.stats.eta == alone.stats.eta


def test_settings_of_single_prompts_compile_nothing(tiny: kangaroo_jax.Params) -> None:
    prompts, sampled = random_prompts(2, seed=1, longest=9), {"do_sample": True, "max_new_tokens": 9}
    generate(tiny, prompts, per_prompt=[{"seed": 1}, {"temperature": 0.5}], **sampled)
    before = executables()
    generate(tiny, prompts, per_prompt=[{"do_sample": False, "eta": 0.7}, {"top_k": 7, "eos_token_id": [3]}], **sampled)
    assert executables() == before


@pytest.mark.parametrize(
    ("per_prompt", "message"),
    [
        ([{}], "per_prompt has 1 entries for 2 prompts; pass one for each"),
        ([], r"per_prompt is \[\]; pass one mapping of option names to values for each prompt"),
        ({"eta": 0.5}, "per_prompt is {'eta': 0.5}; pass one mapping"),
        ([{}, 0.5], "per_prompt has 0.5 at 1; pass one mapping"),
        ([{}, {"gamma": 3}], "per_prompt has gamma at 1; all prompts of a call share it, pass it beside"),
        ([{"method": "plain"}, {}], "per_prompt has method at 0"),
        ([{"temperature": -1}, {}], "temperature is -1; pass 0 or more"),
    ],
)
def test_settings_that_are_refused(tiny: kangaroo_jax.Params, per_prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tiny, ["a", "b"], per_prompt=per_prompt)


def test_a_setting_that_there_is_not(tiny: kangaroo_jax.Params) -> None:
    with pytest.raises(TypeError, match=r"generate\(\) got an unexpected keyword argument 'temprature'"):
        generate(tiny, ["a", "b"], per_prompt=[{}, {"temprature": 1}])
