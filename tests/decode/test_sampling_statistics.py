"""What Kangaroo draws is distributed as what the target draws: counts of whole texts against exact probabilities.

A vocabulary of 5 tokens has few short texts. The probability of each is known from one pass of the target over all of
them, and the decoder, prefill and loop, writes hundreds of thousands.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kangaroo_jax import decode as dec
from kangaroo_jax.decode.sampling import ACCEPT, DRAFT, TARGET, draw, keys
from kangaroo_jax.model import (
    LlamaConfig,
    forward,
    init_adapter,
    init_params,
    line,
    logits,
    run_layers,
    with_draft_head,
)

CONFIG = LlamaConfig(
    vocab_size=5,
    hidden_size=7,
    intermediate_size=11,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    eos_token_id=(),
)
EXIT_LAYER = 2
PROMPTS = ([3, 1], [0, 4, 2])  # Every other sequence of a batch continues the second one.
ROWS = 16_384
BATCHES = 13  # 212,992 texts.
FEW_TOKENS = (0, 1, 4)
FEW = 2  # 32,768: one batch already rejects every wrong rule below.

CUTS = {  # temperature, top_k, top_p, min_p
    "as it is": (1.0, 5, 1.0, 0.0),
    "cold": (0.7, 5, 1.0, 0.0),
    "top_k": (1.3, 3, 1.0, 0.0),
    "top_p": (1.0, 5, 0.8, 0.0),
    "both": (0.8, 4, 0.9, 0.0),
    "min_p": (1.0, 5, 1.0, 0.2),
}
DRAFTS = {  # What the target's logits are multiplied by, and how large the noise is that is added then.
    "perfect": (1.0, 0.0),
    "noisy": (1.0, 1.0),
    "flat": (0.3, 0.1),  # Top_k apart, more tokens pass the cuts than of the target's.
    "sharp": (3.0, 0.3),  # Fewer do.
    "contrary": (-1.0, 0.3),  # Other ones do.
    "untrained": (0.0, 0.0),  # Not these: the adapter's own.
}


@dataclasses.dataclass(frozen=True)
class Near(dec.Kangaroo):
    """Drafts from the target's logits, scaled, and some noise: its last layer, with the adapter's cache for its own.

    What prefill and drafting write into that cache is right, since the adapter makes that layer's keys and values.

    Attributes:
        near: whether it does; otherwise it drafts as Kangaroo.
        rule: how drafted tokens are accepted.
    """

    near: bool = True
    rule: Any = dec.accept_sampled

    def propose(self, spec: dec.DecodeSpec, weights: Any, hidden: Any, positions: Any, memory: Any) -> Any:
        if not self.near:
            return super().propose(spec, weights, hidden, positions, memory)
        config, last = spec.config, spec.config.num_hidden_layers
        context = line(positions, memory.cache.slots)
        x, (cache,) = run_layers(config, weights["target"], hidden, context, (memory.cache,), last - 1, last)
        scores = weights["scale"] * logits(config, weights["target"], x)[:, 0] + weights["noise"][positions[:, 0]]
        ids = self.vocabulary(weights)
        return scores if ids is None else scores[:, ids], memory.replace(cache=cache)

    def accept(self, *inputs: Any) -> Any:
        return self.rule(*inputs)


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to write texts of ``new`` tokens."""

    cuts: str
    gamma: int = 0
    draft: str = "perfect"
    eta: float = 0.0
    new: int = 3
    temperature: float | None = None  # Instead of that of the cuts.
    few: bool = False  # Drafts the tokens FEW_TOKENS alone.

    @property
    def sampling(self) -> tuple[float, int, float, float]:
        temperature, top_k, top_p, min_p = CUTS[self.cuts]
        return self.temperature or temperature, top_k, top_p, min_p


