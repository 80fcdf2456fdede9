"""Second choices beside the first drafted token: the ids are plain decoding's, caches are whole, rounds are longer."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax import decode as dec
from kangaroo_jax.decode.likely import surest


@dataclasses.dataclass(frozen=True)
class Second(dec.Kangaroo):
    """The draft model's second choice is the token of a table, and its first one the next token of the vocabulary."""

    def propose(self, spec: dec.DecodeSpec, weights: Any, hidden: Any, positions: Any, memory: Any) -> Any:
        logits, memory = super().propose(spec, weights, hidden, positions, memory)
        known = jnp.take_along_axis(weights["known"], positions + 1, axis=1)
        token, size = jnp.arange(logits.shape[1]), logits.shape[1]
        return logits * 0 - (token - known - 1) % size * 0.1 - (token == known) * 0.05 + (token == known) * 6.0, memory


def plain(lab: Any, prompts: Any) -> list[list[int]]:
    return [outcome.ids for outcome in lab.run(0, prompts)]


def test_the_next_choices() -> None:
    scores = jnp.array([[0.0, 3.0, 1.0, 2.0], [5.0, 4.0, 4.5, -1.0]])
    token, share, others = surest({"target": {}}, scores, 2)
    assert token.tolist() == [1, 0] and others.tolist() == [[3, 2], [2, 1]]
    np.testing.assert_allclose(share, jax.nn.softmax(scores).max(-1), rtol=1e-6)


@pytest.mark.parametrize("siblings", [1, 3])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.1])
def test_ids_are_those_of_plain_decoding(any_lab: Any, siblings: int, eta: float) -> None:
    for prompt in any_lab.prompts:
        drafter = partial(dec.Kangaroo, siblings=siblings)
        (outcome,) = any_lab.run(4, [prompt], eta=eta, drafter=drafter)
        assert [outcome.ids] == plain(any_lab, [prompt])
        assert all(siblings < count <= 4 + siblings for count in outcome.draft_lengths)


@pytest.mark.parametrize("siblings", [1, 3])
@pytest.mark.parametrize("eta", [0.0, 1.1])
def test_a_second_choice_that_is_right_is_a_token_more(any_lab: Any, siblings: int, eta: float) -> None:
    for prompt in any_lab.prompts:
        (text,) = plain(any_lab, [prompt])
        known = np.full((1, 96), 1, np.int32)
        known[0, len(prompt) : len(prompt) + len(text)] = text
        for drafter, longest in ((Second, 1), (partial(Second, siblings=siblings), 2)):
            weights = {"known": known}
            (outcome,) = any_lab.run(3, [prompt], eta=eta, weights=weights, drafter=drafter)
            assert outcome.ids == text
            assert {*outcome.accept_lengths[:-1]} == {longest}


def test_no_cache_has_a_hole_behind_a_sibling(lab: Any) -> None:
    """What the line had in the sibling's place is overwritten: in all layers, and in the adapter's cache."""
    prompt = lab.prompts[1]
    text = [*prompt, *lab.reference(prompt)]
    known = np.full((1, 96), 1, np.int32)
    known[0, : len(text)] = text
    whole = lab.decode(3, [prompt], weights={"known": known}, drafter=Second)
    other = lab.decode(3, [prompt], weights={"known": known}, drafter=partial(Second, siblings=2))
    assert other.length == whole.length and other.stats.rounds[0] < whole.stats.rounds[0]
    end = int(other.length[0]) - 1
    for mine, theirs in zip(*(jax.tree.leaves((state.caches, state.drafter)) for state in (other, whole)), strict=True):
        np.testing.assert_allclose(mine[:, :end], theirs[:, :end], atol=1e-5 * float(jnp.abs(theirs).max()))


def test_a_batch_drafts_lines(lab: Any) -> None:
    drafter = partial(dec.Kangaroo, siblings=2)
    for prompt, outcome in zip(lab.prompts, lab.run(4, lab.prompts, drafter=drafter), strict=True):
        assert outcome.ids == lab.reference(prompt) and max(outcome.draft_lengths) == 4
