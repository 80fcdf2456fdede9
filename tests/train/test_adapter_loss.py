"""The adapter's loss against the formula written out in numpy, and what is differentiated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kangaroo_jax.model import (
    AdapterConfig,
    KangarooConfig,
    LlamaConfig,
    embed,
    final_norm,
    forward,
    head,
    init_adapter,
    line,
    run_adapter,
    run_layers,
)
from train.loss import distillation_loss, distillation_sums, joint_loss
from train.step import init_state, make_eval_step, make_train_step, split_devices


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def batch_of(config: LlamaConfig, rows: int = 3, length: int = 11, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, (rows, length)).astype(np.int32)
    mask = rng.random((rows, length)) < 0.7
    mask[1] = False  # A row without a single position that counts.
    return {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}


def test_sums_equal_the_formula() -> None:
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(size=(2, 5, 13)) * 3, rng.normal(size=(2, 5, 13)) * 3
    student[0, 0] = teacher[0, 0] + 2.5  # Same distribution: top-1 agrees, acceptance is 1.
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]], bool)
    expected = dict.fromkeys(("loss", "top1", "top2", "top3", "acceptance", "tokens"), 0.0)
    for row, at in zip(*np.nonzero(mask), strict=True):
        p, q = softmax(teacher[row, at]), softmax(student[row, at])
        for k in (1, 2, 3):
            expected[f"top{k}"] += p.argmax() in np.argsort(-q)[:k]
        expected["loss"] -= sum(p[v] * np.log(q[v]) for v in range(13))
        expected["acceptance"] += sum(min(p[v], q[v]) for v in range(13))
        expected["tokens"] += 1
    total, sums = distillation_sums(jnp.asarray(teacher), jnp.asarray(student), jnp.asarray(mask))
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-5)
    assert float(total) == float(sums["loss"])


def test_both_sides_come_from_the_right_layers(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    batch = batch_of(tiny_config)
    adapter = init_adapter(tiny_config, jax.random.key(1))
    _, sums = jax.jit(distillation_loss(tiny_config, 1))(adapter, tiny_params, batch)

    @jax.jit
    def by_hand(params: dict) -> dict[str, jax.Array]:
        context = line(jnp.broadcast_to(jnp.arange(11), (3, 11)), None)
        hidden, _ = run_layers(tiny_config, params, embed(params, batch["tokens"]), context, None, 0, 1)
        student = head(params, run_adapter(tiny_config, adapter, hidden, context, None)[0])
        return distillation_sums(forward(tiny_config, params, batch["tokens"]), student, batch["mask"])[1]

    expected = by_hand(tiny_params)
    for name, value in expected.items():
        assert float(sums[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("guess", [False, True])
def test_final_states_are_those_of_the_token_before_or_guesses(
    tiny_config: LlamaConfig, tiny_params: dict, monkeypatch: pytest.MonkeyPatch, guess: bool
) -> None:
    batch, kind = batch_of(tiny_config), AdapterConfig("with-mlp", final_states=True)
    adapter = init_adapter(tiny_config, jax.random.key(1), kind)
    assert not adapter["final_proj"]["kernel"].any()
    adapter["final_proj"]["kernel"] = jax.random.normal(jax.random.key(2), (tiny_config.hidden_size,) * 2)
    loss = joint_loss(tiny_config, {"": KangarooConfig(1, adapter=kind)})
    mixed = jax.jit(lambda *trees: loss({"": trees[0]}, *trees[1:])[1])(adapter, tiny_params, batch)
    monkeypatch.setattr("train.loss._some_guessed", lambda known, guessed: guessed if guess else known)
    sums = jax.jit(lambda *trees: loss({"": trees[0]}, *trees[1:])[1])(adapter, tiny_params, batch)

    @jax.jit
    def by_hand(params: dict) -> dict[str, jax.Array]:
        context = line(jnp.broadcast_to(jnp.arange(11), (3, 11)), None)
        hidden, _ = run_layers(tiny_config, params, embed(params, batch["tokens"]), context, None, 0, 1)
        last, _ = run_layers(tiny_config, params, hidden, context, None, 1, tiny_config.num_hidden_layers)

        def adapted(states: jax.Array) -> jax.Array:
            before = jnp.concatenate([jnp.zeros_like(states[:, :1]), states[:, :-1]], axis=1)
            known = np.array(batch["mask"])
            known[known[:, 0], :2] = False  # A quarter of 11 positions is taken for a prompt.
            known = jnp.concatenate([jnp.zeros((3, 1), bool), known[:, :-1]], axis=1)
            x = hidden + jnp.where(known[:, :, None], before, 0) @ adapter["final_proj"]["kernel"]
            return run_adapter(tiny_config, adapter, x, context, None, kind)[0]

        student = adapted(final_norm(tiny_config, params, last))
        student = adapted(student) if guess else student
        logits = forward(tiny_config, params, batch["tokens"])
        return distillation_sums(logits, head(params, student), batch["mask"])[1]

    for name, value in by_hand(tiny_params).items():
        assert float(sums[name]) == pytest.approx(float(value), rel=1e-4), name
    assert float(sums["loss"]) != pytest.approx(float(mixed["loss"]), rel=1e-4)
    slopes = jax.grad(lambda tree: loss({"": tree}, tiny_params, batch)[0])(adapter)
    assert float(jnp.abs(slopes["final_proj"]["kernel"]).max()) > 0


def test_masked_positions_and_empty_batches_change_nothing(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    loss = jax.jit(distillation_loss(tiny_config, 2))
    adapter = init_adapter(tiny_config, jax.random.key(1))
    batch = batch_of(tiny_config)
    changed = batch | {"tokens": batch["tokens"].at[1].add(-1) % tiny_config.vocab_size}
    assert loss(adapter, tiny_params, batch)[0] == loss(adapter, tiny_params, changed)[0]
    nothing = batch | {"mask": jnp.zeros_like(batch["mask"])}
    step = make_train_step(loss, optax.sgd(0.1))
    before = jax.tree.map(np.array, adapter)  # A copy: the step consumes its state.
    state, means = step(init_state(adapter, optax.sgd(0.1)), tiny_params, split_devices(nothing, 1))
    assert float(means["loss"]) == 0.0
    assert all(bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, (state.params, before)), strict=True))


def test_only_the_adapter_is_differentiated(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    loss = distillation_loss(tiny_config, 2)
    adapter = init_adapter(tiny_config, jax.random.key(1))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    of_adapter, of_target = gradient(adapter, tiny_params, batch_of(tiny_config))[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_adapter):
        assert float(jnp.abs(leaf).max()) > 0, path
    # The head is the student's, too, but the target's first of all: frozen.
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_target):
        assert float(jnp.abs(leaf).max()) == 0, path


def test_training_lowers_the_loss_and_raises_agreement(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    loss = distillation_loss(tiny_config, 2)
    optimizer = optax.adam(0.01)
    step, evaluate = make_train_step(loss, optimizer), make_eval_step(loss)
    held = split_devices(batch_of(tiny_config, 8, 23, seed=99), 1)

    def figures(params: dict) -> dict[str, float]:
        sums = evaluate(params, tiny_params, held)
        return {name: float(value / sums["tokens"]) for name, value in sums.items()}

    state = init_state(init_adapter(tiny_config, jax.random.key(1)), optimizer)
    before = figures(state.params)
    for seed in range(80):
        state, _ = step(state, tiny_params, split_devices(batch_of(tiny_config, 8, 23, seed), 1))
    after = figures(state.params)
    assert after["loss"] < before["loss"] - 0.1
    assert after["top1"] > 2 * before["top1"]
    assert after["acceptance"] > before["acceptance"] + 0.08
