"""How near is decoding to the machine's bandwidth, and is Kangaroo as fast as its parts allow?

python -m bench.roofline                                        joey
python -m bench.roofline --shape small-100m --dtype float32     random weights of a shape, made in memory
python -m bench.roofline --shape vicuna-7b --dtype bfloat16 --graph both --json vicuna.json      on a GPU

Bandwidth is what a large matrix-vector product or a copy reaches. Beside it: bytes that each part of decoding reads
and their rate; and the speedup with forced acceptance (each drafted token is accepted with a fixed probability, so
that untrained weights do), measured and as modelled: tokens per round / (k d + s + v), with k drafted tokens, d a draft
step, s a shallow pass, v a verification, all in plain steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import kangaroo_jax
from bench import machine
from bench.methods import count_parameters
from bench.report_roofline import report
from bench.roofline_turns import GRAPHS, Settings, Turns
from bench.shapes import random_params
from bench.ties import ROWS, ties
from bench.traffic import size, traffic
from kangaroo_jax.engine import compile_with
from kangaroo_jax.model import abstract_params
from kangaroo_jax.progress import progress
from kangaroo_jax.tuning import measure_costs
from workshop.command import exit_status
from workshop.places import check_file, write_figures
from workshop.published_shapes import SHAPES


def measure(params: kangaroo_jax.Params, settings: Settings, graphs: Sequence[str] = ("default",)) -> dict[str, Any]:
    """Measure everything in turns and return the figures, as JSON has them.

    Args:
        params: the model, with an adapter.
        settings: what to measure.
        graphs: keys of ``GRAPHS``: what to compile the loops with.

    Raises:
        ValueError: if the model has no adapter, or its context is too short.
    """
    turns = settings.repeats * len(graphs)
    bar = progress(total=turns, desc="compiling", unit="turn")
    timed = Turns(params, settings, graphs)
    parts = traffic(params, timed.slots)

    def tick() -> None:
        timed.turn()
        bar.set_description("measuring")
        bar.update()

    costs = {}
    for graph in graphs:  # Verifications alone have no loops to put into a graph: once is enough.
        costs[graph] = measure_costs(
            params,
            gammas=settings.gammas,
            rows=settings.rows if graph == graphs[0] else (),
            prompt=timed.prompt,
            slots=timed.slots,
            repeats=settings.repeats,
            tick=tick,
            extra=GRAPHS[graph],
        )
    bar.close()
    different, compared = ties(params, timed.loops[graphs[0], 0])
    return {
        "model": params.name,
        "parameters": count_parameters(abstract_params(params.config)),
        "weights": size(params.target),
        "exit_layer": params.draft.exit_layer if params.draft else None,
        "dtype": costs[graphs[0]].dtype,
        "device": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
        "slots": timed.slots,
        "tokens": settings.tokens,
        "turns": turns,
        "matvec": timed.median("matvec"),
        "copy": timed.median("copy"),
        "bytes": parts,
        "ties": {"rows": ROWS, "different": different, "compared": compared},
        "graphs": {
            graph: {
                "iteration": timed.median("iteration", graph),
                "plain": timed.median("decode", graph, 0, None) / settings.tokens,
                "compile_seconds": sum(
                    loop.compile_seconds for (name, _), loop in timed.loops.items() if name == graph
                ),
                "costs": costs[graph].as_dict(),
                "forced": [
                    timed.forced(graph, gamma, rate, costs[graph], parts)
                    for gamma in settings.gammas
                    for rate in settings.acceptances
                ],
            }
            for graph in graphs
        },
    }


def accepted(graph: str) -> bool:
    """Return whether the installed XLA knows the options of one of ``GRAPHS``."""
    return compile_with(jax.jit(lambda x: x + 1).lower(1.0), GRAPHS[graph])[1]


def check_graph(choice: str) -> None:
    """Raise ValueError where one CUDA graph is asked for and there is no GPU, or an XLA that cannot make it."""
    if choice == "default":
        return
    if (backend := jax.default_backend()) != "gpu":
        raise ValueError(f"--graph is {choice}, which needs an NVIDIA GPU, and JAX runs on {backend}: leave it out")
    if not accepted("one" if choice == "both" else choice):
        raise ValueError(
            f"--graph is {choice}, and XLA of jax {jax.__version__} does not know its options: leave it out"
        )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--shape", choices=SHAPES, help="random weights of this shape, made in memory")
    which.add_argument("--model", default="joey", help="as for kangaroo_jax.load; with an adapter (default: joey)")
    add("--dtype", choices=("float32", "bfloat16"), help="of all weights (default: fp32 on a CPU, else bf16)")
    add("--exit-layer", type=int, help="layers of the draft model (default: the model's; of a shape, 2, or 1 in 13)")
    add("--gamma", type=int, nargs="+", default=Settings.gammas, help="tokens drafted in each round (default: 3 6)")
    add("--acceptance", type=float, nargs="+", default=Settings.acceptances, help="(default: 0.6 0.7 0.8)")
    add("--rows", type=int, nargs="+", default=Settings.rows, help="rows of verifications (default: 1 to 16)")
    add("--tokens", type=int, default=Settings.tokens, help="tokens that a run decodes (default: %(default)s)")
    add("--repeats", type=int, default=Settings.repeats, help="turns that time all once (default: %(default)s)")
    add("--graph", choices=(*GRAPHS, "both"), help="CUDA graphs; GPU only but for default (default: as `generate`)")
    add("--megabytes", type=int, default=machine.megabytes(), help="MiB of bandwidth's matrix (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status.

    Raises:
        ValueError: if something asked for cannot be measured.
    """
    graph = args.graph or ("one" if jax.default_backend() == "gpu" else "default")
    check_graph(graph)
    settings = Settings(
        tuple(args.gamma), tuple(args.acceptance), tuple(args.rows), args.tokens, args.repeats, args.megabytes
    )
    check_file("--json", args.json)
    if args.shape:
        dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        params = random_params(args.shape, dtype, SHAPES[args.shape], args.exit_layer)
    else:
        params = kangaroo_jax.load(args.model, dtype=args.dtype, exit_layer=args.exit_layer)
    figures = measure(params, settings, ["default", "one"] if graph == "both" else [graph])
    print("\n".join(report(figures)))
    write_figures(args.json, figures)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status: 0, 2 on bad input, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
