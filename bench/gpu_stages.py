"""The steps of ``bench.gpu``: each measures one thing, in seconds, and returns its figures as JSON has them."""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import kangaroo_jax
from bench import machine, roofline, spec_bench
from bench.abstract_programs import Program, drafting, lower
from bench.roofline_turns import GRAPHS, Settings
from bench.shapes import random_params
from kangaroo_jax.engine import compile_with
from kangaroo_jax.kernels import why_not
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.proof import read_prompts
from kangaroo_jax.version import versions
from workshop.published_shapes import SHAPES

TINY = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
)
ROOT = Path(__file__).resolve().parents[1]
_DUMPED = ("thunk_sequence", "after_optimizations.txt", "autotune", "target_config")
PACKAGES = "kangaroo-jax jax jaxlib jax-cuda13-plugin flax optax orbax-checkpoint transformers numpy"


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the steps are told.

    Attributes:
        out: folder of the figures.
        rehearse: tiny shapes and few turns, on whatever machine this is.
        model: a real model with an adapter, as for ``kangaroo_jax.load``; None leaves out what needs it.
        questions: Spec-Bench's questions, for the model.
        data: conversations to train the model's adapter on.
    """

    out: Path
    rehearse: bool = False
    model: str | None = None
    questions: Path | None = None
    data: Path | None = None


class Step(NamedTuple):
    """One measurement.

    Attributes:
        name: what its figures are called.
        seconds: what it takes on a card; it is not begun where less time is left.
        run: makes the figures; None where something it needs was not given.
    """

    name: str
    seconds: int
    run: Callable[[Setup], Any]


def machine_facts(setup: Setup) -> Any:
    """Return what the machine is, as JAX and the driver name it."""
    device = jax.local_devices()[0]
    return {
        "python": platform.python_version(),
        "packages": versions(PACKAGES.split()),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "memory": device.memory_stats(),
        "driver": _driver(),
        "native kernels": why_not() or "used",
    }


def _driver() -> str | None:
    """Return the card, driver and clocks as ``nvidia-smi`` prints them; None where there is none."""
    query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    try:
        return subprocess.run(
            ["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def bandwidth(setup: Setup) -> Any:
    """Return bytes a second of copies and of products of one row, and what an iteration of an empty loop takes."""
    sizes = (1,) if setup.rehearse else (256, 1024)
    timers: dict[str, Callable[[], float]] = {"iteration": machine.iteration()}
    for size in sizes:
        timers[f"copy of {size} MiB"] = machine.copy(size)
        timers[f"fp32 product, {size} MiB"] = machine.matvec(size)
        timers[f"bf16 product, {size} MiB"] = machine.matvec(size, jnp.bfloat16)
    return {name: statistics.median(timer() for _ in range(7)) for name, timer in timers.items()}


def truth(dtype: str, setup: Setup) -> Any:
    """Compare plain decoding and Kangaroo: alone, as a batch of 8, and drawn twice with the same seed."""
    found = {}
    for name in ("joey", *([setup.model] if setup.model else [])):
        params = kangaroo_jax.load(name, dtype=dtype)
        count, tokens = (3, 8) if setup.rehearse else (12, 128)
        texts = [each["prompt"] for each in read_prompts()][:count]
        proof = kangaroo_jax.verify_lossless(params, texts, max_new_tokens=tokens)
        options: dict[str, Any] = {"max_new_tokens": tokens}
        wide = texts[:8]
        batch = {method: _ids(params, wide, method=method, **options) for method in ("plain", "kangaroo")}
        options |= {"do_sample": True, "temperature": 0.8, "seed": 5}
        drawn = [_ids(params, wide, **options) for _ in range(2)]
        found[name] = {
            "report": proof.as_dict(),
            "batch of 8: prompts whose ids are plain decoding's": _equal(batch["plain"], batch["kangaroo"]),
            "drawn twice: prompts whose ids are the same": _equal(*drawn),
            "prompts": len(wide),
        }
    return found


def _ids(params: kangaroo_jax.Params, prompts: Sequence[str], **options: Any) -> list[list[int]]:
    return [each.token_ids for each in kangaroo_jax.generate(params, list(prompts), **options)]


def _equal(some: Sequence[Any], others: Sequence[Any]) -> int:
    return sum(one == other for one, other in zip(some, others, strict=True))


def suite(setup: Setup) -> Any:
    """Run tests of decoding and of the model on this machine; return the lines that sum them up."""
    which = "decode/test_commit" if setup.rehearse else "decode/test_lossless decode/test_sampling model/test_parity"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += [f"tests/{name}.py" for name in which.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return {
        "status": done.returncode,
        "lines": [line for line in lines if line[:6] in ("FAILED", "ERROR ")] + lines[-1:],
    }


@cache
def _model(shape: str, rehearse: bool) -> kangaroo_jax.Params:
    if rehearse:
        return random_params("tiny", "float32", TINY, 1)
    return random_params(shape, "bfloat16", SHAPES[shape])


def speed(shape: str, graphs: tuple[str, ...], wide: bool, setup: Setup) -> Any:
    """Return ``bench.roofline``'s figures of a shape.

    Args:
        shape: whose.
        graphs: keys of ``GRAPHS``; those that the installed XLA refuses are named, and left out.
        wide: every number of rows and every acceptance, or only those that tell options apart.
        setup: what all steps are told.
    """
    known = [name for name in graphs if roofline.accepted(name)]
    settings = Settings(rows=(1, 2, 4, 8, 16)) if wide else Settings((6,), (0.7,), (1, 8))
    if setup.rehearse:
        settings = Settings((3,), (0.7,), (1,), 8, 1, 1)
    elif not wide:
        settings = dataclasses.replace(settings, repeats=3)
    figures = roofline.measure(_model(shape, setup.rehearse), settings, known) if known else {}
    return figures | {"refused": [name for name in graphs if name not in known]}


def answers(setup: Setup) -> Any:
    """Return what ``bench.spec_bench`` finds on the model's questions."""
    if setup.rehearse:
        model, which = ["--model", "joey"], "--tasks function --per-category 1 --max-new-tokens 8 --repeats 1"
    elif setup.model and setup.questions:
        model = ["--model", setup.model, "--questions", str(setup.questions)]
        which = "--per-category 5 --max-new-tokens 256 --repeats 1 --skip-long"
    else:
        return None
    folder = setup.out / "spec_bench"
    how = "--methods plain,kangaroo,prompt-lookup --no-split --no-prepare"
    if status := spec_bench.main([*model, *which.split(), *how.split(), "--out", str(folder)]):
        raise ValueError(f"bench.spec_bench ended with status {status}")
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def measured(words: str, tiny: str, setup: Setup) -> Any:
    """Run ``train.measure`` in a process of its own, and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        _command("train.measure", *(tiny if setup.rehearse else words).split(), "--json", str(file))
        return json.loads(file.read_text(encoding="utf-8"))


def own_adapter(setup: Setup) -> Any:
    """Let the model write replies and train its adapter on them, until the steps are done or the time is over.

    Both go on where they stopped, and both keep what they have when they are ended.
    """
    if setup.rehearse:
        model, data = "joey", "docs"
        write = "--prompt-tokens 16 --max-new-tokens 8 --dtype float32"
        fit = "--steps 2 --batch-size 2 --length 32 --decode-every 0"
    elif setup.model and setup.data:
        model, data = setup.model, str(setup.data)
        write = "--batch-size 128 --max-new-tokens 320 --data-rows 4000 --plain"
        fit = "--steps 20000 --batch-size 16 --learning-rate 1e-3"
    else:
        return None
    replies, adapter = setup.out / "replies.jsonl", setup.out / "adapter"
    jobs = (("train.regenerate", data, write, replies), ("train.adapter", str(replies), fit, adapter))
    for module, source, words, made in jobs:
        if not made.exists():
            _command(module, "--model", model, "--data", source, *words.split(), "--out", str(made))
        if not made.exists():  # Asked to end, it has ended well, and goes on another time.
            raise ValueError(f"{module} was ended before it had made {made}")
    lines = (setup.out / "adapter-training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if any(name.startswith("held_out") for name in line)]


def _command(module: str, *words: str) -> None:
    """Run a command of this project in a process of its own.

    Raises:
        ValueError: if its status is not 0; with the end of what it said.
    """
    done = subprocess.run([sys.executable, "-m", module, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{module} ended with status {done.returncode}: {done.stderr[-2000:]}")


def code(setup: Setup) -> Any:
    """Compile the decode loops and return what they need; XLA's own account of them goes into ``code.tar.gz``.

    That are the optimised HLO, the sequence of kernels and graphs, the description of the card, and what XLA found out
    about kernels by timing them.
    """
    config, dtype, slots = (TINY, "float32", 128) if setup.rehearse else (SHAPES["vicuna-7b"], "bfloat16", 1024)
    exit_layer = 1 if setup.rehearse else 2
    found: dict[str, Any] = {}
    jax.config.update("jax_enable_compilation_cache", False)  # A program that comes from a cache is not dumped.
    with tempfile.TemporaryDirectory() as folder, tarfile.open(setup.out / "code.tar.gz", "w:gz") as archive:
        for name in ("plain", "kangaroo"):
            low = lower(Program("decode", drafting(config, name, exit_layer, 6), slots=slots, dtype=dtype))
            for graph, extra in GRAPHS.items():
                place = Path(folder) / f"{name}-{graph}"
                dump = {"xla_dump_to": str(place), "xla_dump_hlo_as_text": "True"}
                made, used = compile_with(low.lowered, {**extra, **dump}, dump)
                memory = made.memory_analysis()
                bytes_of = {kind: getattr(memory, f"{kind}_size_in_bytes") for kind in ("argument", "temp", "alias")}
                files = [file for file in sorted(place.glob("*")) if any(word in file.name for word in _DUMPED)]
                for file in files:
                    archive.add(file, f"{place.name}/{file.name}")
                found[f"{name}, {graph}"] = {"options used": used, "bytes": bytes_of, "files": len(files)}
    return found


NARROW = tuple(name for name in GRAPHS if name not in ("default", "one"))
STEP = "speed --shape vicuna-7b --dtype bfloat16 --rows 4 --length 2048 --product 8192"
STAGES: dict[str, tuple[Step, ...]] = {
    "facts": (Step("versions", 1, machine_facts), Step("bandwidth", 5, bandwidth)),
    "truth": (
        Step("float32", 15, partial(truth, "float32")),
        Step("bfloat16", 15, partial(truth, "bfloat16")),
        Step("tests", 60, suite),
    ),
    "speed": (
        Step("vicuna-7b", 60, partial(speed, "vicuna-7b", ("default", "one"), True)),
        *(Step(f"vicuna-7b, {graph}", 20, partial(speed, "vicuna-7b", (graph,), False)) for graph in NARROW),
        Step("llama3-8b", 40, partial(speed, "llama3-8b", ("default", "one"), False)),
    ),
    "use": (Step("spec_bench", 60, answers),),
    "training": (
        Step("step of vicuna-7b", 45, partial(measured, STEP, "speed --rows 1 --length 16 --product 64 --repeats 1")),
        Step(
            "memory of vicuna-7b",
            30,
            partial(measured, "memory --dtype bfloat16", "memory --shape joey --rows 1 --length 16 --layers 3 4"),
        ),
        Step("the model's own adapter", 30, own_adapter),
    ),
    "code": (Step("decode", 60, code),),
}
"""What is measured, in the order of worth."""
