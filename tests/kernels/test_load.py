"""Which kernels a model is loaded for: what is asked for, what is possible, and a library that is absent or damaged."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

import kangaroo_jax
from kangaroo_jax.kernels import describe, packs, why_not
from kangaroo_jax.params import with_adapter

BEST = "xla" if why_not() else "native"
"""What models are loaded for here: the library may have been built, or not."""
PACKAGE = Path(kangaroo_jax.__file__).parent


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KANGAROO_KERNELS", raising=False)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_the_best_kernels_are_taken(tiny_model: Path, dtype: str | None) -> None:
    params = kangaroo_jax.load(tiny_model, dtype=dtype)
    assert params.kernels == BEST and packs(params.target) == packs(params.adapter) == (BEST == "native")


def test_xla_can_be_asked_for(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kangaroo_jax.load(tiny_model, kernels="xla").kernels == "xla"
    monkeypatch.setenv("KANGAROO_KERNELS", "xla")
    assert kangaroo_jax.load(tiny_model).kernels == "xla"


@pytest.mark.parametrize(
    ("asked", "said"), [("auto", describe(BEST)), ("xla", describe("xla")), ("fast", "KANGAROO_KERNELS is 'fast'")]
)
def test_a_line_says_what_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: str, said: str
) -> None:
    """``make demo`` chooses the dtype by it."""
    monkeypatch.setenv("KANGAROO_KERNELS", asked)
    if asked == "fast":
        with pytest.raises(SystemExit, match=said):
            runpy.run_module("kangaroo_jax.kernels", run_name="__main__")
    else:
        runpy.run_module("kangaroo_jax.kernels", run_name="__main__")
        assert capsys.readouterr().out == f"kernels: {said}\n"


def test_native_ones_are_used_or_it_is_said_why_not(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANGAROO_KERNELS", "xla")  # An argument counts more.
    if (reason := why_not()) is None:
        assert kangaroo_jax.load(tiny_model, kernels="native").kernels == "native"
        assert describe("native").startswith("native, ") and describe("xla") == "XLA"
    else:
        with pytest.raises(ValueError, match=r"native kernels cannot be used: .*; pass kernels='xla', or leave it out"):
            kangaroo_jax.load(tiny_model, kernels="native")
        assert reason in describe("xla")


def test_on_a_gpu_nothing_is_packed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is there on such a machine, too; what JAX runs on decides, and the dtype follows."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    params = kangaroo_jax.load(tiny_model)
    assert params.kernels == "xla" and not packs(params.target) and not packs(params.adapter)
    assert params.dtype == jax.numpy.bfloat16
    with pytest.raises(ValueError, match="they are for CPUs, and JAX runs on gpu; pass kernels='xla', or leave it out"):
        kangaroo_jax.load(tiny_model, kernels="native")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drafts_of_a_model_in_bf16_are_in_int8(tiny_model: Path, dtype: str) -> None:
    few = None if BEST == "xla" else "int8" if dtype == "bfloat16" else "full"
    params = kangaroo_jax.load(tiny_model, dtype=dtype)
    assert params.draft_weights == few and not packs(params.target, jax.numpy.int8)
    assert with_adapter(params, tiny_model / "adapter").draft_weights == few
    assert kangaroo_jax.load(tiny_model, dtype=dtype, draft_weights="full").draft_weights == (few and "full")


def test_int8_can_be_asked_for(tiny_model: Path) -> None:
    if BEST == "native":
        params = kangaroo_jax.load(tiny_model, draft_weights="int8")
        assert params.draft_weights == "int8" and params.dtype == "float32"
        assert with_adapter(params, tiny_model / "adapter").draft_weights == "int8"
    with pytest.raises(
        ValueError, match=r"draft_weights is int8, which only the native kernels read, and .*; pass full"
    ):
        kangaroo_jax.load(tiny_model, kernels="xla", draft_weights="int8")
    with pytest.raises(ValueError, match="draft_weights is 'int4'; pass one of auto, int8, full"):
        kangaroo_jax.load(tiny_model, draft_weights="int4")


@pytest.mark.parametrize("kernels", ["fast", "", "XLA", None, 7, ["xla"]])
def test_other_values_are_refused(tiny_model: Path, kernels: Any) -> None:
    with pytest.raises(ValueError, match=r"kernels is .*; pass one of auto, xla, native") as caught:
        kangaroo_jax.load(tiny_model, kernels=kernels)
    assert repr(kernels) in str(caught.value)


def test_the_environment_is_checked_too(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANGAROO_KERNELS", "fast")
    with pytest.raises(ValueError, match="KANGAROO_KERNELS is 'fast'; set it to one of auto, xla, native"):
        kangaroo_jax.load(tiny_model)
    assert kangaroo_jax.load(tiny_model, kernels="xla").kernels == "xla"
    monkeypatch.setenv("KANGAROO_KERNELS", "")  # As unset.
    assert kangaroo_jax.load(tiny_model).kernels == BEST


def test_an_unknown_instruction_set_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANGAROO_KERNELS_ISA", "avx2")
    with pytest.raises(
        ValueError, match="KANGAROO_KERNELS_ISA is 'avx2'; set it to one of AVX-512 BF16, AVX-512, AVX2"
    ):
        kangaroo_jax.load(tiny_model)


FLOAT16 = {"dtype": "float16"}, "they multiply float32 and bfloat16, and dtype is float16"
SPREAD = (
    {"sharding": jax.sharding.SingleDeviceSharding(jax.devices()[0])},
    "they run on one device, and sharding says where the weights go",
)


@pytest.mark.parametrize(("options", "reason"), [FLOAT16, SPREAD])
def test_what_they_cannot_do_is_left_to_xla(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], reason: str
) -> None:
    assert kangaroo_jax.load(tiny_model, **options).kernels == "xla"
    with pytest.raises(ValueError, match=f"native kernels cannot be used: {reason}; pass kernels='xla'"):
        kangaroo_jax.load(tiny_model, kernels="native", **options)
    monkeypatch.setenv("KANGAROO_KERNELS", "native")
    with pytest.raises(ValueError, match=f"cannot be used: {reason}; set KANGAROO_KERNELS to xla or auto"):
        kangaroo_jax.load(tiny_model, **options)


@pytest.fixture
def without_library(tmp_path: Path) -> Path:
    """A folder with a copy of the package as it is installed where there is no compiler."""
    shutil.copytree(
        PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("*.so", "*.pyd", "assets", "__pycache__")
    )
    (tmp_path / PACKAGE.name / "assets").symlink_to(PACKAGE / "assets")
    return tmp_path


def run(folder: Path, program: str, *arguments: str, **environment: str) -> list[str]:
    """Run a program with the package of a folder; return the lines that it prints."""
    environment = os.environ | {"PYTHONPATH": str(folder), "KANGAROO_COMPILATION_CACHE": "0"} | environment
    environment.pop("KANGAROO_KERNELS", None)
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


ABSENT = """
import sys
import jax.numpy as jnp
import kangaroo_jax
from kangaroo_jax import kernels

