"""The compiled decode loop: caches updated in place and never copied, weights as arguments, no needless compilation."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax import decode as dec
from kangaroo_jax.compiled import OPTIONS, compiled, executables
from kangaroo_jax.model import AdapterConfig, LlamaConfig, abstract_adapter, abstract_params

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
# What may have the size of a cache inside the loop: its update in place, and names for the result.
IN_PLACE = {"dynamic-update-slice", "scatter", "bitcast", "get-tuple-element", "parameter", "fusion"}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\w+)\[([\d,]*)\]\S* ([\w\-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}")


class Instruction(NamedTuple):
    """A line of HLO that yields one array."""

    name: str
    opcode: str
    size: int


def computations(hlo: str | None) -> dict[str, list[str]]:
    """Return the lines of every computation of an HLO module."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    assert hlo, "this backend shows no HLO"
    for line in hlo.splitlines():
        if start := _COMPUTATION.match(line):
            lines = found.setdefault(start[1], [])
        lines.append(line)
    return found


def called(line: str) -> list[str]:
    listed = [name.strip().lstrip("%") for names in _CALLED_LIST.findall(line) for name in names.split(",")]
    return [*_CALLED.findall(line), *listed]


def instructions(lines: list[str]) -> Iterator[Instruction]:
    for line in lines:
        if found := _INSTRUCTION.match(line):
            yield Instruction(found[1], found[4], math.prod(int(extent) for extent in found[3].split(",") if extent))


def in_loops(hlo: str | None) -> list[Instruction]:
    """Return the instructions of all while bodies, with what they call."""
    all_of_it = computations(hlo)
    waiting = [
        body for lines in all_of_it.values() for line in lines for body in re.findall(r"body=%?([\w.\-]+)", line)
    ]
    assert waiting, "there is no loop"
    seen: dict[str, None] = {}
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen[name] = None
            waiting += [inner for line in all_of_it[name] for inner in called(line)]
    return [instruction for name in seen for instruction in instructions(all_of_it[name])]


def cache_copies(hlo: str | None, sizes: set[int]) -> set[str]:
    """Return the opcodes in loops that make something as large as a cache, other than updating one in place."""
    return {found.opcode for found in in_loops(hlo) if found.size in sizes and found.opcode not in IN_PLACE}


def cache_updates(hlo: str | None, sizes: set[int]) -> int:
    """Return how often a cache is updated in loops."""
    return sum(found.size in sizes and found.opcode in ("dynamic-update-slice", "scatter") for found in in_loops(hlo))


def large_constants(hlo: str | None) -> list[str]:
    every = [instruction for lines in computations(hlo).values() for instruction in instructions(lines)]
    return [found.name for found in every if found.opcode == "constant" and found.size > 1000]


def cache_sizes(caches: Any) -> set[int]:
    return {math.prod(leaf.shape) for leaf in jax.tree.leaves(caches)}


