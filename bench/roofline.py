"""How near is decoding to the machine's bandwidth, and is Kangaroo as fast as its parts allow? With any shape's weights.

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
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import kangaroo_jax
from bench import forced, machine
from bench.report_roofline import report
from bench.shapes import random_params
from bench.ties import ROWS, ties
from bench.traffic import size, traffic
from kangaroo_jax import decode as dec
from kangaroo_jax.compiled import ONE_GRAPH, compile_with
from kangaroo_jax.costs import Costs, measure_costs
from kangaroo_jax.model.shapes import SHAPES
from kangaroo_jax.store.files import whole_file

GRAPHS: dict[str, Mapping[str, str]] = {"default": {}, "one": ONE_GRAPH}
"""XLA options by the name that ``--graph`` gives them."""
PROMPT = 64


class Bench:
    """Everything that is timed; one turn times it once, in the same order, so that neighbours can be compared."""

    def __init__(self, params: kangaroo_jax.Params, args: argparse.Namespace, graphs: Sequence[str]) -> None:
        """Make weights' loops and compile them.

        Args:
            params: the model.
            args: of the command.
            graphs: keys of ``GRAPHS``.
        """
        config = params.config
        length = max(min(PROMPT, config.max_position_embeddings // 2), 1)
        if length + args.tokens >= config.max_position_embeddings:
            most = config.max_position_embeddings - length - 1
            raise ValueError(f"--tokens is {args.tokens}; after {length} tokens {params.name} takes at most {most}")
        self.prompt = np.random.default_rng(0).integers(0, config.vocab_size, length).tolist()
        longest = max(length + args.tokens + 1, length + 2 * max(args.rows))
        widest = dec.DecodeSpec(config, 1, max(args.gamma))
        self.slots, self.tokens = dec.cache_slots(widest, longest), args.tokens
        self.timers = {"matvec": machine.matvec(args.megabytes), "copy": machine.copy(args.megabytes)}
        self.loops: dict[tuple[str, int], forced.Loop] = {}
        for graph in graphs:
            self.timers["iteration", graph] = machine.iteration(GRAPHS[graph])
            for gamma in (0, *args.gamma):
                loop = forced.Loop(params, gamma, self.prompt, args.tokens, self.slots, GRAPHS[graph])
                self.loops[graph, gamma] = loop
                for rate in args.acceptance if gamma else (None,):
                    self.timers["decode", graph, gamma, rate] = self._decoding(loop, rate)
        for timer in self.timers.values():
            timer()
        self.times: dict[Any, list[float]] = {name: [] for name in self.timers}

    def _decoding(self, loop: forced.Loop, rate: float | None) -> Callable[[], float]:
        marks = None if rate is None else forced.marks(rate, self.slots)
        return lambda: loop.seconds(marks)

    def turn(self) -> None:
        """Time everything once."""
        for name, timer in self.timers.items():
            self.times[name].append(timer())

    def median(self, *name: Any) -> float:
        """Return the median of what a timer gave."""
        return statistics.median(self.times[name if len(name) > 1 else name[0]])

    def speedup(self, graph: str, gamma: int, rate: float) -> list[float]:
        """Return plain decoding's time over that of forced acceptance, turn by turn."""
        plain, mine = (self.times["decode", graph, *key] for key in ((0, None), (gamma, rate)))
        return [a / b for a, b in zip(plain, mine, strict=True)]

    def forced(self, graph: str, gamma: int, rate: float, costs: Costs, parts: Mapping[str, int]) -> dict[str, Any]:
        """Return the speedup at one acceptance, and what models of a round make of it."""
        loop = self.loops[graph, gamma]
        rounds = forced.rounds(forced.marks(rate, self.slots), loop.start, loop.end, gamma)
        once = self.median("iteration", graph)
        # Every part was timed in a loop of its own; a drafted token, and the rest of a round, take one iteration each.
        draft, rest = costs.shallow + costs.propose - once, costs.shallow + costs.verify[loop.spec.rows] - once
        ratios = self.speedup(graph, gamma, rate)
        return {
            "acceptance": rate,
            "gamma": gamma,
            "expected_tokens_per_round": forced.expected(rate, gamma),
            "tokens_per_round": self.tokens / rounds,
            "by_bytes": self.tokens * parts["plain"] / rounds / (gamma * parts["draft"] + parts["plain"]),
            "by_parts": self.tokens * costs.plain / rounds / (gamma * draft + rest),
            "by_rounds": self.tokens * costs.plain / costs.decode_seconds(gamma, rounds, gamma * rounds),
            "measured": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }


