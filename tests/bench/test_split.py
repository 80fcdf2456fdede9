"""Costs of the parts of methods' rounds: which are measured, and that what is verified is counted."""

from __future__ import annotations

import dataclasses

import kangaroo_jax
from bench.methods import make
from bench.split import Nothing, measure_parts
from kangaroo_jax import decode as dec


def test_parts_of_each_method(tiny: kangaroo_jax.Params) -> None:
    methods = {name: make(name, tiny) for name in ("plain", "kangaroo", "early-exit")}
    alone = dataclasses.replace(methods["plain"], spec=dec.DecodeSpec(tiny.config, Nothing(5), 1))
    ticks: list[None] = []
    found = measure_parts({**methods, "alone": alone}, list(range(9)), repeats=1, tick=lambda: ticks.append(None))
    assert {name: list(parts or ()) for name, parts in found.items()} == {
        "plain": ["deep"],
        "kangaroo": ["shallow", "propose", "deep", "row"],
        "early-exit": ["shallow", "deep", "row"],
        "alone": ["draft", "deep", "row"],
    }
    assert found["plain"] == {"deep": 1.0} and len(ticks) == 4
    assert all(share >= 0 for parts in found.values() for share in (parts or {}).values())
    no_adapter = dataclasses.replace(methods["early-exit"], params=tiny.replace(draft=None, adapter=None))
    assert measure_parts({"early-exit": no_adapter}, [1], repeats=1) == {"early-exit": None}


def test_a_drafter_of_nothing_decodes_plainly(tiny: kangaroo_jax.Params) -> None:
    plain = make("plain", tiny)
    spec = dec.DecodeSpec(tiny.config, Nothing(5), 1)
    out = dataclasses.replace(plain, spec=spec).generate([5, 6, 7], 20, eos_token_id=())
    assert out.token_ids == plain.generate([5, 6, 7], 20, eos_token_id=()).token_ids
    assert set(out.stats.accept_lengths) == {1} and set(out.stats.draft_lengths) == {4} and spec.rows == 5
