"""A row's bits are the same whatever rows are beside it, with every instruction set; ``every_isa`` computes them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kangaroo_jax.kernels import instruction_set

PROGRAM = Path(__file__).with_name("every_isa.py")
# The most that a process may use; what there is less of here is computed again with what there is.
BOUNDS = ("portable", "AVX2", "AVX-512", "")
KINDS = ("fp32", "kept", "bf16", "int8")
ALL = [bound if bound in ("portable", "") else pytest.param(bound, marks=pytest.mark.full) for bound in BOUNDS]
Results = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each instruction set has computed, by its bound."""

    @functools.cache
    def computed(bound: str) -> dict[str, np.ndarray]:
        file = tmp_path_factory.mktemp("bits") / "out.npz"
        environment = os.environ | {"KANGAROO_KERNELS_ISA": bound, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, PROGRAM, file], env=environment, check=True)
        with np.load(file) as read:
            return dict(read)

    return computed


def different(rows: dict[str, np.ndarray], whole: np.ndarray) -> list[str]:
    """Return the names of those whose bits are not those of the first rows of ``whole``."""
    wrong = []
    for name, found in rows.items():
        same = found.view(np.uint32) == whole[: len(found)].view(np.uint32)
        if not same.all():
            wrong.append(name)
    return wrong


@pytest.mark.full
def test_the_bound_is_kept(results: Results) -> None:
    used = [str(results(bound)["instructions"]) for bound in BOUNDS]
    assert used[0] == "portable" and used[-1] == instruction_set()
    order = ["portable", "AVX2", "AVX-512", "AVX-512 BF16"]
    assert used == [min(order[:3][at], used[-1], key=order.index) for at in range(3)] + [used[-1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bound", ALL)
def test_rows_of_a_product(results: Results, bound: str, kind: str) -> None:
    """1 to 16 rows and 40, as a count and as a shape, with a norm before and without."""
    for name in ("product", "normed"):
        rows = {key: values for key, values in results(bound).items() if key.startswith(f"{kind} {name} ")}
        whole = rows.pop(f"{kind} {name} 40")
        assert len(rows) == 19 and len(whole) == 40 and np.isfinite(whole).all()
        assert different(rows, whole) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bound", ALL)
def test_tokens_of_a_text(results: Results, bound: str, kind: str) -> None:
    """In blocks of 1 to 16 tokens or at once, in caches of 40, 64 and 83 slots, alone and among others."""
    texts = {key: values for key, values in results(bound).items() if key.startswith(f"{kind} layers ")}
    whole = texts.pop(f"{kind} layers 40")
    assert len(texts) == 20 and whole.shape == (40, 46) and np.isfinite(whole).all()
    assert different(texts, whole) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bound", ALL)
def test_tokens_that_see_a_window(results: Results, bound: str, kind: str) -> None:
    """What is before the windows of all tokens of a block is not looked at; of which block that depends."""
    texts = {key: values for key, values in results(bound).items() if key.startswith(f"{kind} windows ")}
    whole = texts.pop(f"{kind} windows 40")
    assert len(texts) == 16 and (whole != results(bound)[f"{kind} layers 40"]).any()
    assert different(texts, whole) == []


@pytest.mark.parametrize("bound", ALL)
@pytest.mark.parametrize("name", ["product 40", "normed 40", "layers 40"])
def test_weights_kept_in_bf16_change_nothing(results: Results, name: str, bound: str) -> None:
    """Of weights that bf16 holds, in fp32 arithmetic."""
    kept, wide = (results(bound)[f"{kind} {name}"].view(np.uint32) for kind in ("kept", "fp32"))
    np.testing.assert_array_equal(kept, wide)


@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03), ("int8", 0.1)])
@pytest.mark.parametrize("name", ["product 40", "normed 40", "layers 40"])
@pytest.mark.parametrize("bound", ALL)
def test_instruction_sets_agree(results: Results, bound: str, name: str, kind: str, tolerance: float) -> None:
    expected = results("portable")[f"fp32 {name}"]
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(results(bound)[f"{kind} {name}"], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("bound", ALL)
def test_instruction_sets_cut_alike(results: Results, bound: str) -> None:
    np.testing.assert_allclose(results(bound)["cuts"], results("portable")["cuts"], rtol=1e-6)
    np.testing.assert_array_equal(results(bound)["highest"], results("portable")["highest"])
    np.testing.assert_allclose(results(bound)["share"], results("portable")["share"], rtol=1e-6)


def test_a_bit_that_differs_is_noticed() -> None:
    whole = np.ones((40, 3), np.float32)
    assert different({"same": whole[:7], "other": np.nextafter(whole[:7], 2)}, whole) == ["other"]