def measure(params: kangaroo_jax.Params, args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything in turns and return the figures, as JSON has them."""
    graphs = [name for name in GRAPHS if args.graph in (name, "both")]
    bar = tqdm(total=args.repeats * len(graphs), desc="compiling", unit="turn", disable=not sys.stderr.isatty())
    bench = Bench(params, args, graphs)
    parts = traffic(params, bench.slots)

    def tick() -> None:
        bench.turn()
        bar.set_description("measuring")
        bar.update()

    settings: dict[str, Any] = {"gammas": args.gamma, "prompt": bench.prompt, "slots": bench.slots}
    costs = {}
    for graph in graphs:  # Verifications alone have no loops to put into a graph: once is enough.
        rows = args.rows if graph == graphs[0] else ()
        costs[graph] = measure_costs(
            params, **settings, rows=rows, repeats=args.repeats, tick=tick, extra=GRAPHS[graph]
        )
    bar.close()
    plain, widest = bench.loops[graphs[0], 0], max(args.gamma)
    different, compared = ties(params, plain)
    return {
        "model": params.name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params.target)),
        "weights": size(params.target),
        "exit_layer": params.draft.exit_layer if params.draft else None,
        "dtype": costs[graphs[0]].dtype,
        "device": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
        "slots": bench.slots,
        "tokens": args.tokens,
        "turns": args.repeats * len(graphs),
        "matvec": bench.median("matvec"),
        "copy": bench.median("copy"),
        "bytes": parts,
        "ties": {"rows": ROWS, "different": different, "compared": compared},
        "rows": bench.loops[graphs[0], widest].spec.rows,
        "graphs": {
            graph: {
                "iteration": bench.median("iteration", graph),
                "plain": bench.median("decode", graph, 0, None) / args.tokens,
                "compile_seconds": sum(
                    loop.compile_seconds for (name, _), loop in bench.loops.items() if name == graph
                ),
                "costs": costs[graph].as_dict(),
                "forced": [
                    bench.forced(graph, gamma, rate, costs[graph], parts)
                    for gamma in args.gamma
                    for rate in args.acceptance
                ],
            }
            for graph in graphs
        },
    }


def check_graph(choice: str) -> None:
    """Raise ValueError where one CUDA graph is asked for and there is no GPU, or an XLA that cannot make it."""
    if choice == "default":
        return
    if (backend := jax.default_backend()) != "gpu":
        raise ValueError(f"--graph is {choice}, which needs an NVIDIA GPU, and JAX runs on {backend}: leave it out")
    if not compile_with(jax.jit(lambda x: x + 1).lower(1.0), dict(ONE_GRAPH))[1]:
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
    add(
        "--dtype", choices=("float32", "bfloat16"), help="of weights and arithmetic (default: fp32 on a CPU, else bf16)"
    )
    add("--exit-layer", type=int, help="layers of the draft model (default: the model's; of a shape, 2, or 1 in 13)")
    add("--gamma", type=int, nargs="+", default=[3, 6], help="tokens drafted in each round (default: 3 6)")
    add("--acceptance", type=float, nargs="+", default=[0.6, 0.7, 0.8], help="probabilities (default: 0.6 0.7 0.8)")
    add(
        "--rows", type=int, nargs="+", default=[*range(1, 17)], help="rows to time a verification of (default: 1 to 16)"
    )
    add("--tokens", type=int, default=128, help="tokens that a run decodes (default: %(default)s)")
    add("--repeats", type=int, default=7, help="turns that time everything once (default: %(default)s)")
    add("--graph", choices=(*GRAPHS, "both"), default="default", help="one: decode loops as one CUDA graph, GPU only")
    add("--megabytes", type=int, default=machine.megabytes(), help="MiB of bandwidth's matrix (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        check_graph(args.graph)
        for name in ("gamma", "rows", "tokens", "repeats", "megabytes"):
            if np.min(getattr(args, name)) < 1:
                raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1")
        if any(not 0 <= rate <= 1 for rate in args.acceptance):
            raise ValueError(f"--acceptance is {args.acceptance}; give probabilities, 0 to 1")
        if args.json and not args.json.parent.is_dir():
            raise ValueError(f"--json is {args.json}, and there is no directory {args.json.parent}: make it first")
        if args.shape:
            dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
            params = random_params(args.shape, dtype, SHAPES[args.shape], args.exit_layer)
        else:
            params = kangaroo_jax.load(args.model, dtype=args.dtype, exit_layer=args.exit_layer)
        figures = measure(params, args)
        print("\n".join(report(figures)))
        if args.json:
            with whole_file(args.json) as staged:
                staged.write_text(json.dumps(figures, indent=1) + "\n")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
