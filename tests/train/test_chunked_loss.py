"""The loss in chunks against the loss of whole logits, and what a step keeps in memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kangaroo_jax.model import LlamaConfig, abstract_adapter, abstract_params, init_adapter, init_params
from train.loss import Teacher, chunked_sums, distillation_loss, distillation_sums
from train.step import init_state, make_train_step


def whole(teacher_head: jax.Array, head: jax.Array, final: jax.Array, drafted: jax.Array, mask: jax.Array) -> Any:
    return distillation_sums(final @ teacher_head, drafted @ head, mask)


def chunked(
    chunk: int, teacher_head: jax.Array, head: jax.Array, final: jax.Array, drafted: jax.Array, mask: jax.Array
) -> Any:
    return chunked_sums(Teacher(final, head=teacher_head), head, drafted, mask, chunk)


@pytest.mark.parametrize(("rows", "length", "chunk"), [(1, 1, 1), (2, 13, 8), (3, 7, 1), (2, 13, 99)])
def test_chunks_add_up_to_the_whole(rows: int, length: int, chunk: int) -> None:
    rng = np.random.default_rng(length)
    shapes = ((7, 11), (7, 11), (rows, length, 7), (rows, length, 7))
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    mask = jnp.asarray(rng.random((rows, length)) < 0.6)  # Rows have different numbers of positions that count.
    both = []
    for function in (whole, functools.partial(chunked, chunk)):
        gradient = jax.jit(jax.value_and_grad(function, argnums=(1, 3), has_aux=True))
        (total, sums), slopes = gradient(*arrays, mask)
        both.append((total, sums, slopes))
        alone = jax.jit(function)(*arrays, mask)[1]  # Not differentiated, another path.
        np.testing.assert_allclose([alone[name] for name in sorted(alone)], [sums[name] for name in sorted(sums)])
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.full)])
def test_the_size_of_chunks_changes_neither_loss_nor_gradient(tied: bool, tiny_config: LlamaConfig) -> None:
    config = dataclasses.replace(tiny_config, tie_word_embeddings=tied)
    target = jax.tree.map(lambda x: x * 8 if x.ndim == 2 else x, init_params(config, jax.random.key(5)))
    adapter = init_adapter(config, jax.random.key(1))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 259, (3, 23)), jnp.int32)
    batch = {"tokens": tokens, "mask": jnp.asarray(rng.random((3, 23)) < 0.7)}
    results = [
        jax.jit(jax.value_and_grad(distillation_loss(config, 1, chunk), has_aux=True))(adapter, target, batch)
        for chunk in (None, 12)
    ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=1e-5)


def arrays_of(jaxpr: Any) -> Iterator[Any]:
    """Yield every array that a program makes, those of its inner programs too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from arrays_of(inner)


@pytest.mark.parametrize(("chunk", "exists"), [(24, False), (3 * 64, True)])
def test_the_logits_of_a_whole_batch_never_exist(chunk: int, exists: bool, tiny_config: LlamaConfig) -> None:
    loss = distillation_loss(tiny_config, 1, chunk)
    batch = {"tokens": jnp.zeros((3, 64), jnp.int32), "mask": jnp.ones((3, 64), bool)}
    gradient = jax.grad(loss, has_aux=True)
    program = jax.make_jaxpr(gradient)(abstract_adapter(tiny_config), abstract_params(tiny_config), batch)
    largest = max(aval.size for aval in arrays_of(program.jaxpr) if hasattr(aval, "size"))
    assert (largest >= 3 * 64 * 259) == exists


def temporary_bytes(config: LlamaConfig) -> int:
    optimizer = optax.adamw(0.1)
    state = jax.eval_shape(lambda adapter: init_state(adapter, optimizer), abstract_adapter(config))
    batch = {"tokens": jax.ShapeDtypeStruct((1, 2, 64), jnp.int32), "mask": jax.ShapeDtypeStruct((1, 2, 64), jnp.bool_)}
    step: Any = make_train_step(distillation_loss(config, 1), optimizer)
    return step.lower(state, abstract_params(config), batch).compile().memory_analysis().temp_size_in_bytes


def test_layers_above_the_exit_keep_no_activations(tiny_config: LlamaConfig) -> None:
    few, many = (dataclasses.replace(tiny_config, num_hidden_layers=layers) for layers in (3, 9))
    one_activation = 2 * 64 * tiny_config.hidden_size * 4
    assert temporary_bytes(many) < temporary_bytes(few) + one_activation


def test_an_adapter_in_bf16_is_trained_in_fp32(tiny_config: LlamaConfig) -> None:
    target = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_params(tiny_config, jax.random.key(5)))
    adapter = init_adapter(tiny_config, jax.random.key(1))
    batch = {"tokens": jnp.arange(46).reshape(2, 23), "mask": jnp.ones((2, 23), bool)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), target)
    gradient = jax.jit(jax.grad(distillation_loss(tiny_config, 1), has_aux=True))
    low, high = (gradient(adapter, params, batch)[0] for params in (target, wide))
    for one, other in zip(*map(jax.tree.leaves, (low, high)), strict=True):
        assert one.dtype == jnp.float32
        assert jnp.linalg.norm(one - other) < 0.05 * jnp.linalg.norm(other)
