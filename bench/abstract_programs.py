"""The decode programs, compiled for shapes alone: nothing is allocated, and the machine need not be there.

For a GPU one needs XLA's GPU compiler (the wheels of ``make h200``) and a description of the card (``bench/targets``),
but no CUDA. What is measured on the card decides between kernels; without it XLA takes its defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Sharding, SingleDeviceSharding

from bench import thunks
from bench.hlo import Module, parse
from kangaroo_jax import decode as dec
from kangaroo_jax.engine import compile_with, options
from kangaroo_jax.kernels import pack_adapter, pack_target
from kangaroo_jax.model import LlamaConfig, abstract_adapter, abstract_params

WHEELS = Path(__file__).resolve().parents[1] / "build" / "h200"
CARDS = {path.stem: path for path in sorted((Path(__file__).resolve().parent / "targets").glob("*.txtpb"))}
"""Descriptions of GPUs, by name."""
_DUMP = "*thunk_sequence{}.txt"


@dataclasses.dataclass(frozen=True)
class Program:
    """Which program, and for what.

    Attributes:
        part: ``"decode"`` or ``"prefill"``.
        spec: what the decode loop depends on.
        batch: sequences.
        slots: cache slots.
        dtype: of weights and caches.
        chunk: positions that a prefill runs at a time.
        native: whether the weights are packed for the native CPU kernels, kept in ``dtype``.
    """

    part: str
    spec: dec.DecodeSpec
    batch: int = 1
    slots: int = 1024
    dtype: Any = "float32"
    chunk: int = 16
    native: bool = False


class Lowered(NamedTuple):
    """A program before XLA sees it; ``weights``, ``caches`` and ``donated`` are trees of shapes."""

    lowered: Any
    arguments: Any
    weights: Any
    caches: Any
    donated: Any


class Compiled(NamedTuple):
    """A compiled program: its HLO, what it launches, memory, whether XLA knew the options, and the seconds it took."""

    module: Module
    thunks: list[thunks.Thunk]
    memory: Any
    options_used: bool
    seconds: float


def drafting(config: LlamaConfig, name: str, exit_layer: int, gamma: int, sample: bool = False) -> dec.DecodeSpec:
    """Return what decoding is: "plain", or with Kangaroo's drafts; ``sample`` draws by temperature, top_k and top_p."""
    how = (dec.PLAIN, 0) if name == "plain" else (dec.Kangaroo(exit_layer=exit_layer), gamma)
    return dec.DecodeSpec(config, *how, sample=sample, truncate=sample)


def lower(program: Program, sharding: Sharding | None = None) -> Lowered:
    """Lower a program for shapes.

    Args:
        program: which.
        sharding: where its arguments are, on a machine that need not be there (see ``gpu``); None is this one.
    """
    spec, batch, slots, dtype = program.spec, program.batch, program.slots, jnp.dtype(program.dtype)

    def shape(extents: tuple[int, ...], kind: Any) -> Any:
        return jax.ShapeDtypeStruct(extents, kind, sharding=sharding)

    def place(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), tree)

    drafter = spec.drafter
    adapter = abstract_adapter(spec.config, drafter.adapter) if isinstance(drafter, dec.Kangaroo) else None
    weights = {"target": abstract_params(spec.config), "adapter": adapter}
    weights = jax.tree.map(lambda leaf: shape(leaf.shape, dtype), weights)
    if program.native:
        weights["target"] = place(jax.eval_shape(lambda tree: pack_target(tree, dtype), weights["target"]))
        weights["adapter"] = adapter and place(
            jax.eval_shape(lambda tree: pack_adapter(tree, dtype), weights["adapter"])
        )
    row, real = shape((batch,), jnp.int32), shape((batch,), jnp.float32)
    controls = dec.Controls(real, shape((batch, 1), jnp.int32), dec.Sampling(real, row, real, real))
    caches = place(jax.eval_shape(lambda: dec.allocate(spec, batch, slots, dtype)))
    seed = shape((batch, 2), jnp.uint32)
    prompt = (weights, caches, shape((batch, slots), jnp.int32), row, row, row, seed, controls)
    with tracing_for(sharding):
        if program.part == "prefill":
            lowered = dec.prefill.lower(spec, program.chunk, *prompt)
            return Lowered(lowered, prompt, weights, caches, caches)
        state = place(jax.eval_shape(lambda *traced: dec.prefill(spec, program.chunk, *traced), *prompt))
        arguments = (weights, state, controls, shape((), jnp.int32))
        return Lowered(dec.decode.lower(spec, *arguments), arguments, weights, caches, state)


def build(low: Lowered, sharding: Sharding | None = None, wanted: dict[str, str] | None = None) -> Compiled:
    """Compile a lowered program.

    Args:
        low: from ``lower``.
        sharding: the same as there.
        wanted: XLA options; None are those ``generate`` sets on this machine.
    """
    start = time.perf_counter()
    if sharding is None:
        built, used = compile_with(low.lowered, options(*low.arguments) if wanted is None else wanted)
        module = parse(built.as_text())
        return Compiled(module, thunks.from_hlo(module), built.memory_analysis(), used, time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        # Measuring kernels needs the card; the dump is the one place where XLA shows its CUDA graphs.
        dump = {"xla_gpu_autotune_level": "0", "xla_dump_to": folder, "xla_dump_hlo_as_text": "True"}
        built, used = compile_with(low.lowered, dump | (wanted or {}), dump)
        seconds = time.perf_counter() - start
        # There is no second file where XLA's passes over thunks, which make the graphs, changed nothing.
        files = [*Path(folder).glob(_DUMP.format("_after_thunk_passes")), *Path(folder).glob(_DUMP.format(""))]
        if not files:
            raise ValueError("XLA wrote no dump of its thunks; compiled programs are kept in a cache? Turn that off")
        tree = thunks.parse_dump(files[0].read_text(encoding="utf-8"))
    return Compiled(parse(built.as_text()), tree, built.memory_analysis(), used, seconds)


def gpu(card: str, wheels: Path = WHEELS) -> Sharding:
    """Return the place on a GPU that is not there.

    Args:
        card: one of ``CARDS``.
        wheels: folder with JAX's CUDA plugin, if it is not installed with JAX itself. (There it would try to use a GPU,
            and say at every start that it has found none.)

    Raises:
        ValueError: if the plugin is missing, or not of JAX's version.
    """
    if wheels.is_dir() and str(wheels) not in sys.path:
        sys.path.append(str(wheels))
    try:
        topology = topologies.get_topology_desc(
            "", "cuda", target_config=CARDS[card].read_text(encoding="utf-8"), topology="1x1x1"
        )
    except NotImplementedError:
        raise ValueError(
            f"no CUDA plugin for JAX {jax.__version__} in {wheels} nor installed; get it with `make h200`, or name its "
            "folder with --wheels"
        ) from None
    return SingleDeviceSharding(topology.devices[0])


@contextlib.contextmanager
def tracing_for(sharding: Sharding | None) -> Iterator[None]:
    """Let the model believe that it runs where ``sharding`` says, since it asks JAX for the default backend."""
    if sharding is None:
        yield
        return
    actual, jax.default_backend = jax.default_backend, lambda: "gpu"
    jax.clear_caches()  # What was traced for this machine is not to be taken for the other, nor the other way round.
    try:
        yield
    finally:
        jax.default_backend = actual
        jax.clear_caches()
