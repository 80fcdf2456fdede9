"""Native kernels against XLA on a CPU, in one run and in turn: steps, verifications, prefill and whole generations.

python -m bench.kernels                         joey, and the texts of its held-out prompts
python -m bench.kernels --shape small-100m      random weights of a shape: no texts, but everything else

Three ways to run a model are compared: XLA in fp32, native kernels with weights kept in fp32, and native kernels with
weights kept in bf16, the arithmetic in fp32 in all of them. For the last one the weights are rounded to bf16 first,
where they are not bf16 already, and all three run the rounded ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kangaroo_jax
from bench import machine
from bench.peers import Generate, race
from bench.question_set import JOEY_QUESTIONS, prompt_of, read_questions
from bench.shapes import random_params
from bench.traffic import traffic
from kangaroo_jax.engine import Options, Run, plan
from kangaroo_jax.kernels import instruction_set, pack_adapter, pack_target, why_not
from kangaroo_jax.progress import progress
from kangaroo_jax.tuning import CostTimers
from workshop.command import check_counts, exit_status
from workshop.places import check_file, write_figures
from workshop.published_shapes import SHAPES

WAYS = ("xla", "native fp32", "native bf16")
METHODS = ("plain", "kangaroo")
PREFILL = 512


def ways(params: kangaroo_jax.Params) -> dict[str, kangaroo_jax.Params]:
    """Return the model, given as plain fp32 arrays, in each of ``WAYS``.

    Raises:
        ValueError: if there are no native kernels.
    """
    if (reason := why_not()) is not None:
        raise ValueError(f"there is nothing to compare XLA with: native kernels cannot be used, {reason}")
    rounded = params.replace(target=jax.tree.map(_rounded, params.target))
    found = {"xla": rounded}
    for way, storage in (("native fp32", jnp.float32), ("native bf16", None)):
        target = pack_target(dict(rounded.target), storage)
        found[way] = rounded.replace(target=target, adapter=pack_adapter(params.adapter, storage))
    return found


def _rounded(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.bfloat16).astype(jnp.float32) if leaf.ndim == 2 else leaf


def prefill_timer(params: kangaroo_jax.Params) -> Any:
    """Return a timer of the prefill of a prompt of ``PREFILL`` random tokens, or as many as the model takes."""
    length = min(PREFILL, params.config.max_position_embeddings // 2)
    ids = np.random.default_rng(0).integers(3, params.config.vocab_size, length).tolist()
    checked = plan(params, Options(method="plain", max_new_tokens=2))
    Run(params, [ids], checked)
    return lambda: Run(params, [ids], checked).prefill_seconds / length


def texts(
    models: Mapping[str, kangaroo_jax.Params], questions: Path, limit: int, tokens: int, repeats: int, tick: Any
) -> dict[str, Any]:
    """Generate from held-out prompts in every way, plainly and with Kangaroo, in turn.

    Returns:
        For each way and method tokens per second, prefill included, and the median over prompts of the time it takes
        against plain decoding the same way and against plain decoding with XLA; and on how many prompts all ids agree.
    """

    def generate(way: str, method: str) -> Generate:
        return lambda ids: list(kangaroo_jax.generate(models[way], ids, method=method, max_new_tokens=tokens).token_ids)

    some = models["xla"]
    asked = read_questions(questions)
    spread = asked[:: max(len(asked) // limit, 1)][:limit]  # The file goes task by task.
    prompts = [prompt_of(some, question, []) for question in spread]
    calls = {f"{way}, {method}": generate(way, method) for way in models for method in METHODS}
    rows = race(calls, prompts, repeats, tick)

    def ratio(base: str, name: str) -> float:
        pairs = [zip(row["seconds"][base], row["seconds"][name], strict=True) for row in rows]
        return statistics.median(statistics.median(a / b for a, b in pair) for pair in pairs)

    return {
        "prompts": len(prompts),
        "repeats": repeats,
        "max_new_tokens": tokens,
        "identical": sum(len({tuple(ids) for ids in row["ids"].values()}) == 1 for row in rows),
        "methods": {
            name: {
                "tokens_per_second": sum(len(row["ids"][name]) for row in rows)
                / sum(statistics.median(row["seconds"][name]) for row in rows),
                "against_own_plain": ratio(f"{name.split(',')[0]}, plain", name),
                "against_xla_plain": ratio("xla, plain", name),
            }
            for name in calls
        },
    }


def measure(params: kangaroo_jax.Params, args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything in turn; the figures, as JSON has them."""
    models = ways(params)
    steps = args.repeats * (1 + (0 if args.shape else args.limit))
    with progress(total=steps, desc="compiling", unit="turn") as bar:
        timers = {way: CostTimers(model, gammas=(7,), rows=args.rows) for way, model in models.items()}
        prefills = {way: prefill_timer(model) for way, model in models.items()}
        rate = machine.matvec(machine.megabytes())
        seconds: dict[str, list[float]] = {way: [] for way in models}
        rates = []
        bar.set_description("measuring")
        for _ in range(args.repeats):
            rates.append(rate())
            for way in models:
                timers[way].turn()
                seconds[way].append(prefills[way]())
            bar.update()
        found = None
        if not args.shape:
            found = texts(models, args.questions, args.limit, args.max_new_tokens, args.repeats, bar.update)
    return {
        "model": params.name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params.target)),
        "exit_layer": params.draft.exit_layer if params.draft else None,
        "gamma": params.draft.gamma if params.draft else None,
        "eta": params.draft.eta if params.draft else None,
        "jax": jax.__version__,
        "instructions": instruction_set(),
        "repeats": args.repeats,
        "matvec": statistics.median(rates),
        "ways": {
            way: {
                "costs": timers[way].costs().as_dict(),
                "bytes": traffic(model, timers[way].slots),
                "prefill": statistics.median(seconds[way]),
            }
            for way, model in models.items()
        },
        "texts": found,
    }


