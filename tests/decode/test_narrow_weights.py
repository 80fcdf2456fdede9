"""bf16 and fp16 weights on a CPU: programs hold no second copy of them, and compute what fp32 ones do."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.abstract_programs import Lowered, Program, lower
from kangaroo_jax import decode as dec
from kangaroo_jax.engine.programs import NARROW_OPTIONS, OPTIONS, compiled, options
from kangaroo_jax.model import LlamaConfig, forward, init_adapter, init_params
from kangaroo_jax.model.layers import linear

pytestmark = pytest.mark.optimised

CONFIG = LlamaConfig(
    vocab_size=509,
    hidden_size=134,
    intermediate_size=307,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=22,
)
SLOTS = 96
PROMPT = [7, 11, 13, 5, 3]
NEW_TOKENS = 40


class Case(NamedTuple):
    """Which program."""

    part: str
    gamma: int
    sample: bool = False


CASES = [Case("decode", 0), Case("decode", 6), Case("decode", 6, True), Case("prefill", 6)]


def lower_case(case: Case, dtype: Any) -> Lowered:
    """Lower a program for shapes."""
    drafter = dec.Kangaroo(exit_layer=2) if case.gamma else dec.PLAIN
    spec = dec.DecodeSpec(CONFIG, drafter, case.gamma, sample=case.sample, truncate=case.sample)
    return lower(Program(case.part, spec, slots=SLOTS, dtype=dtype))


def temporary_bytes(low: Lowered, wanted: dict[str, str] | None) -> int:
    """Compile and return what the program needs beside its arguments and results."""
    return low.lowered.compile(compiler_options=wanted).memory_analysis().temp_size_in_bytes


def sizes(weights: Any) -> list[int]:
    return [math.prod(leaf.shape) for leaf in jax.tree.leaves(weights)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bf16_weights_are_never_converted(case: Case) -> None:
    low = lower_case(case, jnp.bfloat16)
    temporary = temporary_bytes(low, options(*low.arguments))
    assert temporary < 4 * max(sizes(low.weights))  # The largest of all weights, in fp32.
    assert temporary < 2 * sum(sizes(low.weights)) / 5


@pytest.mark.parametrize("case", [case for case in CASES if not case.sample], ids=str)
def test_fp16_weights_are_converted_one_at_a_time(case: Case) -> None:
    low = lower_case(case, jnp.float16)
    temporary = temporary_bytes(low, options(*low.arguments))
    assert temporary < 2 * 4 * max(sizes(low.weights)) < 2 * sum(sizes(low.weights))


def test_a_second_copy_is_noticed() -> None:
    low = lower_case(CASES[0], jnp.float16)
    temporary = temporary_bytes(low, OPTIONS["cpu"])
    assert temporary > 4 * 0.9 * (sum(sizes(low.weights)) - CONFIG.vocab_size * CONFIG.hidden_size)


def test_programs_of_fp32_arguments_have_options_of_their_own() -> None:
    wide, narrow, token = (jax.ShapeDtypeStruct((2,), kind) for kind in (jnp.float32, jnp.float16, jnp.int8))
    assert options({"weights": wide}, token) == OPTIONS["cpu"]
    assert options({"weights": narrow}, wide) == NARROW_OPTIONS["cpu"] != OPTIONS["cpu"]


def test_one_row_of_a_bf16_product_rounds_as_among_eight() -> None:
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((8, 307), (307, 134)))
    product, _ = compiled(jax.jit(linear, static_argnums=2), {2: jnp.float32}, x, kernel)
    alone, _ = compiled(jax.jit(linear, static_argnums=2), {2: jnp.float32}, x[:1], kernel)
    among = np.asarray(product(x, kernel))
    np.testing.assert_array_equal(alone(x[:1], kernel)[0], among[0])
    np.testing.assert_allclose(among, np.asarray(x, np.float64) @ np.asarray(kernel, np.float64), atol=1e-4)


def generate(weights: Any, dtype: Any, gamma: int) -> list[int]:
    """Decode greedily with compiled programs; return the new tokens."""
    spec = dec.DecodeSpec(CONFIG, dec.Kangaroo(exit_layer=2) if gamma else dec.PLAIN, gamma)
    weights = {name: jax.tree.map(lambda leaf: leaf.astype(dtype), tree) for name, tree in weights.items()}
    weights = weights if gamma else {"target": weights["target"]}
    one = np.ones(1, np.float32)
    controls = dec.Controls(
        0.1 * one, np.array([[-1]], np.int32), dec.Sampling(one, np.zeros(1, np.int32), one, 0 * one)
    )
    tokens = np.zeros((1, SLOTS), np.int32)
    tokens[0, : len(PROMPT)] = PROMPT
    start, length, budget = (np.array([number], np.int32) for number in (0, len(PROMPT), NEW_TOKENS))
    caches = dec.allocate(spec.for_prefill, 1, SLOTS, jnp.dtype(dtype))
    args = (weights, caches, tokens, start, length, budget, np.zeros((1, 2), np.uint32), controls)
    state = compiled(dec.prefill, {0: spec.for_prefill, 1: 16}, *args)[0](*args)
    rest = (weights, state, controls, np.int32(99))
    state = compiled(dec.decode, {0: spec}, *rest)[0](*rest)
    return np.asarray(state.tokens)[0, : len(PROMPT) + NEW_TOKENS].tolist()


@pytest.mark.parametrize("gamma", [0, 6])
@pytest.mark.parametrize("dtype", [pytest.param(jnp.bfloat16, marks=pytest.mark.full), jnp.float16])
def test_narrow_weights_choose_what_fp32_scores_highest(dtype: Any, gamma: int) -> None:
    # Larger than the initialisation's, so that the choice changes from token to token.
    target = jax.tree.map(lambda leaf: leaf * 6 if leaf.ndim == 2 else leaf, init_params(CONFIG, jax.random.key(2)))
    text = generate({"target": target, "adapter": init_adapter(CONFIG, jax.random.key(3))}, dtype, gamma)
    assert len(set(text[len(PROMPT) :])) > 10
    scores = np.asarray(forward(CONFIG, target, jnp.asarray([text])))[0, len(PROMPT) - 1 : -1]
    chosen = scores[np.arange(NEW_TOKENS), text[len(PROMPT) :]]
    assert (scores.max(-1) - chosen < 0.05 * scores.std()).all()
