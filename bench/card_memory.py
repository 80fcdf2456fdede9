"""What batches take of a GPU's memory: as the compiled programs say, and as ``check_memory`` estimates. No GPU needed.

python -m bench.card_memory                                    Vicuna-7B, 13B and 33B in bf16, on an H100 and an H200
python -m bench.card_memory --shape llama3-8b --batch 1 64     another model, other batches
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from bench import hlo
from bench.abstract_programs import CARDS, WHEELS, Program, build, drafting, gpu, lower, tracing_for
from kangaroo_jax import decode as dec
from kangaroo_jax.engine import ONE_GRAPH, sequence_bytes
from kangaroo_jax.progress import progress
from workshop.command import exit_status
from workshop.published_shapes import SHAPES

DTYPE = "bfloat16"
HEAD = ("model", "decoding", "sequences", "weights", "state", "temporaries", "estimate", "estimate / compiled")


def rows(
    card: str, shape: str, batches: Sequence[int], slots: int, exit_layer: int, gamma: int, wheels: Path
) -> Iterator[list[str]]:
    """Yield a row for plain decoding and for Kangaroo with each number of sequences; sizes are GiB.

    The state is what lives through a generation, caches above all; the temporaries are those of the program, of prefill
    and decoding, that takes more; the estimate is what ``check_memory`` compares with what is free, for both.
    """
    config, sharding = SHAPES[shape], gpu(card, wheels)
    for name in ("plain", "kangaroo"):
        spec = drafting(config, name, exit_layer, gamma)
        for batch in batches:
            chunk = dec.prefill_chunk(slots // 2, slots, batch)
            held, temporary, weights = 0, 0, 0
            for part, each in (("prefill", spec.for_prefill), ("decode", spec)):
                low = lower(Program(part, each, batch=batch, slots=slots, dtype=DTYPE, chunk=chunk), sharding)
                temporary = max(temporary, build(low, sharding, ONE_GRAPH).memory.temp_size_in_bytes)
                held, weights = hlo.bytes_of(low.donated), hlo.bytes_of(low.weights)
            with tracing_for(sharding):
                estimate = batch * sequence_bytes.__wrapped__(spec, slots, chunk, jnp.dtype(DTYPE))
            sizes = (f"{size / 2**30:.2f}" for size in (weights, held, temporary, estimate))
            shares = (f"{(weights + held + temporary) / size:.0%}" for size in sizes_of_cards().values())
            yield [shape, name, str(batch), *sizes, f"{estimate / (held + temporary):.2f}", *shares]


def sizes_of_cards() -> dict[str, int]:
    """Return the bytes of memory of each card."""
    found = {
        card: re.search(r"device_memory_size: (\d+)", path.read_text(encoding="utf-8")) for card, path in CARDS.items()
    }
    return {card: int(size[1]) for card, size in found.items() if size}


def run(args: argparse.Namespace) -> None:
    """Compile, and print a Markdown table.

    Raises:
        ValueError: if the compiler is missing.
    """
    bar = progress(total=2 * len(args.shape) * len(args.batch), desc="compiling")
    head = [*HEAD, *(f"of {card}" for card in sizes_of_cards())]
    print(
        f"GiB; {DTYPE}, {args.slots} slots, exit layer {args.exit_layer}, gamma {args.gamma}, jax {jax.__version__}\n"
    )
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for shape in args.shape:
        for row in rows(args.card, shape, args.batch, args.slots, args.exit_layer, args.gamma, args.wheels):
            print(f"| {' | '.join(row)} |", flush=True)
            bar.update()
    bar.close()


def main(argv: list[str] | None = None) -> int:
    """Print the table, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.card_memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ("vicuna-7b", "vicuna-13b", "vicuna-33b")
    add = parser.add_argument
    add("--card", choices=tuple(CARDS), default="h100", help="to compile for (default: %(default)s)")
    add("--shape", choices=tuple(SHAPES), nargs="+", default=sizes, help="models (default: Vicuna's)")
    add("--batch", type=int, nargs="+", default=(1, 8, 32), help="numbers of sequences (default: 1 8 32)")
    add("--slots", type=int, default=2048, help="cache slots of each (default: %(default)s)")
    add("--exit-layer", type=int, default=2, help="layers of the draft model (default: %(default)s)")
    add("--gamma", type=int, default=6, help="most tokens drafted in a round (default: %(default)s)")
    add("--wheels", type=Path, default=WHEELS, help="folder of JAX's CUDA plugin (default: where make h200 puts it)")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # The plugin for GPUs is only a compiler here.
    jax.config.update("jax_enable_compilation_cache", False)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
