"""What batches, streams, sampling, chats and the compilation cache cost or save; every ratio is of neighbouring runs.

python -m bench.generation                 joey, all of it
python -m bench.generation batch stream    only these
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

import kangaroo_jax
from kangaroo_jax.progress import progress
from kangaroo_jax.proof import read_prompts
from kangaroo_jax.store import resolve
from workshop.command import exit_status

TOKENS = 128
Call = Callable[[], Any]


def paired(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """Return the median of each call's time over that of the first, run in turn after one unmeasured run of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, repeats):
        for name in sorted(calls, reverse=turn % 2 == 0):  # In turn first, so that drift favours none.
            start = time.perf_counter()
            calls[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    base = next(iter(calls))
    ratios = {name: statistics.median(a / b for a, b in zip(times[name], times[base], strict=True)) for name in calls}
    return ratios | {"seconds": statistics.median(times[base])}


def methods(params: kangaroo_jax.Params) -> tuple[str, ...]:
    """Return the methods a model can be decoded with."""
    return ("plain",) if params.draft is None else ("kangaroo", "plain")


def batch(params: kangaroo_jax.Params, repeats: int) -> Iterable[str]:
    """Compare one call with a list of prompts with a call for each of them: throughput; no text ends early."""
    texts = [row["prompt"] for row in read_prompts()]
    for method in methods(params):
        for size in (2, 4, 8, 16):
            prompts = (texts * size)[:size]
            options: dict[str, Any] = {"method": method, "max_new_tokens": TOKENS, "eos_token_id": ()}

            def together(prompts: list[str] = prompts, options: dict[str, Any] = options) -> None:
                kangaroo_jax.generate(params, prompts, **options)

            def singles(prompts: list[str] = prompts, options: dict[str, Any] = options) -> None:
                for prompt in prompts:
                    kangaroo_jax.generate(params, prompt, **options)

            ratios = paired({"together": together, "singles": singles}, repeats)
            yield f"batch of {size}, {method:8}   {ratios['singles']:.2f} x the throughput of {size} single calls"


def stream(params: kangaroo_jax.Params, repeats: int) -> Iterable[str]:
    """Compare ``stream`` with ``generate``, by rounds between two looks of the host."""
    prompt = read_prompts()[0]["prompt"]

    def whole() -> None:
        kangaroo_jax.generate(params, prompt, method="kangaroo", max_new_tokens=TOKENS)

    def streamed(rounds: int | None) -> Call:
        return lambda: list(
            kangaroo_jax.stream(params, prompt, method="kangaroo", max_new_tokens=TOKENS, rounds_per_call=rounds)
        )

    choices = (None, 1, 2, 4, 8, 16)
    calls = {"generate": whole} | {f"stream {rounds}": streamed(rounds) for rounds in choices}
    ratios = paired(calls, repeats)
    for rounds in choices:
        label = f"{rounds} rounds a call" if rounds else "default"
        yield f"stream, {label:16}   {ratios[f'stream {rounds}']:.3f} x the time of generate"


def sampling(params: kangaroo_jax.Params, repeats: int) -> Iterable[str]:
    """Compare rounds that draw their tokens with greedy ones, by size of the batch."""
    texts = [row["prompt"] for row in read_prompts()]
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 0}
    settings: dict[str, dict[str, Any]] = {
        "greedy": {},
        "temperature 0.7": drawn,
        "top_k 50": drawn | {"top_k": 50},
        "top_p 0.9": drawn | {"top_p": 0.9},
        "top_k 50, top_p 0.9, min_p 0.05": drawn | {"top_k": 50, "top_p": 0.9, "min_p": 0.05},
    }
    for method in methods(params):
        for size in (1, 8, 16):
            prompts = (texts * size)[:size]
            rounds: dict[str, list[float]] = {name: [] for name in settings}
            for turn in range(-1, repeats):
                for name, options in settings.items():
                    options = options | {"seed": turn + 1, "max_new_tokens": TOKENS, "eos_token_id": ()}
                    stats = [each.stats for each in kangaroo_jax.generate(params, prompts, method=method, **options)]
                    if turn >= 0:
                        rounds[name].append(stats[0].decode_seconds / max(each.rounds for each in stats))
            for name in list(settings)[1:]:
                cost = statistics.median(a / b for a, b in zip(rounds[name], rounds["greedy"], strict=True))
                yield f"batch of {size}, {method:8} {name:32} a round takes {cost:.2f} x a greedy one"


def chat(params: kangaroo_jax.Params, repeats: int) -> Iterable[str]:
    """Compare the prefill of a chat's later turn with that of the whole conversation."""
    question, ratios, counts = read_prompts()[0]["prompt"], [], (0, 0)
    for turn in range(-1, repeats):
        talk = kangaroo_jax.Chat(params, max_new_tokens=TOKENS)
        for _ in range(3):
            kept = talk.send(question).stats
        whole = kangaroo_jax.generate(params, talk.history[:-1], max_new_tokens=1).stats
        counts = kept.prefilled_tokens, whole.prefilled_tokens
        if turn >= 0:
            ratios.append(kept.prefill_seconds / whole.prefill_seconds)
    ratio = statistics.median(ratios)
    yield f"third turn of a chat: {counts[0]} of {counts[1]} tokens prefilled, {ratio:.2f} x the time of all of them"


def start(params: kangaroo_jax.Params, repeats: int) -> Iterable[str]:
    """Compare compile seconds of a first and a later process."""
    code = (
        "import kangaroo_jax\n"
        f"params = kangaroo_jax.load({str(resolve(params.name))!r}, dtype='float32')\n"
        "print(kangaroo_jax.generate(params, 'import os', max_new_tokens=9).stats.compile_seconds)\n"
    )
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(min(repeats, 3)):
        with tempfile.TemporaryDirectory() as home:
            env = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
            env["KANGAROO_HOME"] = home
            for times in (cold, warm):
                run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
                times.append(float(run.stdout))
    yield f"compiling: first process {statistics.median(cold):.2f} s, later ones {statistics.median(warm):.2f} s"


PARTS = {"batch": batch, "stream": stream, "sampling": sampling, "chat": chat, "start": start}


def main(argv: list[str] | None = None) -> int:
    """Measure and print, part by part; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.generation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", help=f"what to measure: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--model", default="joey", help="as for kangaroo_jax.load (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="as for kangaroo_jax.load (default: %(default)s)")
    parser.add_argument("--kernels", default="auto", help="as for kangaroo_jax.load (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measured runs of each (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")

    def work() -> None:
        params = kangaroo_jax.load(args.model, dtype=args.dtype, kernels=args.kernels)
        for name in progress(args.part or PARTS, unit="part"):
            for line in PARTS[name](params, args.repeats):
                tqdm.write(line)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
