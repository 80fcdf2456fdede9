"""The kinds of adapter: each against its formula, its size, and itself with a cache; what their config refuses."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model import (
    ADAPTER_KINDS,
    AdapterConfig,
    LlamaConfig,
    RopeScaling,
    abstract_adapter,
    abstract_params,
    draft_head,
    forward,
    fused_parts,
    head_kernel,
    init_adapter,
    init_cache,
    init_params,
    line,
    run_adapter,
)
from kangaroo_jax.model.layers import Attention, share

CONFIG = LlamaConfig(31, 23, 29, 3, 6, 2, 14, rms_norm_eps=1e-3)
QWEN = LlamaConfig(31, 23, 29, 3, 6, 2, 14, rms_norm_eps=1e-3, model_type="qwen2")
LENGTH = 61


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("adapter", [AdapterConfig(kind) for kind in ADAPTER_KINDS], ids=ADAPTER_KINDS)
def test_ranks_are_never_promoted_unasked(family: str, adapter: AdapterConfig) -> None:
    """jax_numpy_rank_promotion may be "raise" wherever a user's own program calls these."""
    config = dataclasses.replace(CONFIG, model_type=family)
    with jax.numpy_rank_promotion("raise"):
        drafting, states = abstract_adapter(config, adapter), jax.ShapeDtypeStruct((2, 5, 23), jnp.float32)
        ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)
        jax.eval_shape(functools.partial(forward, config), abstract_params(config), ids)
        jax.eval_shape(lambda p, x, at: run(config, p, x, at, None, adapter), drafting, states, ids)


def run(config: LlamaConfig, params: Any, x: Any, positions: Any, cache: Any, adapter: AdapterConfig) -> Any:
    """Run the adapter on consecutive positions."""
    return run_adapter(config, params, x, line(positions, cache and cache.slots), cache, adapter)


RUN = jax.jit(run, static_argnums=(0, 5))


def states(batch: int = 1, length: int = LENGTH) -> jax.Array:
    return jax.random.normal(jax.random.key(7), (batch, length, CONFIG.hidden_size))


def places(batch: int = 1, start: int = 0, stop: int = LENGTH) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(start, stop), (batch, stop - start))


def fresh(adapter: AdapterConfig, config: LlamaConfig = CONFIG) -> dict[str, Any]:
    """Return params in which no norm is all ones, and the same part is the same in every kind."""
    params = init_adapter(config, jax.random.key(3), adapter)
    for index, name in enumerate(("input_layernorm", "post_attention_layernorm", "norm")):
        if name in params:
            scale = jax.random.uniform(jax.random.key(index), (config.hidden_size,), minval=0.5, maxval=2.0)
            params[name]["scale"] = scale
    return params


