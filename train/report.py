"""The curves of a run as one picture: ``python -m train.report RUN`` draws them anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.run_log import LOG, SEEN, read_log, require_libraries
from workshop.command import exit_status

PANELS = (
    ("cross-entropy, nats", ("loss", "held_out_loss")),
    ("same token chosen", ("top1", "held_out_top1")),
    ("expected acceptance", ("acceptance", "held_out_acceptance")),
    ("tokens per round (decoding)", ("compression_rate",)),
    ("learning rate", ("learning_rate",)),
    ("tokens per second", ("tokens_per_second",)),
)


GROWTH = (
    ("expected acceptance, held-out text", ("held_out_acceptance",)),
    ("tokens per round (decoding held-out prompts)", ("compression_rate",)),
)
_STEPS = "optimiser step"

Curves = Mapping[str, Sequence[tuple[float, float]]]


def draw(directory: Path) -> Path:
    """Draw ``report.png`` of the figures in a run's log, and return its path.

    Raises:
        ValueError: if there is no log, or matplotlib is not installed.
    """
    curves = read_log(directory / LOG)
    if not curves:
        raise ValueError(f"{directory} has no {LOG} with figures; give the folder of a run, OUT-training")
    path = directory / "report.png"
    _panels(curves, PANELS, path, directory.name)
    return path


def draw_growth(directory: Path, path: Path) -> None:
    """Draw acceptance and compression rate of every adapter of a run over the tokens it has been trained on.

    Raises:
        ValueError: if the log has no such figures, or matplotlib is not installed.
    """
    curves = read_log(directory / LOG)
    if not curves.get(SEEN):
        raise ValueError(f"{directory} has no {LOG} with held-out figures; give the folder of a run, OUT-training")
    step, tokens = curves[SEEN][-1]
    millions = tokens / step / 1e6
    scaled = {name: [(at * millions, value) for at, value in curve] for name, curve in curves.items()}
    # Of several adapters the mean says little.
    own = {name: curve for name, curve in scaled.items() if "/" in name} or scaled
    _panels(own, GROWTH, path, None, "million training tokens")


def _panels(
    curves: Curves, panels: Sequence[tuple[str, Sequence[str]]], path: Path, title: str | None, across: str = _STEPS
) -> None:
    """Draw the curves of every panel, each adapter's own, too, and write the picture."""
    own: dict[str, list[str]] = {}
    for name in curves:
        own.setdefault(name.rpartition("/")[2], []).append(name)
    shown = [(heading, [name for key in names for name in own.get(key, [])]) for heading, names in panels]
    shown = [(heading, names) for heading, names in shown if names]
    plt = _pyplot()
    figure, axes = plt.subplots(-(-len(shown) // 2), 2, figsize=(11, 3.2 * -(-len(shown) // 2)), squeeze=False)
    owners = sorted({name.rpartition("/")[0] for name in curves})
    several = len(owners) > 1
    for axis, (heading, names) in zip(axes.flat, shown, strict=False):
        mixed = len({name.rpartition("/")[2] for name in names}) > 1
        for name in names:
            owner, _, key = name.rpartition("/")
            if several and not owner and any(other.endswith(f"/{key}") for other in names):
                continue  # A mean of adapters.
            steps, values = zip(*curves[name], strict=True)
            style = "--" if mixed and key.startswith("held_out") else "-"
            colour = f"C{owners.index(owner)}" if several else None
            label, marker = name if mixed or not owner else owner, "." if len(steps) < 30 else None
            axis.plot(steps, values, style, color=colour, label=label, marker=marker)
        axis.set_title(heading, fontsize=10)
        axis.set_xlabel(across)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=8 if len(names) < 6 else 5)
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    if title:
        figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Draw the picture and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run: OUT-training")
    growth = "draw acceptance and compression rate over training tokens there, instead of all figures into RUN"
    parser.add_argument("--growth", type=Path, metavar="FILE", help=f"{growth} (default: report.png in RUN)")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.growth:
            draw_growth(args.run, args.growth)
        print(args.growth or draw(args.run))

    return exit_status(work, name="report")


def _pyplot() -> Any:
    require_libraries()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    sys.exit(main())
