"""What the compiled decode loop looks like: copies of caches and weights, kernels, CUDA graphs. No GPU needed.

python -m bench.inspect                                  joey, for this machine
python -m bench.inspect --target h200                    Vicuna-7B in bf16, for an H200 (`make h200` gets the compiler)
python -m bench.inspect --target h200 --layers 4 --tree  faster, and how loops and graphs are nested
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from bench import hlo, thunks
from bench.abstract_programs import CARDS, WHEELS, Compiled, Lowered, Program, build, drafting, gpu, lower
from kangaroo_jax import decode as dec
from kangaroo_jax.engine import ONE_GRAPH
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.progress import progress
from kangaroo_jax.store import DTYPES, EMBEDDED, read_config, resolve
from workshop.command import exit_status
from workshop.published_shapes import SHAPES

TARGETS: dict[str, dict[str, dict[str, str] | None]] = {
    "cpu": {"as generate": None},
    **{card: {"default": {}, "one graph": ONE_GRAPH} for card in CARDS},
}
"""Sets of XLA options by target; None are those that ``generate`` sets."""
DEFAULTS = {"cpu": ("joey", "float32"), **{card: ("vicuna-7b", "bfloat16") for card in CARDS}}
PROGRAMS = ("plain", "kangaroo", "sampled", "prefill")
"""Decoding without drafts, with drafts, with drafts drawn by temperature, top_k and top_p; and a prompt."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What one compiled program is like.

    Attributes:
        program: one of ``PROGRAMS``.
        options: name of the set of XLA options; "refused" is added where XLA did not know one of them.
        cache_copies: what copies, transposes or converts a whole cache.
        weight_copies: what does so to a whole weight matrix.
        cache_updates: how often a cache is updated, in place, by the code of the loops.
        products: how each weight matrix is multiplied, once for every reading of it (``hlo.products``).
        launches: kernels, by the part of decoding.
        tree: loops, graphs and kernels.
        temporary_bytes: what the program needs beside its arguments and results.
        unshared_bytes: bytes of donated state that are not updated in place.
        seconds: compile time.
    """

    program: str
    options: str
    cache_copies: list[hlo.Instruction]
    weight_copies: list[hlo.Instruction]
    cache_updates: int
    products: dict[str, list[str]]
    launches: thunks.Launches
    tree: list[thunks.Thunk]
    temporary_bytes: int
    unshared_bytes: int
    seconds: float


def inspect(
    target: str,
    config: LlamaConfig,
    dtype: Any,
    *,
    exit_layer: int = 2,
    gamma: int = 6,
    slots: int = 1024,
    programs: Sequence[str] = PROGRAMS,
    wheels: Path = WHEELS,
) -> Iterator[Report]:
    """Compile programs for a target and yield what each is like, under every set of options.

    Args:
        target: one of ``TARGETS``.
        config: shape of the model.
        dtype: of weights and caches.
        exit_layer: layers the draft model has.
        gamma: largest number of tokens drafted in one round.
        slots: cache slots.
        programs: which, of ``PROGRAMS``.
        wheels: folder with JAX's CUDA plugin.

    Raises:
        ValueError: if the compiler for the target is missing, or the shape has no layer left to verify with.
    """
    if not 1 <= exit_layer < config.num_hidden_layers or gamma < 1:
        raise ValueError(
            f"exit layer {exit_layer} of {config.num_hidden_layers} layers, gamma {gamma}: expected a layer below the "
            "last one, and at least one token to draft"
        )
    sharding = gpu(target, wheels) if target in CARDS else None
    for name in programs:
        spec = drafting(config, name, exit_layer, gamma, sample=name == "sampled")
        part, spec = ("prefill", spec.for_prefill) if name == "prefill" else ("decode", spec)
        chunk = dec.prefill_chunk(slots // 2, slots, 1)
        low = lower(Program(part, spec, slots=slots, dtype=dtype, chunk=chunk), sharding)
        for options, wanted in TARGETS[target].items():
            yield _report(name, options, low, build(low, sharding, wanted))


def _report(name: str, options: str, low: Lowered, made: Compiled) -> Report:
    matrices = {leaf.shape for leaf in jax.tree.leaves(low.weights) if len(leaf.shape) == 2}
    caches = {leaf.shape for leaf in jax.tree.leaves(low.caches)}
    return Report(
        program=name,
        options=options if made.options_used else f"{options}: refused",
        cache_copies=list(dict.fromkeys(hlo.second_copies(made.module, caches) + hlo.transposes(made.module, caches))),
        weight_copies=hlo.second_copies(made.module, matrices),
        cache_updates=hlo.cache_updates(made.module, hlo.sizes_of(low.caches)),
        products=hlo.products(made.module, matrices),
        launches=thunks.launches(made.thunks),
        tree=made.thunks,
        temporary_bytes=made.memory.temp_size_in_bytes,
        unshared_bytes=hlo.bytes_of(low.donated) - made.memory.alias_size_in_bytes,
        seconds=made.seconds,
    )


def table(reports: Sequence[Report]) -> list[str]:
    """Return a Markdown table with a row for each report."""
    head = ["program", "options", "cache copies", "weight copies", "temporaries, MiB"]
    head += ["kernels a step, round or piece", "before drafting", "a draft", "verify, commit", "graphs", "host loops"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for one in reports:
        parts = one.launches
        counts = [parts.round, parts.before, parts.draft, parts.after]
        cells: list[Any] = [one.program, one.options, len(one.cache_copies), len(one.weight_copies)]
        cells += [f"{one.temporary_bytes / 2**20:.1f}", *("" if count is None else count for count in counts)]
        cells += [thunks.graphs(one.tree), thunks.host_loops(one.tree)]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return lines


def details(one: Report, tree: bool, kernels: bool, products: bool = False) -> Iterator[str]:
    """Yield the lines of what a table has no room for: which copies there are, and what else is asked for."""
    title = f"{one.program}, {one.options}"
    for what, copies in (("cache", one.cache_copies), ("weight", one.weight_copies)):
        # "%fusion.7 = bf16[320,480]{1,0} fusion(...": the type says what is written.
        kinds = collections.Counter(
            (found.line.split()[found.root + 2].split("{")[0], found.opcode) for found in copies
        )
        for (kind, opcode), count in kinds.items():
            yield f"{title}: copies of a {what}: {count} x {kind} by {opcode}"
    if products:
        for how, count in collections.Counter(how for each in one.products.values() for how in each).items():
            yield f"{title}: {count} x {how}"
    for name, each in one.products.items():
        if len(each) > 1:
            yield f"{title}: {name} is read {len(each)} times"
    if tree or kernels:
        yield from (f"\n{title}", *thunks.outline(one.tree, kernels, "  "))


def run(args: argparse.Namespace) -> None:
    """Compile, look and print.

    Raises:
        ValueError: if something asked for cannot be compiled here.
    """
    shape, dtype = args.shape or DEFAULTS[args.target][0], args.dtype or DEFAULTS[args.target][1]
    config = SHAPES[shape] if shape in SHAPES else read_config(resolve(shape))
    if args.layers is not None:
        config = dataclasses.replace(config, num_hidden_layers=args.layers)
    programs: Sequence[str] = args.program or PROGRAMS
    found = inspect(
        args.target,
        config,
        dtype,
        exit_layer=args.exit_layer,
        gamma=args.gamma,
        slots=args.slots,
        programs=programs,
        wheels=args.wheels,
    )
    total = len(programs) * len(TARGETS[args.target])
    reports = list(progress(found, total=total, desc="compiling"))
    print(
        f"{shape} for {args.target}, {dtype}, {config.num_hidden_layers} layers, exit layer {args.exit_layer}, gamma "
        f"{args.gamma}, {args.slots} slots, one sequence; jax {jax.__version__}\n"
    )
    shown = args.tree, args.kernels, args.products
    print("\n".join([*table(reports), "", *(line for one in reports for line in details(one, *shown))]))


def main(argv: list[str] | None = None) -> int:
    """Compile, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shapes = (*EMBEDDED, *SHAPES)
    parser.add_argument("--target", choices=tuple(TARGETS), default="cpu", help="machine (default: %(default)s)")
    parser.add_argument("--shape", choices=shapes, help="model (default: joey for cpu, vicuna-7b for a GPU)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 for cpu, bfloat16 for a GPU")
    parser.add_argument("--layers", type=int, metavar="N", help="cut the model to N layers, to compile faster")
    parser.add_argument("--exit-layer", type=int, default=2, help="layers of the draft model (default: %(default)s)")
    parser.add_argument("--gamma", type=int, default=6, help="most tokens drafted in a round (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=1024, help="cache slots (default: %(default)s)")
    parser.add_argument("--program", choices=PROGRAMS, action="append", help="only this one; may be given repeatedly")
    parser.add_argument("--tree", action="store_true", help="show how loops, graphs and kernels are nested")
    parser.add_argument("--kernels", action="store_true", help="the same, with every kernel by name")
    parser.add_argument("--products", action="store_true", help="show how each weight matrix is multiplied")
    parser.add_argument(
        "--wheels", type=Path, default=WHEELS, help="folder of JAX's CUDA plugin (default: where make h200 puts it)"
    )
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # The plugin for GPUs is only a compiler here.
    jax.config.update("jax_enable_compilation_cache", False)  # A program from a cache would show no thunks.
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
