"""The compiled decode loop: caches updated in place and never copied, weights as arguments, no needless compilation."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import hlo
from bench.abstract_programs import Lowered, Program, build, lower
from kangaroo_jax import decode as dec
from kangaroo_jax.engine.programs import compiled, executables
from kangaroo_jax.model import AdapterConfig, LlamaConfig

pytestmark = pytest.mark.optimised

CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=46,
    intermediate_size=58,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=70,
)
SLOTS = 768


@dataclasses.dataclass(frozen=True)
class Fork(dec.Drafter):
    """Drafts two lines that leave the root; what tokens they are of does not matter here."""

    def draft(self, spec: dec.DecodeSpec, weights: Any, state: dec.DecodeState, controls: Any) -> dec.Draft:
        row = jnp.broadcast_to(jnp.arange(spec.rows), (len(state.length), spec.rows))
        tree = dec.tree_of(jnp.maximum(row - 2, 0), (row + 1) // 2, (row > 0) & (row < 7), 4)
        count = jnp.full_like(state.length, 6)
        return dec.token_draft(spec, weights, state, dec.newest(state)[0] + row[:, 1:], count, None, tree)


class Case(NamedTuple):
    """Which program, and for what."""

    part: str
    gamma: int
    batch: int
    kv_heads: int
    sample: bool = False
    family: str = "llama"
    sliding_window: int | None = None
    adapter: str = "kangaroo"
    tree: bool = False


class Built(NamedTuple):
    """A compiled program, and the shapes it was compiled for."""

    module: hlo.Module
    memory: Any
    low: Lowered


def build_case(case: Case) -> Built:
    """Compile ``decode`` or ``prefill`` for shapes; nothing is allocated."""
    config = dataclasses.replace(
        CONFIG, num_key_value_heads=case.kv_heads, model_type=case.family, sliding_window=case.sliding_window
    )
    drafter: dec.Drafter = dec.Kangaroo(AdapterConfig(case.adapter), exit_layer=2) if case.gamma else dec.PLAIN
    if case.tree:
        drafter = Fork()
    spec = dec.DecodeSpec(config, drafter, case.gamma, sample=case.sample, truncate=case.sample)
    low = lower(Program(case.part, spec, case.batch, SLOTS))
    made = build(low)
    return Built(made.module, made.memory, low)


CASES = [
    Case("decode", 3, 1, 3),
    Case("decode", 3, 3, 3),
    Case("decode", 0, 1, 3),
    Case("decode", 0, 3, 3),
    Case("decode", 3, 1, 1),
    Case("decode", 3, 3, 3, sample=True),
    Case("prefill", 3, 3, 3),
    Case("prefill", 0, 1, 1),
    Case("decode", 3, 3, 3, tree=True),
]
MORE = [
    Case("decode", 3, 1, 1, sample=True),
    Case("decode", 3, 3, 3, adapter="with-mlp"),
    Case("decode", 0, 1, 1),
    Case("prefill", 3, 1, 3),
    Case("decode", 3, 1, 1, family="qwen2"),
    Case("decode", 3, 3, 3, family="mistral", sliding_window=50),
    Case("decode", 3, 3, 3, family="qwen3"),
    Case("decode", 3, 1, 1, adapter="linear"),
    Case("decode", 3, 1, 3, adapter="own-head"),
    Case("decode", 3, 1, 3, tree=True),
    Case("decode", 3, 1, 1, tree=True),
]


@pytest.fixture(
    scope="module",
    params=[*CASES, *(pytest.param(case, marks=pytest.mark.full) for case in MORE)],
    ids=lambda case: (
        f"{case.part}-gamma{case.gamma}-batch{case.batch}-kv{case.kv_heads}"
        + "-sampled" * case.sample
        + f"-{case.family}" * (case.family != "llama")
        + f"-{case.adapter}" * (case.adapter != "kangaroo")
        + "-tree" * case.tree
    ),
)
def program(request: pytest.FixtureRequest) -> Built:
    return build_case(request.param)


def test_no_cache_is_copied_in_the_loop(program: Built) -> None:
    sizes = hlo.sizes_of(program.low.caches)
    assert len(sizes) == 1
    assert hlo.cache_copies(program.module, sizes) == set()
    shapes = {leaf.shape for leaf in jax.tree.leaves(program.low.caches)}
    assert hlo.second_copies(program.module, shapes) == hlo.transposes(program.module, shapes) == []
    # The checker has seen the caches: keys and values of every layer are updated, of the shallow ones twice.
    assert hlo.cache_updates(program.module, sizes) >= 2 * CONFIG.num_hidden_layers


def test_the_state_is_updated_in_place(program: Built) -> None:
    assert program.memory.alias_size_in_bytes == hlo.bytes_of(program.low.donated)
    # The largest temporaries are scores of attention, smaller here than the keys and values of half the layers.
    assert program.memory.temp_size_in_bytes < hlo.bytes_of(program.low.caches) / 2


def test_weights_are_arguments(program: Built) -> None:
    assert hlo.large_constants(program.module) == []
    low = program.low
    # A prefill only fills the adapter's cache; what follows there is an argument that newer JAX leaves out.
    used = low.weights["target"] if low.donated is low.caches else low.weights
    assert program.memory.argument_size_in_bytes >= hlo.bytes_of(used) + hlo.bytes_of(low.donated)


def _read_after_write(cache: jax.Array, row: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Update a cache and look at what it was before."""
    updated = jax.lax.dynamic_update_slice(cache, row, (0, at, 0))
    return updated, (updated * cache).sum()


