"""The decode loop compiled for an H200, without one: Vicuna-7B's shape in bf16 (``make h200``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bench import abstract_programs as programs
from bench import hlo, inspect, thunks
from kangaroo_jax.engine import ONE_GRAPH
from workshop.published_shapes import SHAPES

pytestmark = pytest.mark.h200

CONFIG = SHAPES["vicuna-7b"]
EXIT_LAYER = 2
CACHE_BYTES = CONFIG.num_key_value_heads * 1024 * CONFIG.head_dim * 2
# Upper bounds on kernels, measured with jax 0.10.2 (docs/benchmarks.md) and rounded up: 15 a layer, 12 for embedding,
# rotary table, head and choice, 24 for what a round commits and counts.
LAYER, ENDS, ROUND = 16, 16, 32


@pytest.fixture(scope="module", autouse=True)
def no_programs_from_a_cache() -> Iterator[None]:
    """Such programs cannot be read back without the card."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture(scope="module")
def reports() -> dict[tuple[str, str], inspect.Report]:
    found = {(one.program, one.options): one for one in inspect.inspect("h200", CONFIG, "bfloat16")}
    print("\n\n" + "\n".join(inspect.table(list(found.values()))))
    for one in found.values():
        print("\n".join(inspect.details(one, tree=True, kernels=False)))
    return found


def test_nothing_is_copied(reports: dict[tuple[str, str], inspect.Report]) -> None:
    assert len(reports) == 2 * len(inspect.PROGRAMS)
    for (program, _), one in reports.items():
        assert one.cache_copies == one.weight_copies == []
        assert one.cache_updates >= 2 * CONFIG.num_hidden_layers
        assert one.unshared_bytes == 0
        # A donated array that a loop reads may be held twice (openxla/xla 45912), as a temporary. A prefill's scores
        # are larger than a cache; what decoding needs is smaller than one, and than any weight.
        assert program == "prefill" or one.temporary_bytes < CACHE_BYTES


def test_all_of_decoding_is_one_graph(reports: dict[tuple[str, str], inspect.Report]) -> None:
    for program in inspect.PROGRAMS:
        one = reports[program, "one graph"]
        assert thunks.graphs(one.tree) == len(one.tree) == 1 and thunks.host_loops(one.tree) == 0
    loops = [node for node in thunks.walk(reports["kangaroo", "one graph"].tree) if node.kind == thunks.LOOP]
    assert len(loops) == 2 and loops[1] in loops[0].body


def test_nothing_in_the_graph_is_a_call_into_a_library(reports: dict[tuple[str, str], inspect.Report]) -> None:
    """A call that is not known to be one that a graph may hold keeps all loops around it out of the graph."""
    for one in reports.values():
        assert not [node for node in thunks.walk(one.tree) if node.kind == "CustomCall"]


def test_calls_into_libraries_are_found_and_keep_loops_out_of_graphs() -> None:
    place = programs.gpu("h200")

    def loop(key: jax.Array, rounds: jax.Array) -> Any:
        def body(carry: Any) -> Any:
            return carry[0] + 1, jax.random.key_data(jax.random.split(jax.random.wrap_key_data(carry[1]))[0])

        return jax.lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(0), key))

    shapes = [
        jax.ShapeDtypeStruct(shape, kind, sharding=place) for shape, kind in (((2,), jnp.uint32), ((), jnp.int32))
    ]
    found, usual = {}, jax.config.jax_threefry_gpu_kernel_lowering
    try:
        for calls in (False, True):
            jax.config.update("jax_threefry_gpu_kernel_lowering", calls)
            low = programs.Lowered(jax.jit(loop).lower(*shapes), shapes, shapes[0], shapes[0], shapes[0])
            tree = programs.build(low, place, ONE_GRAPH).thunks
            found[calls] = thunks.host_loops(tree), any(node.kind == "CustomCall" for node in thunks.walk(tree))
    finally:
        jax.config.update("jax_threefry_gpu_kernel_lowering", usual)
    assert found == {False: (0, False), True: (1, True)}


def test_each_weight_is_read_once(reports: dict[tuple[str, str], inspect.Report]) -> None:
    for one in reports.values():
        assert one.products and all(len(readings) == 1 for readings in one.products.values())


@pytest.mark.parametrize("card", programs.CARDS)
def test_every_card_can_be_compiled_for(card: str) -> None:
    place = programs.gpu(card)
    low = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((7,), jnp.float32, sharding=place))
    assert low.compile(compiler_options={"xla_gpu_autotune_level": "0"}).as_text()


def test_by_default_the_host_runs_the_loops(reports: dict[tuple[str, str], inspect.Report]) -> None:
    assert thunks.host_loops(reports["plain", "default"].tree) == 1
    assert thunks.host_loops(reports["kangaroo", "default"].tree) == 2


def test_kernels_are_few(reports: dict[tuple[str, str], inspect.Report]) -> None:
    plain, kangaroo = reports["plain", "default"].launches, reports["kangaroo", "default"].launches
    assert kangaroo.draft and kangaroo.before
    assert plain.round <= LAYER * CONFIG.num_hidden_layers + ENDS
    assert kangaroo.draft <= LAYER * (EXIT_LAYER + 1) + ENDS  # The adapter is a layer without an MLP.
    assert kangaroo.before <= LAYER * EXIT_LAYER + ENDS
    assert kangaroo.round <= LAYER * CONFIG.num_hidden_layers + ENDS + ROUND
    for program in inspect.PROGRAMS:
        assert reports[program, "one graph"].launches == reports[program, "default"].launches


def test_copies_in_code_for_an_h200_are_found() -> None:
    config = dataclasses.replace(CONFIG, num_hidden_layers=1)
    cache = (config.num_key_value_heads, 1024, config.head_dim)
    place = programs.gpu("h200")

    def loop(cache: jax.Array, weight: jax.Array, rounds: jax.Array) -> Any:
        def body(carry: Any) -> Any:
            step, cache, total = carry
            updated = jax.lax.dynamic_update_slice(cache, cache[:, :1] + 1, (0, step, 0))
            scaled = jax.lax.optimization_barrier(weight * total[0, 0])
            return step + 1, updated, total + (cache * updated).sum() + total @ scaled  # Reads what was before.

        ones = jnp.ones((1, weight.shape[0]), weight.dtype)
        return jax.lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(0), cache, ones))

    kinds: list[tuple[tuple[int, ...], Any]] = [(cache, jnp.bfloat16), ((4096, 4096), jnp.bfloat16), ((), jnp.int32)]
    shapes = [jax.ShapeDtypeStruct(shape, kind, sharding=place) for shape, kind in kinds]
    low = programs.Lowered(jax.jit(loop, donate_argnums=0).lower(*shapes), shapes, shapes[1], shapes[0], shapes[0])
    made = programs.build(low, place)
    assert hlo.second_copies(made.module, {cache}) and hlo.second_copies(made.module, {(4096, 4096)})
    assert thunks.host_loops(made.thunks) == 1