class Toy:
    """The model, exact probabilities of its texts, and texts drawn from it."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference
        params = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(2))
        # Probabilities then depend on the text, and few are close to 0 or 1.
        target = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim == 2 else leaf, params)
        target["lm_head"]["kernel"] *= 2
        last = target[f"layers_{EXIT_LAYER}"]
        adapter = jax.jit(init_adapter, static_argnums=0)(CONFIG, jax.random.key(3))
        adapter["input_layernorm"] = last["input_layernorm"]
        adapter["self_attn"]["qkv_proj"] = last["self_attn"]["qkv_proj"]
        self.weights = {"target": target, "adapter": adapter}
        self._logits: dict[int, list[np.ndarray]] = {}

    def logits(self, new: int) -> list[np.ndarray]:
        """Return the target's logits of every next token: for each step t and text of t tokens, ``[2, 5**t, 5]``."""
        if new not in self._logits:
            longest, vocab = max(map(len, PROMPTS)), CONFIG.vocab_size
            texts = np.array(list(itertools.product(range(vocab), repeat=new - 1)), np.int32)
            padded = np.zeros((len(PROMPTS), len(texts), longest + new - 1), np.int32)
            for rows, prompt in zip(padded, PROMPTS, strict=True):
                rows[:, : len(prompt)], rows[:, len(prompt) : len(prompt) + new - 1] = prompt, texts
            flat = padded.reshape(-1, padded.shape[-1])
            scores = np.asarray(jax.jit(forward, static_argnums=0)(CONFIG, self.weights["target"], flat))
            scores = scores.reshape(*padded.shape, vocab)
            self._logits[new] = [
                np.stack(
                    [
                        row[:: vocab ** (new - 1 - step), len(prompt) - 1 + step]
                        for row, prompt in zip(scores, PROMPTS, strict=True)
                    ]
                )
                for step in range(new)
            ]
        return self._logits[new]

    def exact(self, case: Case) -> np.ndarray:
        """Return the probability of every text after either prompt, ``[2, 5, 5, ...]``."""
        joint = np.ones((len(PROMPTS), 1))
        for scores in self.logits(case.new):
            joint = (joint[..., None] * self.reference(scores, *case.sampling)).reshape(len(PROMPTS), -1)
        return joint.reshape(len(PROMPTS), *[CONFIG.vocab_size] * case.new)

    def run(self, case: Case, seed: np.ndarray, accept: Any = dec.accept_sampled) -> tuple[np.ndarray, Any]:
        """Return the new tokens of every sequence, ``[B, new]``, and the statistics."""
        temperature, top_k, top_p, min_p = case.sampling
        truncate = top_k < CONFIG.vocab_size or top_p < 1
        drafter = dec.Kangaroo(exit_layer=EXIT_LAYER) if case.gamma else dec.PLAIN
        spec = dec.DecodeSpec(CONFIG, drafter, case.gamma, sample=True, truncate=truncate)
        before = spec.for_prefill
        if case.gamma:
            near = Near(exit_layer=EXIT_LAYER, near=case.draft != "untrained", rule=accept)
            spec = dataclasses.replace(spec, drafter=near)
        rows: Any = (np.full(len(seed), value, np.float32) for value in (temperature, top_p, min_p, case.eta))
        temperature, top_p, min_p, eta = rows
        drawn = dec.Sampling(temperature, np.full(len(seed), top_k, np.int32), top_p, min_p)
        controls = dec.Controls(eta, np.full((len(seed), 1), -1, np.int32), drawn)

        slots = dec.bucket(max(map(len, PROMPTS)) + case.new + spec.rows)
        tokens, length = np.zeros((len(seed), slots), np.int32), np.zeros(len(seed), np.int32)
        for index, prompt in enumerate(PROMPTS):
            tokens[index::2, : len(prompt)], length[index::2] = prompt, len(prompt)
        scale, noise = DRAFTS[case.draft]
        table = noise * np.random.default_rng(4).standard_normal((32, CONFIG.vocab_size), np.float32)
        weights = {name: self.weights[name] for name in ("target", "adapter")[: 2 if case.gamma else 1]}
        caches = dec.allocate(before, len(seed), slots, jnp.dtype(jnp.float32))
        budget = np.full(len(seed), case.new, np.int32)
        state = dec.prefill(before, 4, weights, caches, tokens, length * 0, length, budget, seed, controls)
        weights |= {"scale": np.float32(scale), "noise": table}
        if case.few:
            few = weights["adapter"] | {"draft_vocabulary": {"ids": jnp.array(FEW_TOKENS, jnp.int32)}}
            weights["adapter"] = with_draft_head(self.weights["target"], few)
        state = dec.decode(spec, weights, state, controls, np.int32(case.new))
        new = np.take_along_axis(np.asarray(state.tokens), length[:, None] + np.arange(case.new), axis=1)
        assert (np.asarray(state.length) == length + case.new).all()
        return new, state.stats

    def counts(self, case: Case, number: int, batches: int = BATCHES, accept: Any = dec.accept_sampled) -> np.ndarray:
        """Return how often every text was written after either prompt, ``[2, 5, 5, ...]``."""
        shape = (len(PROMPTS), *[CONFIG.vocab_size] * case.new)
        found = np.zeros(shape, np.int64)
        for batch in range(batches):
            seed = np.stack([np.full(ROWS, number), batch * ROWS + np.arange(ROWS)], axis=1).astype(np.uint32)
            tokens, _ = self.run(case, seed, accept)
            np.add.at(found, (np.arange(ROWS) % 2, *tokens.T), 1)
        return found


