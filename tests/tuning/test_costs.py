"""What parts of decoding cost: the bookkeeping, on a tiny model. How long anything takes is nowhere asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

import kangaroo_jax
from kangaroo_jax.tuning import timers
from kangaroo_jax.tuning.costs import Costs, measure_costs

KNOWN = Costs(
    plain=1.0,
    shallow=0.1,
    propose=0.05,
    verify={8: 1.5, 16: 2.0},
    round={8: 2.0, 16: 2.5},
    draft={8: 0.25, 16: 0.2},
    slots=256,
    dtype="float32",
    device="cpu",
    repeats=1,
)


@pytest.fixture(scope="module")
def measured(tiny: kangaroo_jax.Params) -> Costs:
    return measure_costs(tiny, gammas=(3, 5), rows=(1,), repeats=2)


def test_every_part_asked_for_is_measured(measured: Costs) -> None:
    assert set(measured.verify) == {1, 8}
    assert set(measured.round) == set(measured.draft) == {8}
    assert min(measured.plain, measured.shallow, measured.propose, *measured.verify.values()) > 0
    assert (measured.slots, measured.dtype, measured.repeats) == (128, "float32", 2)


def test_gamma_counts_by_the_rows_of_its_verification() -> None:
    # 10 rounds of 2 and 30 drafts of 0.25.
    assert KNOWN.decode_seconds(7, 10, 30) == 27.5
    assert KNOWN.decode_seconds(8, 10, 30) == pytest.approx(31.0)
    assert KNOWN.decode_seconds(0, 10, 0) == 10.0
    with pytest.raises(ValueError, match="gamma is 16, and rounds of at most 15 drafted tokens were measured"):
        KNOWN.decode_seconds(16, 1, 1)


def test_bad_input(tiny: kangaroo_jax.Params) -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        measure_costs(tiny, repeats=0)
    with pytest.raises(ValueError, match="gammas is empty"):
        measure_costs(tiny, gammas=())
    with pytest.raises(ValueError, match="slots is 16; it must be at least"):
        measure_costs(tiny, slots=16)
    with pytest.raises(ValueError, match="has no adapter"):
        measure_costs(tiny.replace(adapter=None, draft=None))


def test_few_slots_and_a_dtype_of_two_bytes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "SECONDS", 0.001)
    narrow = kangaroo_jax.load(tiny_model, dtype="bfloat16")
    measured = measure_costs(narrow, prompt=[5, 6, 7], slots=24, repeats=1)
    assert (measured.slots, measured.dtype) == (24, "bfloat16")
    assert set(measured.round) == set(measured.draft) == {8}
