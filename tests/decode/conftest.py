"""A tiny target with an untrained adapter, reference decoding, and drafts that are right or wrong at will."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kangaroo_jax import decode as dec
from kangaroo_jax.kernels import pack_adapter, pack_target, why_not
from kangaroo_jax.model import AdapterConfig, LlamaConfig, forward, init_adapter, init_params

CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=23,
    intermediate_size=29,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    eos_token_id=(),
)
PROMPTS = ([7, 11, 13], [5, 3, 60, 0, 17, 19, 23, 29, 31, 37, 41], [59])
NEW_TOKENS = 41
SLOTS = 96  # 11 tokens of the longest prompt, 41 new ones, 16 rows of slack; padding on top.
NO_EOS = (-1,)  # One id that is no token: as an array, it has the shape of one that is.


@dataclasses.dataclass(frozen=True)
class Known(dec.Kangaroo):
    """Drafts from a table of tokens and one of confidences by position; where the token is -1, as Kangaroo does."""

    def propose(self, spec: dec.DecodeSpec, weights: Any, hidden: Any, positions: Any, memory: Any) -> Any:
        vocab_size = spec.config.vocab_size
        logits, memory = super().propose(spec, weights, hidden, positions, memory)
        known = jnp.take_along_axis(weights["known"], positions + 1, axis=1)
        sure = jnp.take_along_axis(weights["sure"], positions + 1, axis=1)
        # The known token has probability ``sure``, all others share the rest.
        others = jnp.log((1 - sure) / (vocab_size - 1))
        certain = jnp.where(jnp.arange(vocab_size) == known, jnp.log(sure), others)
        return jnp.where(known < 0, logits, certain), memory


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the device loop returned for one sequence."""

    ids: list[int]
    finish: int
    accept_lengths: list[int]
    draft_lengths: list[int]
    accepted_drafts: list[int]
    confidence: list[list[float]]

    @property
    def drafted(self) -> int:
        return sum(self.draft_lengths)

    @property
    def accepted(self) -> int:
        return sum(self.accepted_drafts)


