"""What training takes on larger machines, as a table: memory of a device, and expected time on eight of them.

    python -m train.sizing                          # every device with the whole target
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m train.sizing --shard-target 8

The step is compiled for the shapes, without weights, and never run. Memory is XLA's own analysis; time is the step's
floating-point operations (``train.measure.step_flops``) at a share of the rates that the devices' data sheets name.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from kangaroo_jax.model import LlamaConfig, abstract_adapter, abstract_params
from train.measure import compiled_bytes, step_flops
from workshop.command import check_numbers, exit_status
from workshop.published_shapes import SHAPES

# Dense products with 16-bit inputs, in operations a second: NVIDIA's data sheets (SXM). The V100's is for float16 only.
RATES = {"V100": 125e12, "A100": 312e12, "H100": 989e12}
DEVICES = 8
TARGETS = ("vicuna-7b", "vicuna-13b", "vicuna-33b")
_DEPTH = 3


def sizes(config: LlamaConfig, args: argparse.Namespace) -> tuple[float, float, float]:
    """Return bytes of a device: the target (or its share of it), adapter with optimiser, and temporary ones of a step.

    The temporary ones are of the compiled step of a model of three layers; they do not grow with the number of layers
    (``train.measure memory``).
    """
    width = jnp.dtype(args.dtype).itemsize
    target = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config))) * width / args.shard_target
    # Params and the optimiser's two averages, in fp32.
    adapter = sum(leaf.size for leaf in jax.tree.leaves(abstract_adapter(config))) * 3 * 4
    shallow = dataclasses.replace(config, num_hidden_layers=_DEPTH)
    return target, adapter, compiled_bytes(shallow, args)[1]


def hours(flops: float, rate: float, share: float) -> float:
    """Return the hours that eight devices of a rate take for so many operations at a share of it."""
    return flops / (DEVICES * rate * share) / 3600


def table(args: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    times = [f"8 x {name}, h" for name in RATES]
    columns = ("target", "target, GB", "adapter, GB", "temporary, GB", "sum, GB", "GFLOP a token", *times)
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for name in args.targets:
        config = SHAPES[name]
        parts = sizes(config, args)
        flops = step_flops(config, args.length)
        cells = [name, *(f"{part / 1e9:.1f}" for part in (*parts, sum(parts))), f"{flops / 1e9:.1f}"]
        cells += [f"{hours(flops * args.tokens, rate, args.share):.1f}" for rate in RATES.values()]
        yield f"| {' | '.join(cells)} |"


def check(args: argparse.Namespace) -> None:
    """Raise ValueError if a number makes no sense, or there are too few devices."""
    check_numbers(
        args,
        ("rows", args.rows >= 1, "at least 1"),
        ("length", args.length >= 2, "at least 2"),
        ("tokens", 0 < args.tokens < math.inf, "above 0 and finite"),
        ("share", 0 < args.share <= 1, "above 0, and 1 at most"),
        ("shard_target", args.shard_target >= 1, "at least 1"),
    )
    if jax.device_count() % args.shard_target:
        raise ValueError(
            f"--shard-target is {args.shard_target}; it must divide the {jax.device_count()} devices here: "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={args.shard_target}"
        )


def main(argv: list[str] | None = None) -> int:
    """Print the table, a line as soon as it is known, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m train.sizing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--targets", nargs="+", choices=SHAPES, default=TARGETS, help="shapes (default: %(default)s)")
    add("--rows", type=int, default=4, help="sequences that a copy of the target computes at a time (default: 4)")
    add("--length", type=int, default=2048, help="tokens of a sequence (default: %(default)s)")
    add("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the target (default: %(default)s)")
    add("--shard-target", type=int, default=1, help="devices that share a target (default: %(default)s)")
    add("--tokens", type=float, default=1e9, help="tokens to train on, for the time (default: %(default)g)")
    add("--share", type=float, default=0.4, help="of the data sheet's rate that is reached (default: %(default)s)")
    args = parser.parse_args(argv)
    args.accumulate, args.exit_layer = 1, 2

    def work() -> None:
        check(args)
        for line in table(args):
            print(line, flush=True)

    return exit_status(work, refused=1)


if __name__ == "__main__":
    sys.exit(main())
