"""Figures of a benchmark, like the paper's: from results alone, one function a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.result_tables import number

Results = Mapping[str, Any]
"""What ``results.json`` holds (``bench.summary``)."""

_WIDTH, _HEIGHT = 3.6, 2.7
_LONGEST = 10  # Positions of a draft that a curve shows.
OVERALL = "overall"


@contextmanager
def _panels(path: Path, count: int, columns: int, height: float = _HEIGHT) -> Iterator[list[Any]]:
    """Yield the axes of as many panels, and write the picture when the block ends.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("matplotlib is not installed; pip install -e '.[bench]'") from None
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_WIDTH * columns, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.6)
        one.set_axisbelow(True)
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _tables(results: Results) -> dict[str, Mapping[str, Any]]:
    """Return the methods' figures by task, and overall."""
    return {**results["tasks"], OVERALL: results[OVERALL]}


def _interval(found: Mapping[str, Any]) -> Sequence[float]:
    """Return the ends of a speedup's interval; a single question gives none, and both are the speedup."""
    return found["speedup_interval"] or (found["speedup"],) * 2


def _colours(names: Sequence[str]) -> dict[str, Any]:
    """Return a colour for each method; plain is grey."""
    from matplotlib import colormaps

    drawn = iter(range(10))
    return {name: "0.6" if name == "plain" else colormaps["tab10"](next(drawn, 9)) for name in names}


def draw_speedups(results: Results, path: Path) -> None:
    """Draw bars of the speedup of each method, a panel for each task; overall with its bootstrap interval."""
    tables = _tables(results)
    names = list(results[OVERALL])
    colours = _colours(names)
    with _panels(path, len(tables), 4, 0.9 + 0.22 * len(names)) as axes:
        for axis, (task, table) in zip(axes, tables.items(), strict=True):
            places = np.arange(len(names))[::-1]
            values = [table[name]["speedup"] for name in names]
            axis.barh(places, values, color=[colours[name] for name in names], height=0.72)
            for place, name in zip(places, names, strict=True):
                axis.plot(_interval(table[name]), [place, place], color="0.2", linewidth=1)
                axis.text(0.03, place, f"{table[name]['speedup']:.2f}", va="center", fontsize=7)
            axis.axvline(1, color="0.2", linewidth=0.8, linestyle=":")
            axis.set_yticks(places, names, fontsize=7)
            axis.set_title(task, fontsize=9)
            axis.tick_params(axis="x", labelsize=7)
            axis.set_xlabel("speedup over plain decoding", fontsize=8)


def draw_ctar(results: Results, path: Path) -> None:
    """Draw CTAR(w), the share of rounds that commit more than w tokens, a panel for each task (paper, figure 1)."""
    tables = _tables(results)
    names = [name for name, found in results[OVERALL].items() if found["ctar"]]
    colours = _colours(names)
    with _panels(path, len(tables), 4) as axes:
        for axis, (task, table) in zip(axes, tables.items(), strict=True):
            for name in names:
                values = table[name]["ctar"][:_LONGEST]
                axis.plot(range(1, len(values) + 1), values, marker=".", label=name, color=colours[name], linewidth=1.2)
            axis.set_title(task, fontsize=9)
            axis.set_xlabel("w", fontsize=8)
            axis.set_ylabel("CTAR(w)", fontsize=8)
            axis.set_ylim(0, 1)
            axis.tick_params(labelsize=7)
        axes[-1].legend(fontsize=6)


def draw_accept_lengths(results: Results, path: Path) -> None:
    """Draw how often a verify round commits 1, 2, ... tokens, a panel for each method that drafts."""
    methods = {name: found for name, found in results[OVERALL].items() if found["ctar"]}
    with _panels(path, len(methods), 4, 2.1) as axes:
        for axis, (name, found) in zip(axes, methods.items(), strict=True):
            counts = {int(length): count for length, count in found["accept_length_counts"].items()}
            rounds = sum(counts.values())
            axis.bar(list(counts), [count / rounds for count in counts.values()], color="tab:blue")
            axis.set_title(f"{name}, mean {number(found['compression_rate'])}", fontsize=9)
            axis.set_xlabel("tokens committed in a round", fontsize=8)
            axis.set_ylabel("share of rounds", fontsize=8)
            axis.tick_params(labelsize=7)


def draw_confidences(found: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path) -> None:
    """Draw how the confidence of accepted and of rejected drafts is distributed, a panel for each task.

    Args:
        found: confidences of accepted and of rejected drafts, by task.
        path: the picture.
    """
    bins = np.linspace(0, 1, 26)
    with _panels(path, len(found), 4) as axes:
        for axis, (task, sides) in zip(axes, found.items(), strict=True):
            for values, label, colour in zip(sides, ("accepted", "rejected"), ("tab:green", "tab:red"), strict=True):
                shown = f"{label} ({len(values)})"
                if values:
                    axis.hist(values, bins=bins, density=True, alpha=0.55, color=colour, label=shown)
            axis.set_title(task, fontsize=9)
            axis.set_xlabel("confidence of the draft", fontsize=8)
            axis.set_ylabel("density", fontsize=8)
            axis.tick_params(labelsize=7)
            if any(sides):
                axis.legend(fontsize=6)


def draw_exit_layers(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw compression rate and speedup over the exit layer."""
    rows = sorted(rows, key=lambda row: row["exit_layer"])
    layers = [row["exit_layer"] for row in rows]
    with _panels(path, 2, 2) as axes:
        for axis, figure, label in zip(
            axes, ("compression_rate", "speedup"), ("compression rate", "speedup over plain decoding"), strict=True
        ):
            axis.plot(layers, [row[figure] for row in rows], marker="o")
            if figure == "speedup":
                for row in rows:
                    axis.plot([row["exit_layer"]] * 2, _interval(row), color="0.4", linewidth=1)
                axis.axhline(1, color="0.2", linewidth=0.8, linestyle=":")
            axis.set_xticks(layers)
            axis.set_xlabel("exit layer", fontsize=8)
            axis.set_ylabel(label, fontsize=8)
            axis.tick_params(labelsize=7)


def draw_grid(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw compression rate, drafted tokens and speedup over eta, a line for each gamma."""
    gammas = sorted({row["gamma"] for row in rows})
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.9, len(gammas)))
    figures = (
        ("compression_rate", "compression rate"),
        ("drafted_per_round", "drafted tokens per round"),
        ("speedup", "speedup over plain decoding"),
    )
    with _panels(path, len(figures), len(figures), 3.2) as axes:
        for axis, (figure, label) in zip(axes, figures, strict=True):
            for gamma, shade in zip(gammas, shades, strict=True):
                line = sorted((row for row in rows if row["gamma"] == gamma), key=lambda row: row["eta"])
                values = [row[figure] for row in line]
                axis.plot([row["eta"] for row in line], values, marker=".", color=shade, label=f"gamma {gamma}")
            axis.set_xlabel("eta", fontsize=8)
            axis.set_ylabel(label, fontsize=8)
            axis.tick_params(labelsize=7)
        axes[-1].axhline(1, color="0.2", linewidth=0.8, linestyle=":")
        axes[0].legend(fontsize=6)
