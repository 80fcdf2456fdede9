"""kangaroo_jax beside transformers' ``generate``: the same checkpoint, prompts and machine, greedily, in turn.

python -m bench.peers                                      joey, the built-in prompts
python -m bench.peers --model DIR --questions FILE         first turns of Spec-Bench's questions
python -m bench.peers --model vicuna-7b --hf DIR           a converted model, and the directory it was made from

transformers runs plainly, with prompt lookup (``prompt_lookup_num_tokens``), and with its own early exit
(``assistant_early_exit``: the model's first layers and its own head draft, as they are, without an adapter). It needs
torch, which kangaroo_jax does not: pip install torch. Where both use one GPU, set XLA_PYTHON_CLIENT_PREALLOCATE=false,
or JAX leaves torch no memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

import kangaroo_jax
from bench.command import check_writable, exit_status
from bench.questions import prompt_of, read_questions
from bench.transformers_peers import Transformers, check_torch, their_directory
from kangaroo_jax.compare import read_prompts
from kangaroo_jax.prompts import prompt_ids
from kangaroo_jax.store.files import whole_file

OURS = ("plain", "kangaroo")
THEIRS = ("transformers", "transformers-lookup", "transformers-early-exit")
Generate = Callable[[list[int]], list[int]]


def methods(params: kangaroo_jax.Params, theirs: Transformers, args: argparse.Namespace) -> dict[str, Generate]:
    """Return what is compared, by name: functions from a prompt's ids to new ids."""
    tokens, eos = args.max_new_tokens, params.config.eos_token_id

    def ours(method: str) -> Generate:
        return lambda ids: list(
            kangaroo_jax.generate(params, ids, method=method, max_new_tokens=tokens, eos_token_id=eos).token_ids
        )

    options: dict[str, dict[str, Any]] = {"transformers": {}}
    options["transformers-lookup"] = {"prompt_lookup_num_tokens": args.lookup_tokens}
    options["transformers-early-exit"] = {"assistant_early_exit": args.early_exit}
    found: dict[str, Generate] = {method: ours(method) for method in OURS if method == "plain" or params.draft}
    for name in THEIRS:
        found[name] = lambda ids, extra=options[name]: theirs.generate(ids, tokens, eos, **extra)  # type: ignore[misc]
    return found


