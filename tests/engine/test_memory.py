"""How much memory a sequence takes: at least what the compiled programs say, and the least of what limits it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax import decode as dec
from kangaroo_jax.engine import memory
from kangaroo_jax.engine.programs import options
from kangaroo_jax.model import LlamaConfig, abstract_adapter, abstract_params

pytestmark = pytest.mark.optimised

CONFIG = LlamaConfig(
    vocab_size=4001,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)

MORE = [(jnp.float32, True), (jnp.bfloat16, False), (jnp.float16, False), (jnp.float16, True)]


@pytest.mark.parametrize(
    ("dtype", "sample"),
    [
        (jnp.float32, False),
        (jnp.bfloat16, True),
        *(pytest.param(dtype, sample, marks=pytest.mark.full) for dtype, sample in MORE),
    ],
)
def test_the_estimate_is_no_less_than_what_programs_take(dtype: Any, sample: bool) -> None:
    batch, slots, shape = 16, 1280, jax.ShapeDtypeStruct
    spec = dec.DecodeSpec(CONFIG, dec.Kangaroo(exit_layer=1), 5, sample=sample, truncate=sample)
    chunk = dec.prefill_chunk(700, slots, batch)
    weights = jax.tree.map(
        lambda leaf: shape(leaf.shape, dtype), {"target": abstract_params(CONFIG), "adapter": abstract_adapter(CONFIG)}
    )
    row, real = shape((batch,), jnp.int32), shape((batch,), jnp.float32)
    controls = dec.Controls(real, shape((batch, 4), jnp.int32), dec.Sampling(real, row, real, real))
    caches = jax.eval_shape(lambda: dec.allocate(spec, batch, slots, jnp.dtype(dtype)))
    args = (weights, caches, shape((batch, slots), jnp.int32), row, row, row, shape((batch, 2), jnp.uint32), controls)
    state = jax.eval_shape(lambda *traced: dec.prefill(spec.for_prefill, chunk, *traced), *args)
    programs = (
        dec.prefill.lower(spec.for_prefill, chunk, *args),
        dec.decode.lower(spec, weights, state, controls, shape((), jnp.int32)),
    )
    chosen = options(*args)
    held = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    estimate = batch * memory.sequence_bytes(spec, slots, chunk, jnp.dtype(dtype))
    for lowered in programs:
        needed = held + lowered.compile(compiler_options=chosen).memory_analysis().temp_size_in_bytes
        assert needed <= estimate <= 8 * needed


def test_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    without = memory.free_bytes()
    assert without > 10**6
    for limit, expected in (("900000", 100_000), ("700000", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("800000\n")
        assert memory.free_bytes() == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes() > 10**6


def test_larger_specs_take_more() -> None:
    spec = dec.DecodeSpec(CONFIG, dec.Kangaroo(exit_layer=1), 5)
    size = memory.sequence_bytes(spec, 256, 64, np.dtype(np.float32))
    assert memory.sequence_bytes(spec, 512, 64, np.dtype(np.float32)) > 1.5 * size
    assert memory.sequence_bytes(dataclasses.replace(spec, sample=True), 256, 64, np.dtype(np.float32)) > size


@dataclasses.dataclass(frozen=True)
class Remembers(dec.Drafter):
    """A drafter that remembers whole numbers."""

    def allocate(self, spec: dec.DecodeSpec, batch: int, slots: int, dtype: Any) -> Any:
        return jnp.zeros((batch, 1000, 1000), jnp.int32)


def test_what_a_drafter_remembers_counts_in_its_own_dtype() -> None:
    spec = dec.DecodeSpec(CONFIG, dec.PLAIN, 5)
    more = dataclasses.replace(spec, drafter=Remembers())
    for dtype in (np.dtype(np.float32), jnp.dtype(jnp.bfloat16)):
        sizes = [memory.sequence_bytes(each, 256, 64, dtype) for each in (more, spec)]
        assert sizes[0] - sizes[1] == 4 * 10**6
