"""Write text on the terminal with Kangaroo, or compare it with plain decoding.

python -m kangaroo_jax "def fibonacci(n):"      stream a continuation
python -m kangaroo_jax --compare                measure on the built-in prompts
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

import kangaroo_jax
from kangaroo_jax.compare import Pair, compare, read_prompts, summarise


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m kangaroo_jax",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", nargs="?", help="text to continue; with --compare: default, the built-in prompts")
    add("--model", default="joey", help="embedded name, converted directory or alias (default: %(default)s)")
    add("--adapter", type=Path, help="adapter directory (default: the model's own)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32 on a CPU, else bfloat16)")
    add("--max-new-tokens", type=int, default=128, help="token budget (default: %(default)s)")
    add("--gamma", type=int, help="most tokens drafted in a round (default: the adapter's)")
    add("--eta", type=float, help="confidence below which drafting stops (default: the adapter's)")
    add("--method", choices=("kangaroo", "plain"), default="kangaroo", help="how to decode (default: %(default)s)")
    add("--compare", action="store_true", help="run plain and Kangaroo in turn and print speeds, ratio, identity")
    add("--prompts", type=Path, help="with --compare: JSON lines with a 'prompt' each")
    add("--repeats", type=int, default=3, help="with --compare: measured pairs per prompt (default: %(default)s)")
    add("--show", action="store_true", help="with --compare: also write each text, live, before it is measured")
    add("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 if --compare found a difference, 2 on bad input."""
    args = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Not every terminal has every character a model writes.
    try:
        if args.prompt is None and not args.compare:
            raise ValueError('no prompt; try: python -m kangaroo_jax "def fibonacci(n):"  (or --compare, or --help)')
        if args.prompt is not None and args.prompts:
            raise ValueError("both a prompt and --prompts; pass one of them")
        if args.repeats < 1:
            raise ValueError(f"repeats is {args.repeats}; it must be at least 1")
        params = kangaroo_jax.load(args.model, adapter=args.adapter, dtype=args.dtype)
        return _compare(params, args) if args.compare else _continue(params, args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # Whoever reads, "head" for one, has read enough.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - or Python complains once more when it flushes at its end.
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {"max_new_tokens": args.max_new_tokens, "gamma": args.gamma, "eta": args.eta}


def _continue(params: kangaroo_jax.Params, args: argparse.Namespace) -> int:
    options = _options(args) | {"method": args.method}
    if args.json:
        result = kangaroo_jax.generate(params, args.prompt, **options)
        fields = {"text": result.text, "token_ids": result.token_ids, "finish_reason": result.finish_reason}
        print(json.dumps(fields | result.stats.as_dict()))
        return 0
    stats = _write(params, args.prompt, options).stats
    print(
        f"[{stats.new_tokens} tokens, {stats.tokens_per_second:.0f} tokens/s, {stats.rounds} rounds, "
        f"compression rate {stats.compression_rate:.2f}]",
        file=sys.stderr,
    )
    return 0


def _write(params: kangaroo_jax.Params, prompt: str, options: dict[str, Any]) -> kangaroo_jax.Generation:
    """Write prompt and continuation as the rounds commit it; the prompt dimmed on a terminal."""
    pieces = kangaroo_jax.stream(params, prompt, **options)  # Refuses bad input before anything is written.
    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"{dim}{prompt}{plain}", end="", flush=True)
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as end:
            print()
            return end.value


def _compare(params: kangaroo_jax.Params, args: argparse.Namespace) -> int:
    prompts = [{"name": "prompt", "prompt": args.prompt}] if args.prompt is not None else read_prompts(args.prompts)
    if args.show and not args.json:
        for row in prompts:
            print(f"--- {row['name']}")
            _write(params, row["prompt"], _options(args))
            print()
    quiet = args.json or not sys.stderr.isatty()
    with tqdm(total=len(prompts) * args.repeats, desc="comparing", unit="pair", disable=quiet) as bar:
        pairs = compare(params, prompts, **_options(args), repeats=args.repeats, tick=bar.update)
    figures = summarise(pairs)
    print(json.dumps(figures) if args.json else _table(params, pairs, figures))
    return 0 if figures["identical"] else 1


def _table(params: kangaroo_jax.Params, pairs: list[Pair], figures: dict[str, Any]) -> str:
    """Return the comparison as text: a line per prompt, then the sums."""
    width = max(len(pair.name) for pair in pairs)
    lines = [f"{'':{width}}  {'tokens':>6}  {'plain/s':>8}  {'kangaroo/s':>10}  {'speedup':>7}  {'CR':>5}  identical"]
    for pair in pairs:
        count = len(pair.plain.token_ids)
        plain, kangaroo = (
            count / statistics.median(seconds) for seconds in (pair.plain_seconds, pair.kangaroo_seconds)
        )
        lines.append(
            f"{pair.name:{width}}  {count:6d}  {plain:8.0f}  {kangaroo:10.0f}  {pair.speedup:6.2f}x"
            f"  {pair.kangaroo.stats.compression_rate:5.2f}  {'yes' if pair.identical else 'NO'}"
            f"{'  (repeats one pattern)' if pair.repeats else ''}"
        )
    stats = pairs[0].kangaroo.stats
    without = figures["speedup_without_repetition"]
    lines += [
        "",
        f"model             {params.name}, gamma {stats.gamma}, eta {stats.eta:g}",
        f"plain decoding    {figures['plain_tokens_per_second']:.0f} tokens/s",
        f"Kangaroo          {figures['kangaroo_tokens_per_second']:.0f} tokens/s",
        f"speedup           {figures['speedup']:.2f}x (median over prompts of the median paired ratio)",
        f"without repeats   {'-' if without is None else f'{without:.2f}x'} "
        f"({figures['repetitive_prompts']} of {figures['prompts']} prompts repeat one pattern)",
        f"compression rate  {figures['compression_rate']:.2f} tokens per round",
        f"identical         {'yes' if figures['identical'] else 'NO'}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
