"""``--compare``: what it takes and what it prints; the measuring is ``kangaroo_jax.proof.compare``'s."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

import kangaroo_jax
from kangaroo_jax.cli import common_options as options
from kangaroo_jax.cli import terminal
from kangaroo_jax.kernels import describe
from kangaroo_jax.progress import progress
from kangaroo_jax.proof import Pair, built_in, compare, summarise

_WHOLE = 512
"""Token budget of answers that are shown whole."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--compare`` and the options that go with it."""
    add = parser.add_argument
    add("--compare", action="store_true", help="run plain and Kangaroo in turn and print speeds, ratio, identity")
    options.add_prompts(parser, "with --compare: ")
    add(
        "--repeats",
        type=int,
        metavar="N",
        default=3,
        help="with --compare: measured pairs per prompt (default: %(default)s)",
    )
    add("--show", action="store_true", help="with --compare: first write texts, live; of built-in questions, others")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be compared, before a model is loaded.

    Raises:
        ValueError: if there are prompts from two sources, or nothing to repeat.
    """
    if args.prompt is not None and args.prompts:
        raise ValueError("both a prompt and --prompts; pass one of them")
    if args.repeats < 1:
        raise ValueError(f"repeats is {args.repeats}; it must be at least 1")
    options.read(args)


def run(params: kangaroo_jax.Params, args: argparse.Namespace) -> int:
    """Compare and print; returns the exit status: 0, or 1 if token ids differed.

    Raises:
        ValueError: on bad input.
    """
    rows = options.prompts(params, args, [] if args.prompt is None else [args.prompt])
    arguments = options.decoding(args)
    if args.show and not args.json:
        if args.prompt is None and args.prompts is None and not isinstance(rows[0]["prompt"], str):
            whole = {"max_new_tokens": max(args.max_new_tokens, _WHOLE)}
            _show(params, built_in(params, shown=True), arguments | whole)
        else:
            _show(params, rows, arguments)
    with progress(total=len(rows) * args.repeats, desc="comparing", unit="pair", disable=args.json) as bar:
        pairs = compare(params, rows, **arguments, repeats=args.repeats, tick=bar.update)
    figures = summarise(pairs)
    print(json.dumps(figures) if args.json else _table(params, pairs, figures))
    return 0 if figures["identical"] else 1


def _show(params: kangaroo_jax.Params, rows: list[dict[str, Any]], arguments: dict[str, Any]) -> None:
    """Write the text of each prompt as it comes, and below it who wrote how much of it."""
    for row in rows:
        prompt = row["prompt"]
        print(f"--- {row['name'] if isinstance(prompt, str) else prompt[0]['content']}")
        out = terminal.write(params, prompt, arguments)
        drafted = terminal.coloured(f"{sum(out.origins)} drafted and accepted", terminal.GREEN, sys.stdout)
        print(f"[{len(out.origins)} tokens: {drafted}, {out.origins.count(False)} the target's own]\n", flush=True)


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
        f"kernels           {describe(params.kernels)}",
        f"plain decoding    {figures['plain_tokens_per_second']:.0f} tokens/s",
        f"Kangaroo          {figures['kangaroo_tokens_per_second']:.0f} tokens/s",
        f"speedup           {figures['speedup']:.2f}x (median over prompts of the median paired ratio)",
        f"without repeats   {'-' if without is None else f'{without:.2f}x'} "
        f"({figures['repetitive_prompts']} of {figures['prompts']} prompts repeat one pattern)",
        f"compression rate  {figures['compression_rate']:.2f} tokens per round",
        f"identical: {'yes' if figures['identical'] else 'NO'}",
    ]
    if figures["speedup"] < 1:
        lines.append("Drafting costs more here than it saves: `--method plain` is faster, and writes the same.")
        if params.kernels == "xla":
            lines.append("On a CPU it lives on the native kernels; see docs/kernels.md.")
    return "\n".join(lines)
