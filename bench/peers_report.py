"""What ``bench.peers`` measured, as figures and as lines of text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

BASES = {"transformers": "against_transformers", "llama.cpp": "against_llama_cpp", "plain": "against_plain"}
"""What ratios are taken to, where it was run, and their names in the figures."""


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each method tokens per second, on how many prompts its ids are plain's, and median paired ratios.

    A ratio is a base's time over the method's, on prompts for which both gave as many tokens; None where there is none
    or the base was not run.
    """

    def against(base: str, name: str) -> float | None:
        ratios = [
            statistics.median(a / b for a, b in zip(row["seconds"][base], row["seconds"][name], strict=True))
            for row in rows
            if base in row["ids"] and len(row["ids"][base]) == len(row["ids"][name])
        ]
        return statistics.median(ratios) if ratios else None

    return {
        name: {
            "tokens_per_second": sum(len(row["ids"][name]) for row in rows)
            / sum(statistics.median(row["seconds"][name]) for row in rows),
            "identical": sum(row["ids"][name] == row["ids"]["plain"] for row in rows),
            **{key: against(base, name) for base, key in BASES.items()},
        }
        for name in rows[0]["ids"]
    }


def report(figures: Mapping[str, Any]) -> list[str]:
    """Return the figures as lines of text."""
    lines = [
        f"{figures['model']}, {figures['dtype']}, greedy, up to {figures['max_new_tokens']} tokens, prefill included; "
        f"{figures['prompts']} prompts, {figures['repeats']} runs",
        "; ".join([f"jax {figures['jax']} on {figures['jax_device']}", *figures["peers"]]),
        *(f"left out: {reason}" for reason in figures["left_out"]),
    ]
    bases = [base for base in BASES if base in figures["methods"]]
    heads = [f"x {base}" for base in bases]
    lines.append(
        f"{'':24}{'tokens/s':>9}" + "".join(f"{head:>{len(head) + 2}}" for head in heads) + "   ids as plain's"
    )
    for name, row in figures["methods"].items():
        rate = f"{row['tokens_per_second']:.{0 if row['tokens_per_second'] >= 100 else 1}f}"
        ratios = [row[BASES[base]] for base in bases]
        texts = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        cells = "".join(f"{text:>{len(head) + 2}}" for text, head in zip(texts, heads, strict=True))
        lines.append(f"{name:24}{rate:>9}{cells}   {row['identical']} of {figures['prompts']}")
    return lines