def bytes_of(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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


class Program(NamedTuple):
    """A compiled program; ``caches`` and ``donated`` are shapes."""

    hlo: str | None
    memory: Any
    weights: Any
    caches: Any
    donated: Any


def build(case: Case) -> Program:
    """Compile ``decode`` or ``prefill`` for shapes; nothing is allocated."""
    gamma, batch, kv_heads = case.gamma, case.batch, case.kv_heads
    shape = jax.ShapeDtypeStruct
    config = dataclasses.replace(
        CONFIG, num_key_value_heads=kv_heads, model_type=case.family, sliding_window=case.sliding_window
    )
    adapter = AdapterConfig(case.adapter)
    spec = dec.DecodeSpec(config, 2 if gamma else 4, gamma, adapter, sample=case.sample, truncate=case.sample)
    if case.tree:
        spec = dec.DecodeSpec(config, 0, gamma, None, drafter=Fork())
    used = abstract_adapter(config, adapter) if spec.adapter_used else None
    weights = {"target": abstract_params(config), "adapter": used}
    row = shape((batch,), jnp.int32)
    seed = shape((batch, 2), jnp.uint32)
    scalar = shape((), jnp.float32)
    sampling = dec.Sampling(scalar, shape((), jnp.int32), scalar, scalar)
    controls = dec.Controls(scalar, shape((1,), jnp.int32), sampling)
    caches = jax.eval_shape(lambda: dec.allocate(spec, batch, SLOTS, jnp.dtype(jnp.float32)))
    prompt = (weights, caches, shape((batch, SLOTS), jnp.int32), row, row, row, seed, controls)
    state = jax.eval_shape(lambda *traced: dec.prefill(spec, 16, *traced), *prompt)
    options: Any = OPTIONS.get(jax.default_backend())
    if case.part == "prefill":
        built = dec.prefill.lower(spec, 16, *prompt).compile(compiler_options=options)
        return Program(built.as_text(), built.memory_analysis(), weights, caches, caches)
    built = dec.decode.lower(spec, weights, state, controls, shape((), jnp.int32)).compile(compiler_options=options)
    return Program(built.as_text(), built.memory_analysis(), weights, caches, state)


CASES = [
    Case("decode", 3, 1, 3),
    Case("decode", 3, 3, 3),
    Case("decode", 0, 1, 3),
    Case("decode", 0, 3, 3),
    Case("decode", 3, 1, 1),
    Case("decode", 0, 1, 1),
    Case("decode", 3, 3, 3, sample=True),
    Case("decode", 3, 1, 1, sample=True),
    Case("prefill", 3, 1, 3),
    Case("prefill", 3, 3, 3),
    Case("prefill", 0, 1, 1),
    Case("decode", 3, 3, 3, family="mistral", sliding_window=50),
    Case("decode", 3, 1, 1, family="qwen2"),
    Case("decode", 3, 3, 3, family="qwen3"),
    Case("decode", 3, 3, 3, adapter="with-mlp"),
    Case("decode", 3, 1, 1, adapter="linear"),
    Case("decode", 3, 1, 3, adapter="own-head"),
    Case("decode", 3, 1, 3, tree=True),
    Case("decode", 3, 1, 1, tree=True),
    Case("decode", 3, 3, 3, tree=True),
]


@pytest.fixture(
    scope="module",
    params=CASES,
    ids=lambda case: (
        f"{case.part}-gamma{case.gamma}-batch{case.batch}-kv{case.kv_heads}"
        + "-sampled" * case.sample
        + f"-{case.family}" * (case.family != "llama")
        + f"-{case.adapter}" * (case.adapter != "kangaroo")
        + "-tree" * case.tree
    ),
)
def program(request: pytest.FixtureRequest) -> Program:
    return build(request.param)


def test_no_cache_is_copied_in_the_loop(program: Program) -> None:
    sizes = cache_sizes(program.caches)
    assert len(sizes) == 1
    assert cache_copies(program.hlo, sizes) == set()
    # The checker has seen the caches: keys and values of every layer are updated, of the shallow ones twice.
    assert cache_updates(program.hlo, sizes) >= 2 * CONFIG.num_hidden_layers


def test_the_state_is_updated_in_place(program: Program) -> None:
    assert program.memory.alias_size_in_bytes == bytes_of(program.donated)
    # The largest temporaries are scores of attention, smaller here than the keys and values of half the layers.
    assert program.memory.temp_size_in_bytes < bytes_of(program.caches) / 2


def test_weights_are_arguments(program: Program) -> None:
    assert large_constants(program.hlo) == []
    assert program.memory.argument_size_in_bytes >= bytes_of(program.weights) + bytes_of(program.donated)


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
    assert cache_copies(built.as_text(), {3 * 97 * 22})


def test_an_update_in_place_is_not_mistaken_for_a_copy() -> None:
    def loop(cache: jax.Array, row: jax.Array, rounds: jax.Array) -> Any:
        def body(carry: Any) -> Any:
            step, cache, total = carry
            cache = jax.lax.dynamic_update_slice(cache, row + total, (0, step, 0))
            return step + 1, cache, total + jnp.einsum("nsd,nqd->", cache, row)

        return jax.lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(0), cache, jnp.float32(0)))

    cache, row = jax.ShapeDtypeStruct((3, 97, 22), jnp.float32), jax.ShapeDtypeStruct((3, 1, 22), jnp.float32)
    hlo = jax.jit(loop, donate_argnums=0).lower(cache, row, jax.ShapeDtypeStruct((), jnp.int32)).compile().as_text()
    assert cache_updates(hlo, {3 * 97 * 22}) == 1
    assert cache_copies(hlo, {3 * 97 * 22}) == set()


def test_a_weight_in_the_program_is_noticed() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    hlo = jax.jit(lambda x: x @ weight).lower(jnp.ones((1, 64))).compile().as_text()
    assert large_constants(hlo)


def test_only_gamma_compiles_anew(lab: Any) -> None:
    """A new eta, EOS token, round bound, prompt, budget or weight is only another argument of the same program."""
    traces = []

    def counting(*args: Any) -> Any:
        traces.append(args)
        return dec.propose(*args)

    def run(gamma: int, prompt: list[int], budget: int, eta: float, eos: int, scale: float = 1.0) -> float:
        weights = jax.tree.map(lambda leaf: leaf * scale, lab.weights)
        state = lab.prefill(gamma, [prompt], budget, (eos,), weights)
        args = (weights, state, lab.controls(eta, (eos,)), np.int32(99))
        program, seconds = compiled(dec.decode, {0: lab.spec(gamma, counting)}, *args)
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
    spec = dec.DecodeSpec(CONFIG, 2, gamma)
    assert spec.rows >= gamma + 1
    for longest in (17, 300, 1000):
        assert dec.cache_slots(spec, longest) >= longest + gamma + 1


def test_a_prefill_takes_the_same_memory_however_long_the_prompt() -> None:
    assert dec.prefill_chunk(5, 128, 1) == 16 and dec.prefill_chunk(200, 256, 1) == 256
    for slots in (512, 4096, 32768, 131072):
        for batch in (1, 8):
            chunk = dec.prefill_chunk(slots - 9, slots, batch)
            assert chunk == 16 or chunk * slots * batch <= 512 * 4096