print(kangaroo_jax.__file__)
params = kangaroo_jax.load(sys.argv[1])
print(params.kernels)
print(list(kangaroo_jax.generate(params, "Hello", max_new_tokens=11).token_ids))
print(kernels.describe("xla"))
for attempt in (
    lambda: kangaroo_jax.load(sys.argv[1], kernels="native"),
    lambda: kernels.product(jnp.ones((1, 3)), kernels.pack(jnp.ones((3, 5)))),
):
    try:
        attempt()
    except (ValueError, RuntimeError) as error:
        print(type(error).__name__, error)
"""


@pytest.mark.full
def test_without_the_library_everything_is_xlas(without_library: Path, tiny_model: Path) -> None:
    reason = "they were not built: the package was not installed, or without a C++ compiler (see pip install -v)"
    place, used, ids, described, *errors = run(without_library, ABSENT, str(tiny_model))
    assert place.startswith(str(without_library)) and used == "xla"
    expected = kangaroo_jax.generate(kangaroo_jax.load(tiny_model, kernels="xla"), "Hello", max_new_tokens=11)
    assert ids == str(list(expected.token_ids))
    assert described == f"XLA; native ones cannot be used: {reason}"
    assert errors == [
        f"ValueError native kernels cannot be used: {reason}; pass kernels='xla', or leave it out",
        f"RuntimeError the weights are packed for native kernels, and {reason}",
    ]


DAMAGED = """
import sys
from pathlib import Path
import kangaroo_jax
from kangaroo_jax.kernels import library, why_not

place = Path(library.__file__).with_name(sys.argv[2])
for name in sys.argv[3:]:
    place.unlink(missing_ok=True)
    place.write_bytes(Path(name).read_bytes())
    library.library.cache_clear()
    assert kangaroo_jax.load(sys.argv[1]).kernels == "xla"
    print(why_not())
"""


@pytest.mark.full
def test_a_damaged_library_is_named_and_not_used(without_library: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Empty, no library at all, cut off anywhere, for another processor, or another library of that name."""
    import _ctypes

    name = f"_native{Path(_ctypes.__file__).name.removeprefix('_ctypes')}"
    whole = Path(_ctypes.__file__).read_bytes()
    foreign = whole[:18] + b"\xff\xff" + whole[20:]
    pieces = [whole[: len(whole) * share // 16] for share in range(1, 16)]
    files = []
    for index, content in enumerate([b"", b"no library\n" * 99, *pieces, whole[:40], whole[:-1], foreign, whole]):
        files.append(tmp_path / f"damaged{index}")
        files[-1].write_bytes(content)
    lines = run(without_library, DAMAGED, str(tiny_model), name, *map(str, files))
    place = without_library / PACKAGE.name / "kernels" / name
    assert len(lines) == len(files)
    assert all(line.startswith(f"{place} cannot be used (") for line in lines)
    assert all(line.endswith("); install the package again, with --no-build-isolation") for line in lines)
    assert "KangarooProduct" in lines[-1]
