"""The curves of a run as one picture: ``python -m train.report RUN`` draws them anew."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from train.metrics import LOG, read_log, require_libraries

PANELS = (
    ("cross-entropy, nats", ("loss", "held_out_loss")),
    ("same token chosen", ("top1", "held_out_top1")),
    ("expected acceptance", ("acceptance", "held_out_acceptance")),
    ("tokens per round (decoding)", ("compression_rate",)),
    ("learning rate", ("learning_rate",)),
    ("tokens per second", ("tokens_per_second",)),
)


def draw(directory: Path) -> Path:
    """Draw ``report.png`` of the figures in a run's log, and return its path.

    Raises:
        ValueError: if there is no log, or matplotlib is not installed.
    """
    curves = read_log(directory / LOG)
    if not curves:
        raise ValueError(f"{directory} has no {LOG} with figures; give the folder of a run, OUT-training")
    panels = [(title, [name for name in names if name in curves]) for title, names in PANELS]
    panels = [(title, names) for title, names in panels if names]
    plt = _pyplot()
    figure, axes = plt.subplots(-(-len(panels) // 2), 2, figsize=(11, 3.2 * -(-len(panels) // 2)), squeeze=False)
    for axis, (title, names) in zip(axes.flat, panels, strict=False):
        for name in names:
            steps, values = zip(*curves[name], strict=True)
            axis.plot(steps, values, label=name, marker="." if len(steps) < 30 else None)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.suptitle(directory.name)
    figure.tight_layout()
    path = directory / "report.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main(argv: list[str] | None = None) -> int:
    """Draw the picture and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run: OUT-training")
    try:
        print(draw(parser.parse_args(argv).run))
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


def _pyplot() -> Any:
    require_libraries()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    sys.exit(main())
