"""The figures of ``bench.roofline`` as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def report(figures: dict[str, Any]) -> Iterator[str]:
    """Yield the lines: the machine, the parts, and the speedup with forced acceptance; for each choice of graph."""
    best = max(figures["matvec"], figures["copy"])
    yield (
        f"{figures['model']}: {figures['parameters'] / 1e6:.1f}M parameters, {figures['dtype']}, exit layer "
        f"{figures['exit_layer']}; {figures['device']}, jax {figures['jax']}"
    )
    yield (
        f"{figures['slots']} cache slots, {figures['tokens']} tokens a run, medians of {figures['turns']} turns; "
        "compilation and prefill apart"
    )
    for graph, found in figures["graphs"].items():
        yield ""
        if len(figures["graphs"]) > 1 or graph != "default":
            yield f"graph: {graph}; decode loops compiled in {found['compile_seconds']:.1f} s"
        yield from _parts(figures, found, best)
        yield ""
        yield from _speedups(figures, found)
    ties = figures["ties"]
    share = ties["different"] / ties["compared"] if ties["compared"] else 0.0
    yield ""
    yield (
        f"{ties['rows']} rows decide otherwise than one at {ties['different']} of {ties['compared']} positions "
        f"({100 * share:.2f} %)"
    )


def _parts(figures: dict[str, Any], found: dict[str, Any], best: float) -> Iterator[str]:
    costs, read, step = found["costs"], figures["bytes"], found["costs"]["plain"]

    def line(name: str, seconds: float, bytes_read: float) -> str:
        rate = bytes_read / seconds
        return (
            f"{name:34}{1e3 * seconds:10.3f}{seconds / step:9.3f}{bytes_read / 1e6:11.1f}"
            f"{rate / 1e9:9.1f}{100 * rate / best:8.0f} %"
        )

    def rest(name: str, seconds: float) -> str:
        return f"{name:34}{1e3 * seconds:10.3f}{seconds / step:9.3f}"

    yield f"{'':34}{'ms':>10}{'steps':>9}{'MB read':>11}{'GB/s':>9}{'of best':>10}"
    for name, rate in (
        ("matrix-vector product (fp32)", figures["matvec"]),
        ("copy (read and written)", figures["copy"]),
    ):
        yield f"{name:34}{'':30}{rate / 1e9:9.1f}{100 * rate / best:8.0f} %"
    yield line("plain decoding, a token", found["plain"], read["plain"])
    yield line("plain step, as the parts are timed", step, read["plain"])
    yield line("draft step: shallow + propose", costs["shallow"] + costs["propose"], read["draft"])
    yield line("  shallow pass", costs["shallow"], read["shallow"])
    yield line("  propose: adapter, head", costs["propose"], read["propose"])
    for rows, seconds in costs["verify"].items():
        yield line(f"verify, {rows} row{'s' * (rows != '1')}", seconds, read["verify"])
    for rows, seconds in costs["round"].items():
        beyond = seconds - costs["shallow"] - costs["verify"][rows]
        yield rest(f"rest of a round of {rows} rows", beyond)
        yield rest(f"rest of a drafted token ({rows} rows)", costs["draft"][rows] - costs["shallow"] - costs["propose"])
    yield rest("an empty iteration of a loop", found["iteration"])


def _speedups(figures: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    rate = 1 / found["plain"]
    yield f"forced acceptance; plain decoding has {rate:.{0 if rate >= 100 else 1}f} tokens/s"
    yield "   a  gamma  tokens/round   by bytes  by parts  by rounds  measured  (lowest, highest)   off parts"
    for row in found["forced"]:
        off = row["measured"] / row["by_parts"] - 1
        yield (
            f"{row['acceptance']:4.2f}  {row['gamma']:5}"
            f"  {row['tokens_per_round']:5.2f} ({row['expected_tokens_per_round']:.2f})"
            f"{row['by_bytes']:11.2f}{row['by_parts']:10.2f}{row['by_rounds']:11.2f}{row['measured']:10.2f}"
            f"  ({row['lowest']:.2f}, {row['highest']:.2f}){100 * off:+14.1f} %"
        )