class Lab:
    """Runs the decoder on a few prompts. Programs are shared: shapes depend on the number of prompts and gamma."""

    prompts, new_tokens = PROMPTS, NEW_TOKENS

    def __init__(self, config: LlamaConfig, exit_layer: int, adapter: AdapterConfig | None = None) -> None:
        self.config, self.exit_layer, self.adapter = config, exit_layer, adapter or AdapterConfig()
        params = init_params(config, jax.random.key(2))
        # Larger than the initialisation's, so that the choice depends on the text and changes from token to token.
        target = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim == 2 else leaf, params)
        self.weights = {"target": target, "adapter": init_adapter(config, jax.random.key(3), self.adapter)}
        self._forward = jax.jit(lambda params, tokens: forward(config, params, tokens))
        self._texts: dict[Any, list[int]] = {}

    def spec(self, gamma: int, drafter: type[dec.Kangaroo] = dec.Kangaroo) -> dec.DecodeSpec:
        kangaroo = drafter(self.adapter, exit_layer=self.exit_layer)
        return dec.DecodeSpec(self.config, kangaroo if gamma else dec.PLAIN, gamma)

    @staticmethod
    def controls(eta: float, eos: Any = NO_EOS, sampling: tuple[float, int, float, float] = (1.0, 61, 1.0, 0.0)) -> Any:
        """Return eta, EOS tokens and (temperature, top_k, top_p, min_p) as programs take them, of all sequences."""
        temperature, top_k, top_p, min_p = sampling
        one = (np.array([value], np.float32) for value in (temperature, top_p, min_p, eta))
        temperature, top_p, min_p, eta = one
        drawn = dec.Sampling(temperature, np.array([top_k], np.int32), top_p, min_p)
        return dec.Controls(eta, np.array([eos], np.int32), drawn)

    def reference(self, prompt: Sequence[int], count: int = NEW_TOKENS, weights: Any = None) -> list[int]:
        """Decode greedily in the plainest way: the whole text through all layers for every token, no cache."""
        target = (weights or self.weights)["target"]
        key = (tuple(prompt), id(target))
        text = list(self._texts.get(key, prompt))
        while len(text) < len(prompt) + count:
            padded = np.zeros((1, SLOTS), np.int32)
            padded[0, : len(text)] = text
            logits = np.asarray(self._forward(target, padded))[0, len(text) - 1]
            first, second = np.sort(logits)[:-3:-1]
            assert first - second > 1e-4, "a near tie: no test may depend on it, choose another seed"
            text.append(int(logits.argmax()))
        self._texts[key] = text
        return text[len(prompt) :][:count]

    def prefill(
        self, gamma: int, prompts: Any, budgets: Any, eos: Any, weights: Any = None, chunk: int = 16
    ) -> dec.DecodeState:
        caches = dec.allocate(self.spec(gamma).for_prefill, len(prompts), SLOTS, jnp.dtype(jnp.float32))
        return self._prefill(gamma, caches, prompts, 0, budgets, eos, weights, chunk)

    def resume(self, gamma: int, state: dec.DecodeState, prompt: Any, start: int) -> dec.DecodeState:
        """Prefill another prompt into the caches of a state, which hold its first ``start`` positions."""
        return self._prefill(gamma, (state.caches, state.drafter), [prompt], start, NEW_TOKENS, NO_EOS, None, 4)

    def _prefill(
        self, gamma: int, caches: Any, prompts: Any, start: int, budgets: Any, eos: Any, weights: Any, chunk: int
    ) -> dec.DecodeState:
        padded = np.full((len(prompts), SLOTS), 1, np.int32)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        only = ("target", "adapter") if gamma else ("target",)
        weights = {name: (self.weights | (weights or {}))[name] for name in only}
        budgets = np.broadcast_to(np.array(budgets, np.int32), lengths.shape)
        seeds = np.zeros((len(prompts), 2), np.uint32)
        rows = (padded, np.full_like(lengths, start), lengths, budgets, seeds, self.controls(0, eos))
        return dec.prefill(self.spec(gamma).for_prefill, chunk, weights, caches, *rows)

    def texts(self, state: dec.DecodeState) -> list[list[int]]:
        """Return the new tokens of every sequence."""
        state = jax.device_get(state)
        ends, starts = state.length, state.limit - NEW_TOKENS
        return [row[start:end].tolist() for row, start, end in zip(state.tokens, starts, ends, strict=True)]

    def decode(
        self,
        gamma: int,
        prompts: Any,
        *,
        eta: float = 0.0,
        budgets: Any = NEW_TOKENS,
        eos: Any = NO_EOS,
        weights: Any = None,
        drafter: type[dec.Kangaroo] = dec.Kangaroo,
        rounds: int = 2**31 - 1,
    ) -> dec.DecodeState:
        state = self.prefill(gamma, prompts, budgets, eos, weights)
        return self.advance(gamma, state, eta=eta, eos=eos, weights=weights, drafter=drafter, rounds=rounds)

    def advance(
        self,
        gamma: int,
        state: dec.DecodeState,
        *,
        eta: float = 0.0,
        eos: Any = NO_EOS,
        weights: Any = None,
        drafter: type[dec.Kangaroo] = dec.Kangaroo,
        rounds: int = 2**31 - 1,
    ) -> dec.DecodeState:
        weights = self.weights | (weights or {}) if gamma else {"target": self.weights["target"]}
        return dec.decode(self.spec(gamma, drafter), weights, state, self.controls(eta, eos), np.int32(rounds))

    def run(self, gamma: int, prompts: Any, **options: Any) -> list[Outcome]:
        state = jax.device_get(self.decode(gamma, prompts, **options))
        stats, outcomes = state.stats, []
        for row, prompt in enumerate(prompts):
            rounds = int(stats.rounds[row])
            # Beyond the rounds that were done there is nothing.
            assert not stats.accept_lengths[row, rounds:].any() and not stats.draft_lengths[row, rounds:].any()
            assert state.tokens[row, : len(prompt)].tolist() == list(prompt)
            outcomes.append(
                Outcome(
                    ids=state.tokens[row, len(prompt) : state.length[row]].tolist(),
                    finish=int(state.finish[row]),
                    accept_lengths=stats.accept_lengths[row, :rounds].tolist(),
                    draft_lengths=stats.draft_lengths[row, :rounds].tolist(),
                    accepted_drafts=stats.accepted_drafts[row, :rounds].tolist(),
                    confidence=[
                        stats.confidence[row, index, : stats.draft_lengths[row, index]].tolist()
                        for index in range(rounds)
                    ],
                )
            )
        return outcomes

    def tables(self, prompts: Any, kind: str) -> dict[str, Any]:
        """Return weights for ``Known``.

        Args:
            prompts: the prompts.
            kind: "oracle": the right token everywhere, "fool": a wrong one everywhere, both with confidence 1;
                "untrained": what the adapter says; "mixed": right and wrong tokens, random confidence.
        """
        shape, rng = (len(prompts), SLOTS), np.random.default_rng(7)
        known, sure = np.full(shape, -1, np.int32), np.ones(shape, np.float32)
        if kind != "untrained":
            for row, prompt in zip(known, prompts, strict=True):
                text = [*prompt, *self.reference(prompt, NEW_TOKENS + 10)]
                row[: len(text)] = text
        if kind == "mixed":  # Not below what makes a token the most likely of all.
            sure = rng.uniform(0.05, 1, shape).astype(np.float32)
        wrong = {"fool": np.ones(shape, bool), "mixed": rng.random(shape) < 0.2}.get(kind, np.zeros(shape, bool))
        return {"known": np.where(wrong, (known + 1) % self.config.vocab_size, known), "sure": sure}


