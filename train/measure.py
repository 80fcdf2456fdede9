"""What a training step of the adapter takes: its speed against matrix products of the same run, and its memory.

python -m train.measure speed                      joey's shape, on this machine
python -m train.measure memory --layers 4 8        Vicuna-7B's shape: compiled, never run, extrapolated to its depth
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kangaroo_jax.model import LlamaConfig, abstract_adapter, abstract_params, init_adapter, init_params
from kangaroo_jax.store import target_sharding
from train.joey import joey_config
from train.loss import distillation_loss
from train.optimizer import adapter_optimizer
from train.step import init_state, make_train_step, place, place_batch, target_mesh
from workshop.command import exit_status
from workshop.places import check_file, write_figures
from workshop.published_shapes import SHAPES as PUBLISHED

SHAPES = {"joey": joey_config(), **{name: PUBLISHED[name] for name in ("vicuna-7b", "vicuna-13b", "vicuna-33b")}}


def step_flops(config: LlamaConfig, length: int) -> float:
    """Return the floating-point operations that the matrix products of a step need per token.

    A forward pass of the target, one and its gradient of the adapter (which costs two), and three products with the
    LM head. Of the T x T products of attention only the half that a causal mask keeps is counted.
    """
    width, heads, pairs = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    attention = 2 * width * config.head_dim * (2 * heads + 2 * pairs) + 2 * length * heads * config.head_dim
    mlp = 6 * width * config.intermediate_size
    return config.num_hidden_layers * (attention + mlp) + 3 * attention + 3 * 2 * width * config.vocab_size


def product_seconds(dtype: Any, size: int) -> tuple[Callable[[], float], float]:
    """Return a timer of one square matrix product of random values, and its floating-point operations."""
    a, b = (jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(0)))
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    product = jax.jit(lambda a, b: jnp.dot(a, b, precision=precision))
    product(a, b).block_until_ready()

    def seconds() -> float:
        start = time.perf_counter()
        product(a, b).block_until_ready()
        return time.perf_counter() - start

    return seconds, 2 * size**3


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Time steps and products in turn; print medians and the median of neighbouring ratios, and return them."""
    config = SHAPES[args.shape]
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (args.rows, args.length)).astype(np.int32)
    batch = place_batch({"tokens": tokens, "mask": np.ones(tokens.shape, bool)})
    optimizer = adapter_optimizer(1e-4, 1000, 100)
    step = make_train_step(distillation_loss(config, args.exit_layer), optimizer, args.accumulate)
    state = place(init_state(init_adapter(config, jax.random.key(1)), optimizer))
    make = jax.jit(lambda key: jax.tree.map(lambda x: x.astype(args.dtype), init_params(config, key)))
    target = place(make(jax.random.key(0)))
    product, flops_of_product = product_seconds(args.dtype, args.product)
    flops = step_flops(config, args.length) * tokens.size / jax.local_device_count()
    times, rates, ratios = [], [], []
    for turn in range(-1, args.repeats):
        before = product()
        start = time.perf_counter()
        state, means = step(state, target, batch)
        jax.block_until_ready((state, means))
        took = time.perf_counter() - start
        seconds = (before + product()) / 2
        if turn >= 0:
            times.append(took)
            rates.append(flops_of_product / seconds)
            ratios.append(flops / took / rates[-1])
    figures = {
        "shape": args.shape,
        "tokens": tokens.size,
        "tokens_per_second": tokens.size / statistics.median(times),
        "flops_per_token": step_flops(config, args.length),
        "product_flops": statistics.median(rates),
        "share": statistics.median(ratios),
        # Where the runtime counts: the most that was held at a time.
        "peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }
    print(f"step             {figures['tokens_per_second']:.0f} tokens/s")
    print(f"needed           {figures['flops_per_token'] / 1e6:.1f} MFLOP a token")
    print(f"matrix products  {figures['product_flops'] / 1e9:.0f} GFLOP/s")
    print(f"share of it      {100 * figures['share']:.0f} %")
    return figures


def compiled_bytes(config: LlamaConfig, args: argparse.Namespace) -> tuple[int, int]:
    """Compile a step without weights and return the bytes a device needs for its arguments, and beside them."""
    optimizer = adapter_optimizer(1e-4, 1000, 100)
    state = jax.eval_shape(lambda adapter: init_state(adapter, optimizer), abstract_adapter(config))
    mesh = target_mesh(args.shard_target) if args.shard_target > 1 else None
    rule = target_sharding(mesh, config) if mesh else None

    def weight(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(args.dtype), sharding=rule(name, leaf) if rule else None)

    target = jax.tree_util.tree_map_with_path(weight, abstract_params(config))
    groups = mesh.shape["data"] if mesh else jax.local_device_count()
    shape = (groups * args.rows, args.length) if mesh else (groups, args.rows, args.length)
    rows = NamedSharding(mesh, PartitionSpec("data")) if mesh else None
    kinds = {"tokens": jnp.int32, "mask": jnp.bool_}
    batch = {name: jax.ShapeDtypeStruct(shape, kind, sharding=rows) for name, kind in kinds.items()}
    step: Any = make_train_step(distillation_loss(config, args.exit_layer), optimizer, args.accumulate, mesh)
    needs = step.lower(state, target, batch).compile().memory_analysis()
    return needs.argument_size_in_bytes, needs.temp_size_in_bytes


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Compile the step for two depths, without weights; print what XLA says it needs, and return it."""
    config = SHAPES[args.shape]
    found = [compiled_bytes(dataclasses.replace(config, num_hidden_layers=layers), args) for layers in args.layers]
    for layers, (arguments, temporary) in zip(args.layers, found, strict=True):
        print(f"{layers} layers: arguments {arguments / 1e9:.2f} GB, temporary {temporary / 1e9:.2f} GB")
    (few, first), (many, second) = found
    layer = (many - few) / (args.layers[1] - args.layers[0])
    whole = few + layer * (config.num_hidden_layers - args.layers[0])
    grown = (second - first) / (args.layers[1] - args.layers[0])
    print(f"temporary memory grows by {grown / 1e9:.3f} GB a layer")
    print(f"{config.num_hidden_layers} layers: arguments {whole / 1e9:.2f} GB, temporary {second / 1e9:.2f} GB")
    return {"shape": args.shape, "argument_bytes": whole, "temporary_bytes": second, "temporary_bytes_a_layer": grown}


def measure(args: argparse.Namespace) -> None:
    """Measure what was asked for.

    Raises:
        ValueError: if the figures cannot be written.
    """
    check_file("--json", args.json)
    write_figures(args.json, {"speed": speed, "memory": memory}[args.part](args))


def main(argv: list[str] | None = None) -> int:
    """Measure, print and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m train.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=("speed", "memory"), help="what to measure")
    add("--shape", choices=SHAPES, help="shape of the target (default: joey for speed, vicuna-7b for memory)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the target (default: %(default)s)")
    add("--rows", type=int, help="sequences of a batch for a copy of the target (default: 8 for speed, 4 for memory)")
    add("--length", type=int, help="tokens of a sequence (default: 512 for speed, 2048 for memory)")
    add("--accumulate", type=int, default=1, help="parts that a batch is computed in (default: %(default)s)")
    add("--shard-target", type=int, default=1, help="devices that share a target; memory only (default: %(default)s)")
    add("--exit-layer", type=int, default=2, help="target layers below the adapter (default: %(default)s)")
    add("--repeats", type=int, default=9, help="measured steps (default: %(default)s)")
    add("--product", type=int, default=1536, help="rows of the matrices it is compared with (default: %(default)s)")
    add("--layers", type=int, nargs=2, default=(4, 6), help="depths that are compiled (default: 4 6)")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args(argv)
    defaults = {"speed": ("joey", 8, 512), "memory": ("vicuna-7b", 4, 2048)}[args.part]
    for name, value in zip(("shape", "rows", "length"), defaults, strict=True):
        setattr(args, name, getattr(args, name) or value)
    return exit_status(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