def norm(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    wide = np.asarray(x, np.float64)
    return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * np.asarray(params["scale"])


def attention(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    shared = share(CONFIG, line(places(), None))
    return np.asarray(Attention(CONFIG).apply({"params": params}, jnp.asarray(x, jnp.float32), shared, None)[0])


def mlp(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    gate, up = np.moveaxis((x @ np.asarray(params["gate_up_proj"]["kernel"])).reshape(*x.shape[:-1], -1, 2), -1, 0)
    return gate / (1 + np.exp(-gate)) * up @ np.asarray(params["down_proj"]["kernel"])


def formula(kind: str, p: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Return ``A(x)`` as the paper, or what it is compared with, has it."""
    match kind:
        case "with-mlp":
            y = x + attention(p["self_attn"], norm(p["input_layernorm"], x))
            y = y + mlp(p["mlp"], norm(p["post_attention_layernorm"], y))
        case "mlp-only":
            y = x + mlp(p["mlp"], norm(p["input_layernorm"], x))
        case "linear":
            y = x + norm(p["input_layernorm"], x) @ np.asarray(p["linear"]["kernel"])
        case "no-input-norm":
            y = x + attention(p["self_attn"], x)
        case _:
            y = x + attention(p["self_attn"], norm(p["input_layernorm"], x))
    return norm(p["norm"], y)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_each_kind_is_its_formula_whatever_the_target(kind: str) -> None:
    adapter = AdapterConfig(kind)
    params = fresh(adapter, QWEN)
    got, cache = RUN(QWEN, params, states(), places(), None, adapter)
    assert cache is None
    np.testing.assert_allclose(got[0], formula(kind, params, np.asarray(states()))[0], atol=1e-4)


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_heads_and_width_of_its_own_are_those_of_such_a_target(heads: int) -> None:
    adapter = AdapterConfig("with-mlp", num_key_value_heads=heads, intermediate_size=17)
    such = dataclasses.replace(CONFIG, num_key_value_heads=heads, intermediate_size=17)
    params = fresh(AdapterConfig("with-mlp"), such)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract_adapter(CONFIG, adapter))
    own = RUN(CONFIG, params, states(), places(), None, adapter)[0]
    np.testing.assert_array_equal(own, RUN(such, params, states(), places(), None, AdapterConfig("with-mlp"))[0])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "linear", "num_key_value_heads": 3}, "num_key_value_heads is 3, but .*'linear' has no attention"),
        ({"intermediate_size": 3}, "intermediate_size is 3, but .*'kangaroo' has no mlp"),
        ({"draft_vocabulary": 0}, "draft_vocabulary is 0"),
        ({"num_key_value_heads": 2.0}, "num_key_value_heads is 2.0"),
        ({"kind": "own-head", "draft_vocabulary": 7}, "draft_vocabulary is 7, but .*its own head"),
    ],
)
def test_what_no_adapter_can_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AdapterConfig(**fields)


@pytest.mark.parametrize("kind", sorted(ADAPTER_KINDS.keys() - {"kangaroo", "own-head"}))
def test_each_kind_differs_from_kangaroo(kind: str) -> None:
    outputs = [RUN(CONFIG, fresh(a), states(), places(), None, a)[0] for a in (AdapterConfig(kind), AdapterConfig())]
    assert np.abs(outputs[0] - outputs[1]).mean() > 0.02


@pytest.mark.parametrize("adapter", [AdapterConfig(rope_theta=50.0), AdapterConfig("with-mlp", rope_theta=50.0)])
def test_an_adapters_own_base_is_not_scaled(adapter: AdapterConfig) -> None:
    params = fresh(adapter)
    stretched = dataclasses.replace(CONFIG, rope_scaling=RopeScaling("linear", 4.0))
    same = dataclasses.replace(CONFIG, rope_theta=50.0)
    own, other = (RUN(config, params, states(), places(), None, adapter)[0] for config in (same, stretched))
    np.testing.assert_array_equal(own, other)
    targets = AdapterConfig(adapter.kind)
    equal, scaled = (RUN(config, params, states(), places(), None, targets)[0] for config in (same, stretched))
    np.testing.assert_array_equal(own, equal)
    assert np.abs(own - scaled).max() > 0.01


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_each_kind_has_its_size(kind: str) -> None:
    config = LlamaConfig(32003, 96, 224, 3, 8, 8, 12)
    width, inner, vocab = 96, 224, 32003
    attended, gated = 4 * width**2, 3 * width * inner
    sizes = {
        "kangaroo": attended + 2 * width,
        "with-mlp": attended + gated + 3 * width,
        "mlp-only": gated + 2 * width,
        "linear": width**2 + 2 * width,
        "no-input-norm": attended + width,
        "own-head": attended + 2 * width + width * vocab,
    }
    assert sizes.keys() == ADAPTER_KINDS.keys()
    leaves = jax.tree.leaves(abstract_adapter(config, AdapterConfig(kind)))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == sizes[kind]


@pytest.mark.parametrize(
    "adapter", [AdapterConfig("kangaroo", 50.0), AdapterConfig("with-mlp"), AdapterConfig("no-input-norm")]
)
def test_block_by_block_with_a_cache_is_all_at_once(adapter: AdapterConfig) -> None:
    ends = (257, 264, 271, 278)
    params, x = fresh(adapter), states(2, ends[-1])
    whole, _ = RUN(CONFIG, params, x, places(2, stop=ends[-1]), None, adapter)
    (cache,) = init_cache(CONFIG, 2, 283, jnp.float32, 1)
    for start, stop in zip((0, *ends), ends, strict=False):
        block, cache = RUN(CONFIG, params, x[:, start:stop], places(2, start, stop), cache, adapter)
        np.testing.assert_allclose(block, whole[:, start:stop], atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind, made_of in ADAPTER_KINDS.items() if not made_of.cached])
def test_a_kind_without_attention_sees_one_position_alone(kind: str) -> None:
    adapter = AdapterConfig(kind)
    params, x = fresh(adapter), states(length=7)
    whole, _ = run(CONFIG, params, x, places(stop=7), None, adapter)
    for at in range(7):
        alone, _ = run(CONFIG, params, x[:, at : at + 1], jnp.array([[500]]), None, adapter)
        np.testing.assert_allclose(alone[:, 0], whole[:, at], atol=1e-6)


def test_matrices_are_uniform_by_the_width_that_goes_in() -> None:
    key = jax.random.key(5)
    for kind in ADAPTER_KINDS:
        matrices = [leaf for leaf in jax.tree.leaves(init_adapter(CONFIG, key, AdapterConfig(kind))) if leaf.ndim == 2]
        assert matrices
        for matrix in matrices:
            bound = 1 / math.sqrt(matrix.shape[0])
            assert bound * 0.9 < np.abs(matrix).max() <= bound


def test_a_seed_gives_kangaroo_the_numbers_it_always_gave() -> None:
    key = jax.random.key(5)
    params = init_adapter(CONFIG, key)
    for name, part in zip(("qkv_proj", "o_proj"), jax.random.split(key, 2), strict=True):
        kernel = params["self_attn"][name]["kernel"]
        bound = 1 / math.sqrt(kernel.shape[0])
        numbers = jax.random.uniform(part, kernel.shape, minval=-bound, maxval=bound)
        if name == "qkv_proj":  # They were drawn for q | k | v.
            numbers = fused_parts(CONFIG)[name].from_blocks(numbers)
        np.testing.assert_array_equal(kernel, numbers)
    assert AdapterConfig() == AdapterConfig("kangaroo", None)


@pytest.mark.parametrize("tied", [False, True])
def test_an_own_head_starts_as_a_copy_of_the_targets(tied: bool) -> None:
    config = LlamaConfig(31, 23, 29, 3, 6, 2, 14, tie_word_embeddings=tied)
    target, own = init_params(config, jax.random.key(2)), AdapterConfig("own-head")
    ours = init_adapter(config, jax.random.key(5), own, target)
    theirs = init_adapter(config, jax.random.key(5))
    x = states(length=7)
    own_scores, scores = (
        run(config, params, x, places(stop=7), None, adapter)[0] @ draft_head(target, params)
        for params, adapter in ((ours, own), (theirs, AdapterConfig()))
    )
    np.testing.assert_array_equal(own_scores, scores)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, init_adapter(config, jax.random.key(5), own))
    # Whoever donates the adapter does not take the target with it.
    ours["lm_head"]["kernel"].delete()
    assert np.isfinite(head_kernel(target)).all()


def test_a_head_of_the_adapters_own_is_the_one_that_drafts() -> None:
    target, own = (
        init_params(CONFIG, jax.random.key(2)),
        init_adapter(CONFIG, jax.random.key(5), AdapterConfig("own-head")),
    )
    np.testing.assert_array_equal(draft_head(target, own), own["lm_head"]["kernel"])
    np.testing.assert_array_equal(draft_head(target, init_adapter(CONFIG, jax.random.key(5))), head_kernel(target))
    assert np.abs(own["lm_head"]["kernel"] - head_kernel(target)).max() > 0.1


def test_a_narrow_targets_head_is_copied_wide() -> None:
    target = jax.tree.map(functools.partial(jnp.asarray, dtype=jnp.bfloat16), init_params(CONFIG, jax.random.key(2)))
    own = init_adapter(CONFIG, jax.random.key(5), AdapterConfig("own-head"), target)
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("kind", ["Kangaroo", "", None, 3, ["kangaroo"], "x" * 999])
def test_an_unknown_kind_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"^adapter is .{1,70}; it must be one of kangaroo, with-mlp, mlp-only,"):
        AdapterConfig(kind)


@pytest.mark.parametrize("theta", [0, -1.0, float("nan"), float("inf"), "1e4", True, 10**400])
def test_a_base_that_is_none_is_refused(theta: Any) -> None:
    with pytest.raises(ValueError, match=r"^rope_theta is .{1,70}; it must be (a number|above 0 and finite)$"):
        AdapterConfig(rope_theta=theta)


def test_a_whole_number_is_the_same_base() -> None:
    assert hash(AdapterConfig(rope_theta=10000)) == hash(AdapterConfig(rope_theta=10000.0))
    assert type(AdapterConfig(rope_theta=10000).rope_theta) is float
