"""The compiled loops with native kernels: caches are updated in place and never copied, weights are arguments."""

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
from kangaroo_jax.kernels import pack_target
from kangaroo_jax.model import AdapterConfig, LlamaConfig, abstract_params, line, run_layers

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


class Case(NamedTuple):
    """Which program, and for what."""

    part: str
    gamma: int
    batch: int
    kv_heads: int
    dtype: str = "float32"
    adapter: str = "kangaroo"
    sample: bool = False
    tree: bool = False


@dataclasses.dataclass(frozen=True)
class Fork(dec.Drafter):
    """Drafts two lines that leave the root; what tokens they are of does not matter here."""

    def draft(self, spec: dec.DecodeSpec, weights: Any, state: dec.DecodeState, controls: Any) -> dec.Draft:
        row = jnp.broadcast_to(jnp.arange(spec.rows), (len(state.length), spec.rows))
        tree = dec.tree_of(jnp.maximum(row - 2, 0), (row + 1) // 2, (row > 0) & (row < 7), 4)
        count = jnp.full_like(state.length, 6)
        return dec.token_draft(spec, weights, state, dec.newest(state)[0] + row[:, 1:], count, None, tree)


CASES = [
    Case("decode", 0, 1, 3),
    Case("decode", 0, 1, 1),
    Case("decode", 0, 3, 3, "bfloat16"),
    Case("decode", 3, 1, 3),
    Case("decode", 3, 1, 1),
    Case("decode", 3, 3, 3),
    Case("decode", 3, 1, 3, "bfloat16"),
    Case("decode", 3, 1, 1, adapter="with-mlp"),
    Case("decode", 3, 3, 3, sample=True),
    Case("decode", 3, 1, 3, tree=True),
    Case("decode", 3, 3, 3, tree=True),
    Case("prefill", 3, 1, 3),
    Case("prefill", 0, 3, 3),
]


class Built(NamedTuple):
    """A compiled program, and the shapes it was compiled for."""

    module: hlo.Module
    memory: Any
    low: Lowered


@pytest.fixture(
    scope="module",
    params=CASES,
    ids=lambda case: "-".join(map(str, case[:6])) + "-sample" * case.sample + "-tree" * case.tree,
)
def program(request: pytest.FixtureRequest) -> Built:
    case = request.param
    config = dataclasses.replace(CONFIG, num_key_value_heads=case.kv_heads)
    drafter: dec.Drafter = dec.Kangaroo(AdapterConfig(case.adapter), exit_layer=2) if case.gamma else dec.PLAIN
    if case.tree:
        drafter = Fork()
    spec = dec.DecodeSpec(config, drafter, case.gamma, sample=case.sample, truncate=case.sample)
    low = lower(Program(case.part, spec, case.batch, SLOTS, case.dtype, native=True))
    made = build(low)
    return Built(made.module, made.memory, low)


def calls(module: hlo.Module) -> list[hlo.Instruction]:
    """Return the calls of native layers in loops."""
    return [found for found in hlo.in_loops(module) if 'custom_call_target="kangaroo_layers"' in found.line]


def test_no_cache_is_copied_in_the_loop(program: Built) -> None:
    sizes = hlo.sizes_of(program.low.caches)
    assert len(sizes) == 1
    assert hlo.cache_copies(program.module, sizes) == set()
    # Every call updates what it is given: keys and values of each layer.
    for call in (found := calls(program.module)):
        updated = sum(np.prod(shape) in sizes for shape in call.shapes)
        assert updated > 0 and call.line.count("}: (") == updated and "output_to_operand_aliasing" in call.line
    assert len(found) >= 1


def test_the_state_is_updated_in_place(program: Built) -> None:
    assert program.memory.alias_size_in_bytes == hlo.bytes_of(program.low.donated)
    assert program.memory.temp_size_in_bytes < hlo.bytes_of(program.low.caches) / 2


def test_weights_are_arguments(program: Built) -> None:
    assert hlo.large_constants(program.module) == []
    arguments = hlo.bytes_of(program.low.weights) + hlo.bytes_of(program.low.donated)
    assert program.memory.argument_size_in_bytes >= arguments


def test_a_copy_in_the_loop_is_noticed() -> None:
    """Who looks at a cache as it was before a call makes XLA copy it."""
    params = jax.eval_shape(lambda tree: pack_target(tree, jnp.float32), abstract_params(CONFIG))
    caches = jax.eval_shape(lambda: dec.allocate(dec.DecodeSpec(CONFIG, dec.PLAIN, 0), 1, SLOTS, jnp.dtype("float32")))[
        0
    ]

    def loop(params: Any, caches: Any, x: Any, rounds: Any) -> Any:
        def body(carry: Any) -> Any:
            step, caches, x = carry
            y, updated = run_layers(CONFIG, params, x, line(step[None, None], SLOTS), caches, 0, 4)
            return step + 1, updated, y + caches[0].k[0, step, 0] * updated[0].k.sum()

        return jax.lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(0), caches, x))

    x, rounds = jax.ShapeDtypeStruct((1, 1, 46), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    built = jax.jit(loop, donate_argnums=1).lower(params, caches, x, rounds).compile()
    module = hlo.parse(built.as_text())
    assert len(calls(module)) == 1
    assert "copy" in hlo.cache_copies(module, hlo.sizes_of(caches))
