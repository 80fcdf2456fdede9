"""Tokens that are looked up in the text: which they are, that ids are plain decoding's, and that caches are whole."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kangaroo_jax
from kangaroo_jax import decode as dec
from kangaroo_jax.decode.lookup import look_up

GAMMA = 4


@pytest.mark.parametrize(
    ("text", "size", "found"),
    [
        ("abcdabefab", 2, "efa"),
        ("abcdabefab", 1, "efa"),
        ("abcdabefab", 3, ""),
        ("abxab", 2, "xab"),
        ("abxabxab", 3, "xab"),
        ("abab", 2, "aba"),  # The text ends, and is taken to go on like this.
        ("aaaa", 2, "aaa"),
        ("aaaa", 3, "aaa"),
        ("aaaa", 4, ""),
        ("ab", 1, ""),
        ("aa", 1, "aaa"),
        ("a", 1, ""),
        ("a", 3, ""),
    ],
)
def test_what_followed_the_newest_tokens_in_the_last_place(text: str, size: int, found: str) -> None:
    padded = np.zeros((1, 12), np.int32)  # What lies behind a text is not looked at.
    padded[0, : len(text)] = [ord(letter) for letter in text]
    tokens, count = jax.jit(look_up, static_argnums=(2, 3))(padded, np.array([len(text)]), size, 3)
    assert "".join(map(chr, tokens[0, : int(count[0])])) == found


def test_texts_of_a_batch_are_looked_up_each_by_itself() -> None:
    tokens = jnp.array([[1, 2, 3, 1, 2, 9], [4, 4, 5, 6, 4, 9]])
    found, count = look_up(tokens, jnp.array([5, 5]), 1, 2)
    assert found[0].tolist() == [3, 1] and count.tolist() == [2, 2] and found[1].tolist() == [5, 6]


@dataclasses.dataclass(frozen=True)
class Told(dec.Kangaroo):
    """Finds the tokens of a text at their positions; -1 ends what is found."""

    texts: tuple[tuple[int, ...], ...] = ()

    def _look_up(self, spec: dec.DecodeSpec, state: dec.DecodeState, running: Any) -> Any:
        step = jnp.arange(spec.gamma)[None]
        known = jnp.take_along_axis(jnp.array(self.texts), state.length[:, None] + step, axis=1)
        count = jnp.where(known < 0, step, spec.gamma).min(1)
        return jnp.maximum(known, 0), count.astype(jnp.int32) * running


def told(lab: Any, prompts: list[list[int]], wrong: int = 10**9, gap: int = 10**9) -> Any:
    """Return a drafter that is told what follows; every so many tokens it is told another token, or nothing."""
    texts = []
    for prompt in prompts:
        (outcome,) = lab.run(0, [prompt])
        text = np.full(120, -1)
        text[: len(prompt) + len(outcome.ids)] = [*prompt, *outcome.ids]
        place = np.arange(120)
        text[(place % wrong == wrong - 1) & (text >= 0)] = 1
        text[place % gap == gap - 1] = -1
        texts.append(tuple(text.tolist()))
    return partial(Told, lookup=1, texts=tuple(texts))


def every(default: list[tuple], *values: list) -> list:
    """Return all combinations; those that are no default are ``full``."""
    others = [each for each in itertools.product(*values) if each not in default]
    return [*default, *(pytest.param(*each, marks=pytest.mark.full) for each in others)]


@pytest.mark.parametrize(("lookup", "siblings", "eta"), every([(1, 2, 0.0), (2, 0, 1.1)], [1, 2], [0, 2], [0.0, 1.1]))
def test_ids_are_those_of_plain_decoding(any_lab: Any, lookup: int, siblings: int, eta: float) -> None:
    drafter = partial(dec.Kangaroo, siblings=siblings, lookup=lookup)
    for prompt in any_lab.prompts:
        (outcome,) = any_lab.run(GAMMA, [[*prompt, *prompt]], eta=eta, drafter=drafter)
        (plain,) = any_lab.run(0, [[*prompt, *prompt]])
        assert outcome.ids == plain.ids
        assert any(row[0] == 1 for row in outcome.confidence)  # Something was looked up.


@pytest.mark.parametrize("siblings", [0, 2])
def test_what_is_right_is_accepted_whole(any_lab: Any, siblings: int) -> None:
    for prompt in any_lab.prompts:
        drafter = partial(told(any_lab, [prompt]), siblings=siblings)
        (outcome,) = any_lab.run(GAMMA, [prompt], drafter=drafter)
        assert [outcome.ids] == [each.ids for each in any_lab.run(0, [prompt])]
        assert {*outcome.accept_lengths[:-1]} == {GAMMA + 1} and {*outcome.draft_lengths[:-1]} == {GAMMA}


@pytest.mark.parametrize(
    ("turns", "siblings"),
    every([((3, 10**9), 2), ((10**9, 3), 0), ((5, 4), 2)], [(3, 10**9), (10**9, 3), (5, 4)], [0, 2]),
)
def test_rounds_of_both_kinds_take_turns(any_lab: Any, turns: tuple[int, int], siblings: int) -> None:
    wrong, gap = turns
    for prompt in any_lab.prompts:
        drafter = partial(told(any_lab, [prompt], wrong, gap), siblings=siblings)
        (outcome,) = any_lab.run(GAMMA, [prompt], eta=0.3, drafter=drafter)
        assert [outcome.ids] == [each.ids for each in any_lab.run(0, [prompt])]


def test_a_batch_looks_up_and_drafts(any_lab: Any) -> None:
    """In a round some texts are looked up, and others drafted."""
    prompts = any_lab.prompts
    for wrong, gap in ((3, 10**9), (10**9, 3), (5, 4)):
        drafter = told(any_lab, prompts, wrong, gap)
        for eta in (0.0, 0.3):
            found = any_lab.run(GAMMA, prompts, eta=eta, drafter=drafter)
            assert [each.ids for each in found] == [each.ids for each in any_lab.run(0, prompts)]


@pytest.mark.parametrize("siblings", [0, 2])
@pytest.mark.parametrize(("wrong", "gap"), [(10**9, 10**9), (3, 10**9), (5, 4)])
def test_no_cache_has_a_hole(lab: Any, wrong: int, gap: int, siblings: int) -> None:
    """All layers' and the adapter's are what they are where the draft model drafts everything."""
    for prompts in ([lab.prompts[1]], lab.prompts):
        whole = lab.decode(GAMMA, prompts)
        drafter = partial(told(lab, prompts, wrong, gap), siblings=siblings)
        other = lab.decode(GAMMA, prompts, drafter=drafter)
        assert (other.length == whole.length).all()
        pairs = zip(*(jax.tree.leaves((state.caches, state.drafter)) for state in (other, whole)), strict=True)
        for mine, theirs in pairs:
            mine, theirs = (jnp.reshape(each, (-1, len(prompts), *each.shape[-2:])) for each in (mine, theirs))
            for row, length in enumerate(np.asarray(whole.length) - 1):
                bound = 1e-5 * float(jnp.abs(theirs).max())
                np.testing.assert_allclose(mine[:, row, :length], theirs[:, row, :length], atol=bound)


def test_sampling_looks_up_nothing(tiny: kangaroo_jax.Params) -> None:
    options = {"do_sample": True, "seed": 3, "max_new_tokens": 24}
    found = [kangaroo_jax.generate(tiny, [5, 6, 7] * 4, lookup=lookup, **options) for lookup in (0, 2)]
    assert found[0].token_ids == found[1].token_ids and found[0].stats.rounds == found[1].stats.rounds


def test_it_is_an_option(tiny: kangaroo_jax.Params) -> None:
    found = kangaroo_jax.generate(tiny, [5, 6, 7] * 4, lookup=1, max_new_tokens=24)
    assert found.token_ids == kangaroo_jax.generate(tiny, [5, 6, 7] * 4, method="plain", max_new_tokens=24).token_ids
    for wrong in (-1, 9, 2.5):
        with pytest.raises(ValueError, match="lookup is"):
            kangaroo_jax.generate(tiny, [5, 6, 7], lookup=wrong)
