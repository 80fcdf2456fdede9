"""The engine with other drafters than Kangaroo: a line and a tree of tokens that are right or wrong at will."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax import decode as dec
from kangaroo_jax.model import LlamaConfig

NEW_TOKENS, SLOTS = 23, 64
# A root, three lines that leave it, and a fork in the second: 0 - 1 - 4, 0 - 2 - 5 - 6 and 7 after 5, 0 - 3.
PARENT, DEPTH = np.array([[0, 0, 0, 0, 1, 2, 5, 5]]), np.array([[0, 1, 1, 1, 2, 2, 3, 3]])
RIGHT = {"none": (), "one": (3,), "two": (1, 4), "three": (2, 5, 7), "orphan": (5, 6), "not one": (2, 6)}


@dataclasses.dataclass(frozen=True)
class Line(dec.Drafter):
    """Drafts the next four tokens of ``weights["drafter"]``, and counts what it learns."""

    def allocate(self, spec: dec.DecodeSpec, batch: int, slots: int, dtype: Any) -> Any:
        return {"read": jnp.zeros((batch,), jnp.int32), "learnt": jnp.zeros((batch,), jnp.int32)}

    def read(self, spec: dec.DecodeSpec, weights: Any, memory: Any, piece: dec.Piece) -> Any:
        return memory | {"read": jnp.maximum(memory["read"], piece.positions[:, -1] + 1)}

    def learn(self, spec: dec.DecodeSpec, weights: Any, draft: dec.Draft, verified: dec.Verified) -> Any:
        return draft.drafter | {"learnt": draft.drafter["learnt"] + verified.accepted + 1}

    def draft(self, spec: dec.DecodeSpec, weights: Any, state: dec.DecodeState, controls: Any) -> dec.Draft:
        after = state.length[:, None] + jnp.arange(spec.gamma)
        tokens = jnp.take_along_axis(weights["drafter"], after, axis=1)
        return dec.token_draft(spec, weights, state, tokens, jnp.full_like(state.length, spec.gamma), state.drafter)


@dataclasses.dataclass(frozen=True)
class Bush(dec.Drafter):
    """Drafts the tree above; the rows in ``right`` hold the known tokens, all others wrong ones."""

    right: tuple[int, ...] = ()

    def draft(self, spec: dec.DecodeSpec, weights: Any, state: dec.DecodeState, controls: Any) -> dec.Draft:
        batch = len(state.length)
        parent, depth = (jnp.broadcast_to(jnp.array(rows), (batch, 8)) for rows in (PARENT[0], DEPTH[0]))
        known = jnp.take_along_axis(weights["drafter"], state.length[:, None] - 1 + depth, axis=1)
        wrong = (known + 1 + jnp.arange(8)) % spec.config.vocab_size
        rows = jnp.where(jnp.isin(jnp.arange(8), jnp.array(self.right or (-1,))), known, wrong)
        candidate = jnp.broadcast_to(jnp.arange(8) > 0, (batch, 8))
        tree = dec.tree_of(parent, depth, candidate, spec.gamma)
        return dec.token_draft(spec, weights, state, rows[:, 1:], candidate.sum(1), None, tree)


def decode(lab: Any, config: LlamaConfig, drafter: dec.Drafter, gamma: int, prompts: Any) -> tuple[Any, Any]:
    """Return the final state, and the text of every prompt as plain decoding without a cache has it."""
    spec = dec.DecodeSpec(config, drafter, gamma)
    texts = [[*prompt, *lab.reference(prompt, NEW_TOKENS + 8)] for prompt in prompts]
    known, padded = np.zeros((len(prompts), SLOTS), np.int32), np.ones((len(prompts), SLOTS), np.int32)
    for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        known[row, : len(text)], padded[row, : len(prompt)] = text, prompt
    weights = {"target": lab.weights["target"], "drafter": known}
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    controls = lab.controls(0.0)
    state = dec.prefill(
        spec,
        8,
        weights,
        dec.allocate(spec, len(prompts), SLOTS, jnp.dtype(jnp.float32)),
        padded,
        np.zeros_like(lengths),
        lengths,
        np.full_like(lengths, NEW_TOKENS),
        np.zeros((len(prompts), 2), np.uint32),
        controls,
    )
    state = jax.device_get(dec.decode(spec, weights, state, controls, np.int32(2**31 - 1)))
    return state, [text[: len(prompt) + NEW_TOKENS] for text, prompt in zip(texts, prompts, strict=True)]


@pytest.mark.parametrize("prompts", [[[7, 11, 13]], [[7, 11, 13], [5, 3, 60, 0, 17, 19, 23, 29, 31, 37, 41], [59]]])
def test_a_line_of_right_tokens_is_accepted_whole(lab: Any, prompts: Any) -> None:
    state, texts = decode(lab, lab.config, Line(), 4, prompts)
    for row, text in enumerate(texts):
        assert state.tokens[row, : state.length[row]].tolist() == text
        # The first token is the prefill's; then five a round.
        assert state.stats.accept_lengths[row, :5].tolist() == [5, 5, 5, 5, 2]
    lengths = np.array([len(prompt) for prompt in prompts])
    assert (state.drafter["read"] >= lengths).all() and (state.drafter["learnt"][lengths == lengths.max()] == 22).all()


@pytest.mark.parametrize(
    ("name", "prompts", "one_head"),
    [(name, [[7, 11, 13]], True) for name in RIGHT] + [("three", [[7, 11, 13], [59]], False)],
)
def test_the_right_path_of_a_tree_is_committed(
    lab: Any, small_lab: Any, name: str, prompts: Any, one_head: bool
) -> None:
    the = small_lab if one_head else lab
    state, texts = decode(the, the.config, Bush(RIGHT[name]), 3, prompts)
    for row, text in enumerate(texts):
        assert state.tokens[row, : state.length[row]].tolist() == text
        accepted = {"none": 0, "one": 1, "two": 2, "three": 3, "orphan": 0, "not one": 1}[name]
        assert set(state.stats.accepted_drafts[row, : state.stats.rounds[row]].tolist()) == {accepted}
        assert set(state.stats.draft_lengths[row, : state.stats.rounds[row]].tolist()) == {7}


def test_acceptance_in_a_tree_as_drawn() -> None:
    """Rows 0 root, 1 a (after 0), 2 b (after 0), 3 c (after 2); the target says b, then c, then x."""
    parent, depth = jnp.array([[0, 0, 0, 2]]), jnp.array([[0, 1, 1, 2]])
    tree = dec.tree_of(parent, depth, jnp.array([[False, True, True, True]]), 2)
    assert tree.count == 4 and dec.tree_of(parent, depth, jnp.array([[False, True, False, False]]), 2).count == 2
    assert dec.tree_of(parent, depth, jnp.zeros((1, 4), bool), 2).count == 1
    a, b, c, x = 3, 4, 5, 6
    accepted, path = dec.accept_tree(jnp.array([[a, b, c]]), tree, jnp.array([[b, 9, c, x]]), 2)
    assert accepted.tolist() == [2] and path.tolist() == [[0, 2, 3]]
    accepted, path = dec.accept_tree(jnp.array([[a, b, c]]), tree, jnp.array([[a, 9, c, x]]), 2)
    assert accepted.tolist() == [1] and path.tolist() == [[0, 1, 1]]
    # A row that is no candidate is never accepted.
    hidden = tree.replace(candidate=jnp.array([[False, True, False, True]]))
    assert dec.accept_tree(jnp.array([[a, b, c]]), hidden, jnp.array([[b, 9, c, x]]), 2)[0].tolist() == [0]