def _select(cache: jax.Array, row: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Update a cache by choosing element by element."""
    updated = jnp.where((jnp.arange(cache.shape[1]) == at)[:, None], row, cache)
    return updated, updated[0, 0, 0]


def _transposed(cache: jax.Array, row: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Update a cache and turn it round to read it."""
    updated = jax.lax.dynamic_update_slice(cache, row, (0, at, 0))
    turned = jax.lax.optimization_barrier(updated.transpose(0, 2, 1))
    return updated, turned[0, at, 0]


@pytest.mark.parametrize("update", [_read_after_write, _select, _transposed])
def test_a_copy_in_the_loop_is_noticed(update: Any) -> None:
    def loop(cache: jax.Array, row: jax.Array, rounds: jax.Array) -> Any:
        def body(carry: Any) -> Any:
            step, cache, total = carry
            cache, seen = update(cache, row + total, step)
            return step + 1, cache, total + seen

        return jax.lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(0), cache, jnp.float32(0)))

    cache, row = jax.ShapeDtypeStruct((3, 97, 22), jnp.float32), jax.ShapeDtypeStruct((3, 1, 22), jnp.float32)
    built = jax.jit(loop, donate_argnums=0).lower(cache, row, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    module, shapes = hlo.parse(built.as_text()), {(3, 97, 22)}
    assert hlo.cache_copies(module, {3 * 97 * 22})
    assert hlo.second_copies(module, shapes) or hlo.transposes(module, shapes)


def test_an_update_in_place_is_not_mistaken_for_a_copy() -> None:
    def loop(cache: jax.Array, row: jax.Array, rounds: jax.Array) -> Any:
        def body(carry: Any) -> Any:
            step, cache, total = carry
            cache = jax.lax.dynamic_update_slice(cache, row + total, (0, step, 0))
            return step + 1, cache, total + jnp.einsum("nsd,nqd->", cache, row)

        return jax.lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(0), cache, jnp.float32(0)))

    cache, row = jax.ShapeDtypeStruct((3, 97, 22), jnp.float32), jax.ShapeDtypeStruct((3, 1, 22), jnp.float32)
    built = jax.jit(loop, donate_argnums=0).lower(cache, row, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    module = hlo.parse(built.as_text())
    assert hlo.cache_updates(module, {3 * 97 * 22}) == 1
    assert hlo.cache_copies(module, {3 * 97 * 22}) == set()
    assert hlo.second_copies(module, {(3, 97, 22)}) == []


def test_a_weight_in_the_program_is_noticed() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    built = jax.jit(lambda x: x @ weight).lower(jnp.ones((1, 64))).compile()
    assert hlo.large_constants(hlo.parse(built.as_text()))


def test_only_gamma_compiles_anew(lab: Any) -> None:
    """A new eta, EOS token, round bound, prompt, budget or weight is only another argument of the same program."""
    traces = []

    class Counting(dec.Kangaroo):
        def propose(self, *args: Any) -> Any:
            traces.append(args)
            return super().propose(*args)

    def run(gamma: int, prompt: list[int], budget: int, eta: float, eos: int, scale: float = 1.0) -> float:
        weights = jax.tree.map(lambda leaf: leaf * scale, lab.weights)
        state = lab.prefill(gamma, [prompt], budget, (eos,), weights)
        args = (weights, state, lab.controls(eta, (eos,)), np.int32(99))
        program, seconds = compiled(dec.decode, {0: lab.spec(gamma, Counting)}, *args)
        program(*args)
        return seconds

    before = executables()
    assert run(2, lab.prompts[0], 20, 0.5, -1) > 0
    first = len(traces)
    assert first > 0 and executables() == before + 1
    for changed in (
        (2, lab.prompts[0], 20, 0.9, -1),
        (2, lab.prompts[0], 20, 1.5, 3),
        (2, lab.prompts[1], 20, 0.5, -1),
        (2, lab.prompts[0], 3, 0.5, -1),
        (2, lab.prompts[0], 20, 0.5, -1, 0.5),
    ):
        assert run(*changed) == 0
    assert len(traces) == first and executables() == before + 1
    assert run(1, lab.prompts[0], 20, 0.5, -1) > 0
    assert len(traces) > first and executables() == before + 2


def test_buckets_are_few_and_waste_little() -> None:
    sizes = [dec.bucket(size) for size in range(1, 5000)]
    assert sizes[:48] == [16] * 16 + [24] * 8 + [32] * 8 + [48] * 16
    assert sizes[512] == 768 and sizes[768] == sizes[1023] == 1024 and sizes[2048] == 2304
    assert len(set(sizes[:512])) == 11 and set(sizes[512:]) == set(range(768, 5121, 256))
    assert all(size <= found <= max(16, min(1.5 * size, size + 255)) for size, found in enumerate(sizes, 1))


@pytest.mark.parametrize("gamma", [0, 1, 6, 7, 8, 16])
def test_slots_hold_prompt_budget_and_a_round_beyond(gamma: int) -> None:
    spec = dec.DecodeSpec(CONFIG, dec.Kangaroo(exit_layer=2), gamma)
    assert spec.rows >= gamma + 1
    for longest in (17, 300, 1000):
        assert dec.cache_slots(spec, longest) >= longest + gamma + 1


def test_a_prefill_takes_the_same_memory_however_long_the_prompt() -> None:
    assert dec.prefill_chunk(5, 128, 1) == 16 and dec.prefill_chunk(200, 256, 1) == 256
    for slots in (512, 4096, 32768, 131072):
        for batch in (1, 8):
            chunk = dec.prefill_chunk(slots - 9, slots, batch)
            assert chunk == 16 or chunk * slots * batch <= 512 * 4096