@pytest.fixture(scope="module")
def toy(reference: Any) -> Toy:
    return Toy(reference)


def windows(table: np.ndarray) -> dict[str, np.ndarray]:
    """Return tables of the first token, the first two, the first three, and the last three of longer texts."""
    steps = table.ndim - 1
    chosen = {f"first {size}": table.sum(tuple(range(1 + size, 1 + steps))) for size in (1, 2, 3)}
    if steps > 3:
        chosen["last 3"] = table.sum(tuple(range(1, steps - 2)))
    return {name: each.reshape(len(table), -1) for name, each in chosen.items()}


def p_values(toy: Toy, p_value: Any, case: Case, counts: np.ndarray) -> dict[str, float]:
    """Return the p-value of the counts of each window."""
    exact = windows(toy.exact(case))
    return {name: p_value(found, exact[name]) for name, found in windows(counts).items()}


QUICK = (
    Case("both"),
    Case("both", gamma=3, draft="noisy", eta=0.5),
    Case("top_p", gamma=6, draft="sharp", eta=0.9),
    Case("min_p", gamma=1, draft="untrained"),
    Case("both", gamma=3, draft="noisy", eta=0.5, few=True),
    Case("as it is", gamma=2, draft="untrained", few=True),
)
SETTINGS = tuple(itertools.product(CUTS, (1, 3, 6), DRAFTS))
GRID = (
    *(Case(cuts) for cuts in CUTS),
    # All pairs of cuts, gammas and drafts; eta goes round, so that each of them meets each eta.
    *(
        Case(cuts, gamma, draft, (0.0, 0.5, 0.9)[(index + index // 6 + index // 18) % 3])
        for index, (cuts, gamma, draft) in enumerate(SETTINGS)
    ),
    # Blocks that are accepted whole, and the token that follows them.
    *(
        Case(cuts, gamma, draft, eta, new=gamma + 2)
        for cuts, (gamma, eta), draft in itertools.product(
            ("as it is", "both"), ((3, 0.0), (3, 0.5), (6, 0.0)), ("perfect", "noisy")
        )
    ),
)


def test_the_models_texts_are_worth_counting(toy: Toy) -> None:
    """No text is nearly sure or nearly impossible, and what follows depends on what stands before."""
    probability = toy.reference(toy.logits(3)[2])
    assert 0.3 < np.median(probability.max(-1)) < 0.7
    assert np.bincount(probability.argmax(-1).ravel(), minlength=5).min() >= 3
    assert probability.std(axis=1).min() > 0.05


def test_the_p_value_is_one(p_value: Any) -> None:
    """It is uniform where the probabilities are right, small where they are not, 0 where nothing can be."""
    rng = np.random.default_rng(1)
    right = np.stack([rng.dirichlet(np.full(125, 0.3)), np.full(125, 1 / 125)])
    found = [p_value(rng.multinomial(5000, right), right) for _ in range(500)]
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    off = right * np.linspace(0.9, 1.1, 125)
    assert p_value(rng.multinomial(10**6, off / off.sum(1, keepdims=True)), right) < 1e-9
    assert p_value(np.array([500, 499, 1]), np.array([0.5, 0.5, 0.0])) == 0


@pytest.mark.parametrize(
    ("number", "batches"),
    [
        (1, FEW),
        (4, FEW),
        pytest.param(3, FEW, marks=pytest.mark.full),
        pytest.param(5, FEW, marks=pytest.mark.full),
        *(pytest.param(number, BATCHES, marks=pytest.mark.full) for number in range(len(QUICK))),
    ],
)
def test_texts_are_drawn_with_the_targets_probabilities(toy: Toy, p_value: Any, number: int, batches: int) -> None:
    case = QUICK[number]
    found = p_values(toy, p_value, case, toy.counts(case, number, batches))
    assert min(found.values()) * len(QUICK) * len(found) > 1e-4, found


@pytest.mark.full
def test_texts_are_drawn_with_the_targets_probabilities_in_all_settings(toy: Toy, p_value: Any) -> None:
    found = {case: p_values(toy, p_value, case, toy.counts(case, 100 + index)) for index, case in enumerate(GRID)}
    tests = sum(map(len, found.values()))
    assert {case: each for case, each in found.items() if min(each.values()) * tests < 1e-4} == {}
    for window in ("first 1", "first 2", "first 3"):  # Those of different cases are independent.
        assert stats.kstest([each[window] for each in found.values()], "uniform").pvalue > 1e-4


@pytest.mark.parametrize("case", QUICK)
def test_close_to_temperature_0_the_most_likely_token_is_drawn(toy: Toy, case: Case) -> None:
    case = dataclasses.replace(case, temperature=1e-6, new=5)
    text = [0, 0]
    for scores in toy.logits(case.new):
        text = [code * 5 + int(scores[row, code].argmax()) for row, code in enumerate(text)]
    expected = [[code // 5**step % 5 for step in reversed(range(case.new))] for code in text]
    tokens, _ = toy.run(case, np.stack([np.arange(ROWS)] * 2, axis=1).astype(np.uint32))
    assert (tokens == np.tile(expected, (ROWS // 2, 1))).all()


def test_a_text_does_not_depend_on_its_batch(toy: Toy) -> None:
    seed = np.stack([np.arange(ROWS), np.full(ROWS, 6)], axis=1).astype(np.uint32)
    tokens, _ = toy.run(QUICK[1], seed)
    # Pairs change places, so that each seed keeps its prompt.
    turned = np.arange(ROWS).reshape(-1, 2)[::-1].ravel()
    np.testing.assert_array_equal(toy.run(QUICK[1], seed[turned])[0], tokens[turned])


def test_a_perfect_draft_is_accepted_and_a_contrary_one_seldom(toy: Toy) -> None:
    seed, accepted = np.stack([np.arange(ROWS)] * 2, axis=1).astype(np.uint32), {}
    for draft in ("perfect", "noisy", "contrary"):
        _, counted = toy.run(dataclasses.replace(QUICK[1], draft=draft, eta=0.0), seed)
        accepted[draft] = float(counted.accepted_drafts.sum() / counted.draft_lengths.sum())
    assert accepted["perfect"] > 0.9999
    assert 0.2 < accepted["noisy"] < 0.8 and accepted["contrary"] < 0.2


RULES = (
    "right",
    "right, by hand",
    "accepts always",
    "draws from p after a rejection",
    "accepts what is most likely",
    "forgets q",
    "never draws from p",
    "accepts with the draft's random number",
    "drops drafted tokens that were unlikely",
)


def follow(kept: Any, count: Any, weights: Any, seed: Any, place: Any) -> tuple[Any, Any]:
    """Accept as long as drafted tokens are kept; draw the next one with the weights ``[B, G + 1, V]`` of that place."""
    kept &= jnp.arange(kept.shape[1]) < count[:, None]
    accepted = jnp.cumprod(kept, axis=1).sum(axis=1)
    chosen = jnp.take_along_axis(weights, accepted[:, None, None], axis=1)[:, 0]
    return accepted, draw(keys(seed, place, TARGET), lambda weights, _: weights, chosen)


def outcomes_by_rule(
    drafted: Any, count: Any, drawn: Any, scores: Any, sampling: Any, truncate: bool, seed: Any, place: Any
) -> tuple[tuple[Any, Any], ...]:
    """Return what each of ``RULES`` accepts and draws."""
    gamma = drafted.shape[1]
    scores = scores[:, : gamma + 1]
    target = (scores, dec.cut(sampling, scores, truncate))
    p, q = (left.weights(logits) / left.total[..., None] for logits, left in (target, drawn))
    p_drafted, q_drafted = (jnp.take_along_axis(each[:, :gamma], drafted[..., None], -1)[..., 0] for each in (p, q))
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (gamma,)))(keys(seed, place, ACCEPT))
    reused = jnp.stack([jax.vmap(jax.random.uniform)(keys(seed, place, DRAFT + step)) for step in range(gamma)], 1)
    kept, everything = uniform * q_drafted < p_drafted, jnp.full(drafted.shape, True)
    left = jnp.maximum(p[:, :gamma] - q, 1e-30)  # Not 0: a wrong rule may find nothing left.

    def residual(count: Any, at_the_end: Any = p) -> Any:
        ends = jnp.arange(gamma + 1) == count[:, None]
        return jnp.where(ends[..., None], at_the_end, jnp.pad(left, ((0, 0), (0, 1), (0, 0))))

    never_p = residual(count, jnp.concatenate([left[:, :1], left], axis=1))
    # eta may look at the distribution a token is drawn from, but not at the token.
    likely = jnp.minimum(count, jnp.cumprod(q_drafted >= 0.5, axis=1).sum(axis=1))
    return (
        dec.accept_sampled(drafted, count, drawn, scores, sampling, truncate, seed, place),
        follow(kept, count, residual(count), seed, place),
        follow(everything, count, residual(count), seed, place),
        follow(kept, count, p, seed, place),
        follow(drafted == p[:, :gamma].argmax(-1), count, p, seed, place),
        follow(uniform < p_drafted, count, residual(count), seed, place),
        follow(kept, count, never_p, seed, place),
        follow(reused * q_drafted < p_drafted, count, residual(count), seed, place),
        follow(kept, likely, residual(likely), seed, place),
    )


def accept_by_seed(*inputs: Any) -> tuple[Any, Any]:
    """Accept with the rule that a sequence's seed names: one program serves all rules."""
    accepted, follows = map(jnp.stack, zip(*outcomes_by_rule(*inputs), strict=True))
    chosen, row = inputs[6][:, 0].astype(jnp.int32), jnp.arange(len(inputs[0]))
    return accepted[chosen, row], follows[chosen, row]


@pytest.mark.parametrize("rule", RULES)
def test_wrong_rules_are_noticed(toy: Toy, p_value: Any, rule: str) -> None:
    case = Case("as it is", gamma=3, draft="noisy", eta=0.5)
    counts = toy.counts(case, RULES.index(rule), batches=1, accept=accept_by_seed)
    least = min(p_values(toy, p_value, case, counts).values())
    assert (least > 1e-4) if rule.startswith("right") else (least < 1e-9)
