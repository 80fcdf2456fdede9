"""A replay has the very rounds of a real run: lengths, drafts and what was accepted, for any gamma and eta."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import kangaroo_jax
from kangaroo_jax.proof.compare import read_prompts
from kangaroo_jax.store import save_adapter
from kangaroo_jax.tuning.replay import Trace, replay, trace

# Text "a b c d e f": after a nothing is known; chains of two drafts from after a, b, c, d and e.
TRACED = Trace(
    token_ids=(1, 2, 3, 4, 5, 6),
    confidence=np.array([[0.9, 0.8], [0.4, 0.9], [0.9, 0.3], [0.2, 0.1], [0.9, 0.9]], np.float32),
    agreed=np.array([2, 1, 0, 0, 2]),
)


@pytest.mark.parametrize(
    ("gamma", "eta", "rounds"),
    [
        # committed, drafted, accepted of each round
        (2, 0.0, [(3, 2, 2), (1, 2, 0), (1, 2, 2)]),
        (1, 0.0, [(2, 1, 1), (1, 1, 0), (1, 1, 0), (1, 1, 1)]),
        # The second draft after a is below eta: it is kept, and ends the drafting; so does the first after d.
        (2, 0.85, [(3, 2, 2), (1, 1, 0), (1, 2, 2)]),
        (2, 0.95, [(2, 1, 1), (1, 1, 0), (1, 1, 0), (1, 1, 1)]),
    ],
)
def test_a_replay_by_hand(gamma: int, eta: float, rounds: list[tuple[int, int, int]]) -> None:
    again = replay(TRACED, gamma, eta)
    assert list(zip(again.accept_lengths, again.draft_lengths, again.accepted_drafts, strict=True)) == rounds
    assert (again.rounds, again.drafted) == (len(rounds), sum(drafted for _, drafted, _ in rounds))


def test_eta_is_compared_in_fp32() -> None:
    third = np.float32(1 / 3)
    traced = Trace((1, 2), np.array([[third, third]]), np.array([0]))
    assert replay(traced, 2, float(third)).drafted == 2
    assert replay(traced, 2, 1e300).drafted == 1


def test_gamma_beyond_the_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma is 3, and 2 tokens were drafted from each position"):
        replay(TRACED, 3, 0.0)


def test_a_text_of_one_token_has_no_rounds(tiny: kangaroo_jax.Params) -> None:
    traced = trace(tiny, [7, 8], gamma=3, max_new_tokens=1)
    assert len(traced.token_ids) == 1 and replay(traced, 3, 0.5).rounds == 0


def _check(params: kangaroo_jax.Params, prompt: object, gamma: int, tokens: int, settings: list) -> None:
    ids = prompt if isinstance(prompt, list) else params.tokenizer.encode(prompt)
    traced = trace(params, ids, gamma, tokens)
    assert traced.token_ids == kangaroo_jax.generate(params, ids, method="plain", max_new_tokens=tokens).token_ids
    for gamma, eta in settings:
        stats = kangaroo_jax.generate(params, ids, method="kangaroo", gamma=gamma, eta=eta, max_new_tokens=tokens).stats
        again = replay(traced, gamma, eta)
        assert again.accept_lengths == stats.accept_lengths, (gamma, eta)
        assert again.draft_lengths == stats.draft_lengths, (gamma, eta)
        assert again.accepted_drafts == stats.accepted_drafts, (gamma, eta)


def test_a_replay_is_a_run_of_a_random_model(tiny: kangaroo_jax.Params) -> None:
    """Hardly a draft is right, confidences lie anywhere; the text ends at the context, or with an EOS token."""
    for prompt in ([7, 11, 13], list(range(40, 80))):
        _check(tiny, prompt, 5, 80, [(gamma, eta) for gamma in (2, 5) for eta in (0.0, 0.05, 0.1, 0.5, 2.0)])


def test_final_states_are_those_that_were_committed(tmp_path: Path) -> None:
    """Drafts that are accepted and cut off leave nothing behind. Of one drafted token nothing is guessed."""
    joey = kangaroo_jax.load("joey", dtype="float32", kernels="xla")
    assert joey.draft is not None and joey.adapter is not None
    width = joey.config.hidden_size
    reads = {"kernel": np.random.default_rng(3).normal(size=(width, width)).astype(np.float32) / width**0.5}
    adapter = dataclasses.replace(joey.draft.adapter, final_states=True)
    draft = dataclasses.replace(joey.draft, adapter=adapter)
    save_adapter(tmp_path / "finals", joey.config, draft, jax.device_get(joey.adapter) | {"final_proj": reads}, {})
    params = kangaroo_jax.load("joey", dtype="float32", adapter=tmp_path / "finals")
    prompt = read_prompts()[0]["prompt"]
    _check(params, prompt, 1, 60, [(1, eta) for eta in (0.0, 0.3, 0.9)])
    again = replay(trace(params, params.tokenizer.encode(prompt), 1, 60), 1, 0.0)
    assert 10 < sum(again.accepted_drafts) < sum(again.draft_lengths)


@pytest.mark.full
def test_a_replay_is_a_run_of_joey() -> None:
    joey = kangaroo_jax.load("joey")
    for row in read_prompts()[:3]:
        _check(joey, row["prompt"][:120], 7, 64, [(gamma, eta) for gamma in (3, 7) for eta in (0.0, 0.2, 0.5, 0.8)])


@pytest.mark.full
def test_a_replay_is_a_run_of_joey_whatever_the_prompt_and_rows() -> None:
    joey = kangaroo_jax.load("joey")
    settings = [(gamma, eta) for gamma in (1, 4, 8, 15) for eta in (0.0, 0.3, 0.9)]
    for row in read_prompts()[:6]:
        _check(joey, row["prompt"], 15, 128, settings)