def report(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the figures as lines of text."""
    yield (
        f"{figures['model']}: {figures['parameters'] / 1e6:.1f}M parameters, exit layer {figures['exit_layer']}; "
        f"jax {figures['jax']}, {figures['instructions']}; medians of {figures['repeats']} turns"
    )
    yield f"XLA's fp32 matrix-vector product reads {figures['matvec'] / 1e9:.1f} GB/s"
    yield ""
    names = list(figures["ways"])
    yield f"{'':30}" + "".join(f"{name:>14}" for name in names)

    def row(name: str, values: list[str]) -> str:
        return f"{name:30}" + "".join(f"{value:>14}" for value in values)

    ways = [figures["ways"][name] for name in names]
    costs: list[dict[str, Any]] = [way["costs"] for way in ways]
    first = costs[0]["plain"]
    yield row("plain step, ms", [f"{1e3 * cost['plain']:.3f}" for cost in costs])
    yield row("  x XLA", [f"{first / cost['plain']:.2f}" for cost in costs])
    yield row("  GB/s", [f"{way['bytes']['plain'] / way['costs']['plain'] / 1e9:.1f}" for way in ways])
    for rows in costs[0]["verify"]:
        values = [f"{cost['verify'][rows] / cost['plain']:.2f}" for cost in costs]
        yield row(f"verify {rows} row{'s' * (rows != '1')}, plain steps", values)
    yield row("draft step, plain steps", [f"{(c['shallow'] + c['propose']) / c['plain']:.3f}" for c in costs])
    for name in costs[0]["round"]:
        yield row("round without drafts, steps", [f"{cost['round'][name] / cost['plain']:.2f}" for cost in costs])
        yield row("a drafted token adds, steps", [f"{cost['draft'][name] / cost['plain']:.3f}" for cost in costs])
    yield row("prefill, tokens/s", [f"{1 / way['prefill']:.0f}" for way in ways])
    if (found := figures["texts"]) is None:
        return
    yield ""
    yield (
        f"{found['prompts']} held-out prompts, up to {found['max_new_tokens']} tokens, prefill included; "
        f"gamma {figures['gamma']}, eta {figures['eta']:g}; ids equal in all ways on {found['identical']} of them"
    )
    yield f"{'':30}{'tokens/s':>14}{'x own plain':>14}{'x XLA plain':>14}"
    for name, line in found["methods"].items():
        yield (
            f"{name:30}{line['tokens_per_second']:14.0f}{line['against_own_plain']:14.2f}"
            f"{line['against_xla_plain']:14.2f}"
        )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--shape", choices=SHAPES, help="random weights of this shape, made in memory")
    which.add_argument("--model", default="joey", help="as for kangaroo_jax.load; with an adapter (default: joey)")
    add("--adapter", metavar="DIR", help="adapter of the model (default: its own)")
    add("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16], help="rows of verifications (default: 1 to 16)")
    add("--questions", type=Path, default=JOEY_QUESTIONS, metavar="FILE", help="held-out prompts (default: joey's)")
    add("--limit", type=int, default=12, help="only so many prompts, spread over the file (default: %(default)s)")
    add("--max-new-tokens", type=int, default=128, help="token budget of each text (default: %(default)s)")
    add("--repeats", type=int, default=5, help="turns, and runs of each text (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status.

    Raises:
        ValueError: if something asked for cannot be measured.
    """
    check_counts(args, "limit", "max_new_tokens", "repeats")
    if min(args.rows) < 1:
        raise ValueError(f"--rows has {min(args.rows)}; give numbers from 1 on")
    check_file("--json", args.json)
    if args.shape:
        params = random_params(args.shape, "float32", SHAPES[args.shape])
    else:
        params = kangaroo_jax.load(args.model, adapter=args.adapter, dtype="float32", kernels="xla")
        if params.adapter is None:
            raise ValueError(f"{args.model} has no adapter; name one: --adapter DIR")
    figures = measure(params, args)
    print("\n".join(report(figures)))
    write_figures(args.json, figures)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status: 0, 2 on bad input, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