@pytest.fixture(scope="session")
def lab() -> Lab:
    """Grouped-query attention, draft model of two layers of five."""
    return Lab(CONFIG, exit_layer=2)


def packed(lab: Lab, dtype: str) -> Lab:
    """Return the lab with weights for the native kernels."""
    twin = copy.copy(lab)
    weights = jax.tree.map(lambda leaf: leaf.astype(dtype), lab.weights)
    twin.weights = {"target": pack_target(dict(weights["target"])), "adapter": pack_adapter(weights["adapter"])}
    twin._texts = {}
    return twin


KERNELS = ["xla"] if why_not() else ["xla", "native fp32", "native bf16"]


@pytest.fixture(scope="module", params=KERNELS)
def any_lab(request: pytest.FixtureRequest, lab: Lab) -> Lab:
    """The lab, on XLA and with the native kernels."""
    kernels, _, dtype = request.param.partition(" ")
    return lab if kernels == "xla" else packed(lab, {"fp32": "float32", "bf16": "bfloat16"}[dtype])


@pytest.fixture(scope="session")
def small_lab() -> Lab:
    """One key/value head, and one layer on either side of the exit: with one prompt, a cache is a single row."""
    return Lab(dataclasses.replace(CONFIG, num_key_value_heads=1, num_hidden_layers=2), exit_layer=1)


@pytest.fixture(scope="session")
def known() -> Any:
    """``Known``, to pass as ``drafter``."""
    return Known


def reference_probabilities(
    logits: Any, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """Return the probabilities tokens are drawn with, in float64, one cut after the other; top_k 0 is none."""

    def shares(kept: np.ndarray) -> np.ndarray:
        weights = np.where(kept, np.exp(scaled), 0.0)
        return weights / weights.sum(-1, keepdims=True)

    logits = np.asarray(logits, np.float64)
    scaled = (logits - logits.max(-1, keepdims=True)) / temperature
    kept = np.full(scaled.shape, True)
    if top_k:
        kept &= scaled >= np.sort(scaled, axis=-1)[..., -top_k, None]
    if top_p < 1:
        ranked = np.sort(shares(kept), axis=-1)[..., ::-1]
        needed = np.minimum((np.cumsum(ranked, axis=-1) < top_p).sum(-1, keepdims=True), logits.shape[-1] - 1)
        kept &= shares(kept) >= np.take_along_axis(ranked, needed, axis=-1)
    probability = shares(kept)
    return shares(kept & (probability >= min_p * probability.max(-1, keepdims=True)))


def chi_square(counts: Any, probabilities: Any) -> float:
    """Return the p-value of counts under exact probabilities, rows of cells that each sum to 1.

    Cells in which less than 10 is expected are pooled. A count where nothing can be has p-value 0.
    """
    statistic, freedom = 0.0, 0
    width = np.shape(counts)[-1]
    for observed, shares in zip(np.reshape(counts, (-1, width)), np.reshape(probabilities, (-1, width)), strict=True):
        if observed[shares == 0].any():
            return 0.0
        order = np.argsort(shares)
        observed, expected = observed[order], shares[order] * observed.sum()
        rare = min(int((expected < 10).sum()), width - 1)
        while expected[:rare].sum() < 10 and 0 < rare < width - 1:
            rare += 1
        starts = [0, *range(max(rare, 1), width)]
        observed, expected = np.add.reduceat(observed, starts), np.add.reduceat(expected, starts)
        cells = expected > 0
        statistic += float(((observed - expected)[cells] ** 2 / expected[cells]).sum())
        freedom += int(cells.sum()) - 1
    return float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0


@pytest.fixture(scope="session")
def reference() -> Any:
    """``reference_probabilities``."""
    return reference_probabilities


@pytest.fixture(scope="session")
def p_value() -> Any:
    """``chi_square``."""
    return chi_square
