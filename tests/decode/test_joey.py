"""The embedded model: Kangaroo's ids are plain decoding's, on text it has never seen."""

from __future__ import annotations

from functools import cache
from itertools import product

import jax.numpy as jnp
import pytest

import kangaroo_jax
from kangaroo_jax.model import forward
from kangaroo_jax.proof.compare import read_prompts
from train.prompts import draw_prompts
from workshop.held_out import split_sources, standard_library

GAMMAS = (1, 2, 4, 6, 8)
ETAS = (0.0, 0.3, 0.6, 0.9, 1.1)


@cache
def joey() -> kangaroo_jax.Params:
    return kangaroo_jax.load("joey", dtype="float32")


@cache
def plain(prompt: str) -> kangaroo_jax.Generation:
    return kangaroo_jax.generate(joey(), prompt, method="plain", max_new_tokens=128)


def differences(prompts: list[str], gammas: tuple[int, ...], etas: tuple[float, ...]) -> list[tuple]:
    """Return the (gamma, eta, prompt) whose ids or ends differ from plain decoding's."""
    wrong = []
    for gamma, prompt, eta in product(gammas, prompts, etas):
        out = kangaroo_jax.generate(joey(), prompt, gamma=gamma, eta=eta, max_new_tokens=128)
        assert sum(out.stats.accept_lengths) == len(out.token_ids) - 1
        if (out.token_ids, out.finish_reason) != (plain(prompt).token_ids, plain(prompt).finish_reason):
            wrong.append((gamma, eta, prompt))
    return wrong


def test_built_in_prompts_give_the_ids_of_plain_decoding():
    prompts = [row["prompt"] for row in read_prompts()]
    assert len(prompts) >= 8
    assert differences(prompts, (3, 7), (0.0, 0.6)) == []


def test_the_adapter_drafts_well_enough_to_pay():
    rows = [kangaroo_jax.generate(joey(), row["prompt"]).stats for row in read_prompts()]
    committed, rounds = sum(sum(s.accept_lengths) for s in rows), sum(s.rounds for s in rows)
    assert committed / rounds > 2


@pytest.mark.full
def test_the_longest_prompt():
    """Prompts run in several pieces, up to the last position of the context."""
    source = b"".join(file.data for file in split_sources([standard_library()])[1][:3])
    ids = joey().tokenizer.encode(source[:4000].decode(errors="ignore"))
    context = joey().config.max_position_embeddings
    for length in (700, context - 1):
        prompt = ids[:length]
        scores = forward(joey().config, joey().target, jnp.array([prompt]))[0, -1]
        texts = [kangaroo_jax.generate(joey(), prompt, method=m, max_new_tokens=20) for m in ("kangaroo", "plain")]
        assert texts[0].token_ids == texts[1].token_ids
        assert texts[0].token_ids[0] == int(scores.argmax())
        assert len(texts[0].token_ids) == min(20, context - length)


@pytest.mark.full
@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_hundred_held_out_prompts_at_every_setting(gamma):
    held = split_sources([standard_library()])[1]
    prompts = [row["prompt"] for row in draw_prompts(held, 100, size=200, seed=20)]
    assert len(set(prompts)) == 100
    assert differences(prompts, (gamma,), ETAS) == []
