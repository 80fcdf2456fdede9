"""Prompt lookup: the matching against a plain reference, and the method on the engine."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import kangaroo_jax
from bench.methods import make
from bench.methods.prompt_lookup import look_up

NEW_TOKENS = 40


def reference(text: list[int], max_ngram: int, gamma: int) -> list[int]:
    """The published rule, read off its definition."""
    for n in range(min(max_ngram, len(text)), 0, -1):
        for start in range(n, len(text)):
            if text[start - n : start] == text[-n:] and start + gamma <= len(text) and start < len(text) - n:
                return text[start : start + gamma]
    return []


@pytest.mark.parametrize(("max_ngram", "gamma", "vocab"), [(3, 10, 3), (3, 2, 5), (5, 1, 2), (1, 3, 7)])
def test_the_first_place_of_the_longest_match_counts(max_ngram: int, gamma: int, vocab: int) -> None:
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, vocab, (97, 61)).astype(np.int32)
    length = rng.integers(1, 62, 97).astype(np.int32)
    drafted, count = jax.jit(look_up, static_argnums=(2, 3))(tokens, length, max_ngram, gamma)
    found = [row[:n].tolist() for row, n in zip(np.array(drafted), count, strict=True)]
    expected = [reference(row[:n].tolist(), max_ngram, gamma) for row, n in zip(tokens, length, strict=True)]
    assert found == expected
    assert {len(row) for row in expected} == {0, gamma}


def test_the_example_as_drawn() -> None:
    a, b, c, x, y = range(5)
    text = np.array([[a, b, c, x, y, a, b, c, 9, 9]])
    drafted, count = look_up(text, np.array([8]), 3, 2)
    assert drafted.tolist() == [[x, y]] and count.tolist() == [2]
    # Nothing of what lies beyond the text is looked at.
    assert look_up(text[:, ::-1], np.array([2]), 3, 2)[1].tolist() == [0]


def test_output_is_that_of_plain_decoding(tiny: kangaroo_jax.Params) -> None:
    plain, lookup = make("plain", tiny), make("prompt-lookup", tiny, {"gamma": 4})
    assert lookup.added_parameters == 0 and dict(lookup.settings) == {"max_ngram": 3, "gamma": 4}
    drafted: set[int] = set()
    for prompt in ([5, 7, 11], [3, 4, 5, 6] * 5, [89]):
        found = lookup.generate(prompt, NEW_TOKENS, ())
        assert found.token_ids == plain.generate(prompt, NEW_TOKENS, ()).token_ids
        drafted |= set(found.stats.draft_lengths)
    assert drafted == {0, 4}  # A round without a draft commits the target's own token.


def test_a_text_that_repeats_itself_is_accepted_in_long_runs(repeats: Any) -> None:
    """A model that writes 5 6 7 5 6 7 ...: once 10 tokens follow the first match, all drafts are right."""
    found = make("prompt-lookup", repeats).generate([5], 60, ())
    assert found.token_ids == (6, 7, 5) * 20
    assert found.stats.draft_lengths[0] == 0
    assert set(found.stats.accept_lengths[-4:-1]) == {11}


@pytest.fixture
def repeats(tiny_arrays: kangaroo_jax.Params, as_loaded: Any) -> kangaroo_jax.Params:
    """The tiny model, made one whose choice depends on the newest token alone: 5 -> 6 -> 7 -> 5."""
    target = jax.tree.map(np.zeros_like, jax.device_get(tiny_arrays.target))
    target["norm"]["scale"] += 1
    embedding = target["embed_tokens"]["embedding"]
    for row, token in enumerate((5, 6, 7)):
        embedding[token, row] = 1
        target["lm_head"]["kernel"][row, (6, 7, 5)[row]] = 1
    return as_loaded(tiny_arrays.replace(target=jax.device_put(target)))


@pytest.mark.parametrize(
    ("settings", "message"), [({"gamma": 0}, "gamma is 0"), ({"max_ngram": "3"}, "max_ngram is '3'")]
)
def test_bad_settings_are_refused(tiny: kangaroo_jax.Params, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("prompt-lookup", tiny, settings)
