"""Write a checkpoint of a published model's shape with random weights, for measuring conversion, memory and speed.

    python -m bench.shapes vicuna-7b --out DIR

The files are those the models are published as: ``config.json`` and fp16 ``pytorch_model-*-of-*.bin`` shards. Beside
them lies an untrained adapter, so that Kangaroo runs, too. Speed and memory depend on shapes alone, as long as no
weight is zero; the text such a model writes is noise, and hardly a draft is accepted.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kangaroo_jax
from kangaroo_jax.files import check_vacant, whole_directory, write_json
from kangaroo_jax.model import KangarooConfig, LlamaConfig, abstract_adapter, abstract_params, init_adapter
from kangaroo_jax.progress import progress
from kangaroo_jax.store import TORCH_INDEX, TORCH_SINGLE, config_to_hf, entries, save_adapter, write_torch
from kangaroo_jax.text import NoTokenizer
from workshop.command import exit_status
from workshop.published_shapes import SHAPES

_DEVIATION = 0.02


@dataclasses.dataclass(frozen=True)
class RandomTensor:
    """A tensor that exists only while it is written: normal(0.02) matrices, norms near one."""

    shape: tuple[int, ...]
    seed: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return np.dtype(np.float16)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Draw the elements, a row at a time."""
        generator = np.random.default_rng(self.seed)
        values = np.empty(self.shape, self.dtype)
        for row in values.reshape(-1, self.shape[-1]):
            row[:] = generator.standard_normal(self.shape[-1], np.float32) * _DEVIATION + (len(self.shape) == 1)
        return values


def write_random(directory: Path, config: LlamaConfig, seed: int = 0, shard_bytes: int = 10 * 10**9) -> None:
    """Write a random fp16 checkpoint in torch's format, one tensor in memory at a time, and an untrained adapter.

    Args:
        directory: the destination; appears when all is written.
        config: the shape.
        seed: of the values; each tensor has its own stream.
        shard_bytes: a file holds at most this much, unless a single tensor is larger.

    Raises:
        ValueError: if ``directory`` exists.
    """
    tensors = {
        name: RandomTensor(entry.shape, (seed, number)) for number, (name, entry) in enumerate(entries(config).items())
    }
    shards = list(_shards(tensors, shard_bytes))
    names = [TORCH_SINGLE]
    if len(shards) > 1:
        names = [f"pytorch_model-{number + 1:05d}-of-{len(shards):05d}.bin" for number in range(len(shards))]
    with whole_directory(directory) as staged:
        for name, shard in zip(progress(names, desc=f"writing {directory.name}", unit="file"), shards, strict=True):
            write_torch(staged / name, shard)
        if len(shards) > 1:
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            total = sum(tensor.nbytes for tensor in tensors.values())
            write_json(staged / TORCH_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        write_json(staged / "config.json", config_to_hf(config) | {"torch_dtype": "float16"})
        draft = KangarooConfig(exit_layer(config))
        save_adapter(staged / "adapter", config, draft, jax.device_get(init_adapter(config, jax.random.key(seed))), {})


def exit_layer(config: LlamaConfig) -> int:
    """Return where drafting leaves a model of this depth: after 2 of 32 layers, 3 of 40 (paper, section 4), 2 of 10."""
    depth = config.num_hidden_layers
    return max(depth // 13, min(2, depth - 1), 1)


def random_params(name: str, dtype: Any, config: LlamaConfig, draft: int | None = None) -> kangaroo_jax.Params:
    """Return a model of a shape and an untrained adapter, drawn on the device: normal(0.02), norms near one, no zeros.

    Args:
        name: for messages.
        dtype: of all weights; one tensor at a time is drawn in it.
        config: the shape.
        draft: exit layer; default: ``exit_layer``.

    Raises:
        ValueError: if the exit layer is not one of the model's.
    """
    draft = draft or exit_layer(config)
    if not 0 < draft < config.num_hidden_layers:
        raise ValueError(f"exit layer is {draft}; {name} has {config.num_hidden_layers} layers: give a smaller one")
    shapes = {"target": abstract_params(config), "adapter": abstract_adapter(config)}
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [_draw(leaf.shape, jnp.dtype(dtype), key) for leaf, key in zip(leaves, _keys(len(leaves)), strict=True)]
    weights = jax.tree.unflatten(tree, drawn)
    return kangaroo_jax.Params(
        weights["target"], weights["adapter"], config, KangarooConfig(draft), NoTokenizer(name), name
    )


def _keys(count: int) -> Any:
    return jax.random.split(jax.random.key(0), count)


@partial(jax.jit, static_argnums=(0, 1))
def _draw(shape: tuple[int, ...], dtype: Any, key: Any) -> Any:
    values = jax.random.normal(key, shape, dtype) * _DEVIATION + (len(shape) == 1)
    return jnp.where(values == 0, _DEVIATION, values).astype(dtype)  # In bf16 a draw may be 0.


def _shards(tensors: dict[str, RandomTensor], limit: int) -> Iterator[dict[str, RandomTensor]]:
    shard: dict[str, RandomTensor] = {}
    for name, tensor in tensors.items():
        if shard and sum(other.nbytes for other in shard.values()) + tensor.nbytes > limit:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def main(argv: list[str] | None = None) -> int:
    """Write the checkpoint and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.shapes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=tuple(SHAPES), help="whose shape")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; it must not exist")
    parser.add_argument("--shard-gb", type=float, default=10.0, help="largest file in GB (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the values (default: %(default)s)")
    args = parser.parse_args(argv)

    def work() -> None:
        check_vacant(args.out)
        write_random(args.out, SHAPES[args.shape], args.seed, int(args.shard_gb * 10**9))

    return exit_status(work, name="shapes")


if __name__ == "__main__":
    sys.exit(main())