def race(
    calls: Mapping[str, Generate], prompts: Sequence[list[int]], repeats: int, tick: Callable[[], Any] = lambda: None
) -> list[dict[str, Any]]:
    """Run all methods on every prompt in turn, after one unmeasured run of each.

    Args:
        calls: methods by name.
        prompts: ids of the prompts.
        repeats: measured runs of each.
        tick: called after every turn.

    Returns:
        For each prompt the ids of every method, and its wall seconds, prefill included; run i of all of them were
        neighbours.
    """
    rows = []
    for prompt in prompts:
        ids = {name: call(prompt) for name, call in calls.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(repeats):
            for name in list(calls)[:: 1 if repeat % 2 else -1]:  # In turn first, so that drift favours none.
                began = time.perf_counter()
                calls[name](prompt)
                seconds[name].append(time.perf_counter() - began)
            tick()
        rows.append({"prompt_tokens": len(prompt), "ids": ids, "seconds": seconds})
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each method tokens per second, on how many prompts its ids are plain's, and median paired ratios.

    A ratio is a base's time over the method's, on prompts for which both gave the same ids: as many tokens.
    """

    def against(base: str, name: str) -> float | None:
        ratios = [
            statistics.median(a / b for a, b in zip(row["seconds"][base], row["seconds"][name], strict=True))
            for row in rows
            if row["ids"][base] == row["ids"][name]
        ]
        return statistics.median(ratios) if ratios else None

    return {
        name: {
            "tokens_per_second": sum(len(row["ids"][name]) for row in rows)
            / sum(statistics.median(row["seconds"][name]) for row in rows),
            "identical": sum(row["ids"][name] == row["ids"]["plain"] for row in rows),
            "against_transformers": against("transformers", name),
            "against_plain": against("plain", name),
        }
        for name in rows[0]["ids"]
    }


def report(figures: Mapping[str, Any]) -> list[str]:
    """Return the figures as lines of text."""
    lines = [
        f"{figures['model']}, {figures['dtype']}, greedy, up to {figures['max_new_tokens']} tokens, prefill included; "
        f"{figures['prompts']} prompts, {figures['repeats']} runs",
        f"jax {figures['jax']} on {figures['jax_device']}; {figures['peers']} on {figures['torch_device']}",
        f"{'':24}{'tokens/s':>9}{'x transformers':>16}{'x plain':>9}   ids as plain's",
    ]
    for name, row in figures["methods"].items():
        ratios = (row["against_transformers"], row["against_plain"])
        texts = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        rate = f"{row['tokens_per_second']:.{0 if row['tokens_per_second'] >= 100 else 1}f}"
        lines.append(f"{name:24}{rate:>9}{texts[0]:>16}{texts[1]:>9}   {row['identical']} of {figures['prompts']}")
    return lines


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Load the model twice, race, and return the figures, as JSON has them."""
    check_torch()
    directory = their_directory(args.hf or args.model)
    params = kangaroo_jax.load(args.model, dtype=args.dtype)
    dtype = str(params.target["embed_tokens"]["embedding"].dtype)
    theirs = Transformers(directory, dtype)
    args.early_exit = args.early_exit or (params.draft.exit_layer if params.draft else 2)
    if not 0 < args.early_exit < params.config.num_hidden_layers:
        most = params.config.num_hidden_layers - 1
        raise ValueError(f"--early-exit is {args.early_exit}; give one of {params.name}'s layers, 1 to {most}")
    if args.questions:
        prompts = [prompt_of(params, question, []) for question in read_questions(args.questions)]
    else:
        prompts = [prompt_ids(params, row["prompt"])[0][0] for row in read_prompts(args.prompts)]
    prompts = prompts[: args.limit]
    bar = tqdm(total=args.repeats * len(prompts), unit="turn", disable=not sys.stderr.isatty())
    rows = race(methods(params, theirs, args), prompts, args.repeats, bar.update)
    bar.close()
    return {
        "model": params.name,
        "dtype": dtype,
        "max_new_tokens": args.max_new_tokens,
        "prompts": len(prompts),
        "repeats": args.repeats,
        "jax": jax.__version__,
        "jax_device": jax.local_devices()[0].device_kind,
        "peers": theirs.version,
        "torch_device": theirs.device,
        "lookup_tokens": args.lookup_tokens,
        "early_exit": args.early_exit,
        "methods": summary(rows),
        "rows": rows,
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="joey", help="as for kangaroo_jax.load (default: %(default)s)")
    add("--hf", metavar="DIR", help="the same checkpoint for transformers, where --model is a converted one")
    add("--dtype", choices=("float32", "bfloat16"), help="of all weights (default: fp32 on a CPU, else bf16)")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--prompts", type=Path, metavar="FILE", help="JSON lines with a 'prompt' (default: built-in)")
    texts.add_argument("--questions", type=Path, metavar="FILE", help="Spec-Bench's questions; first turns are run")
    add("--limit", type=int, help="only so many prompts, the first ones")
    add("--max-new-tokens", type=int, default=128, help="token budget of each run (default: %(default)s)")
    add("--repeats", type=int, default=3, help="measured runs of each method on a prompt (default: %(default)s)")
    add("--lookup-tokens", type=int, default=10, help="tokens that prompt lookup drafts (default: %(default)s)")
    add("--early-exit", type=int, metavar="LAYER", help="exit of transformers' draft (default: the adapter's, or 2)")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too, with ids and times of every run")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status.

    Raises:
        ValueError: if something asked for cannot be run.
    """
    for name in ("limit", "max_new_tokens", "repeats", "lookup_tokens"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    check_writable("--json", args.json)
    figures = measure(args)
    print("\n".join(report(figures)))
    if args.json:
        with whole_file(args.json) as staged:
            staged.write_text(json.dumps(figures) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status: 0, 2 on bad input, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
