"""How much memory a batch takes, and whether it is there: a refusal that says what would fit, and no crash halfway."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import psutil

from kangaroo_jax import decode as dec

CGROUP = Path("/sys/fs/cgroup")


def check_memory(spec: dec.DecodeSpec, batch: int, slots: int, chunk: int, dtype: Any) -> None:
    """Raise ValueError if the memory that is free now does not hold a batch.

    Args:
        spec: static description.
        batch: sequences.
        slots: cache slots of each.
        chunk: positions that the prefill runs at a time.
        dtype: dtype of the caches.
    """
    free, each = free_bytes(), sequence_bytes(spec, slots, chunk, dtype)
    if batch * each <= free:
        return
    fits = max(free // each, 0)
    advice = f"pass at most {fits} at a time" if fits else "pass a shorter prompt or a smaller max_new_tokens"
    raise ValueError(
        f"{batch} sequence{'s' * (batch > 1)} of up to {slots} tokens need about {_human(batch * each)}, "
        f"and {_human(free)} are free: {advice}"
    )


@functools.cache
def sequence_bytes(spec: dec.DecodeSpec, slots: int, chunk: int, dtype: Any) -> int:
    """Return about how many bytes one sequence of a batch takes: its caches, and the largest arrays in work."""
    config = spec.config
    caches = jax.eval_shape(lambda: dec.allocate(spec, 1, slots, dtype))
    width = jax.numpy.dtype(dtype).itemsize
    held = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(caches))
    if jax.default_backend() == "cpu" and width < 4:
        held += 4 * sum(
            math.prod(leaf.shape) for leaf in jax.tree.leaves(caches[0][0])
        )  # XLA works on fp32 copies, of one layer at a time.
    scores = 2 * config.num_attention_heads * max(chunk, spec.rows) * slots * 4
    logits = (4 if spec.sample else 2) * spec.rows * config.vocab_size * 4
    hidden = 4 * max(chunk, spec.rows) * (config.intermediate_size + config.hidden_size) * 4
    return held + scores + logits + hidden + slots * (4 * 4 + 4 * spec.rows)


def free_bytes() -> int:
    """Return how many bytes are free: of the device where it says so (a GPU), else of the computer."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    return min([psutil.virtual_memory().available, *_container_bytes()])


def _container_bytes() -> list[int]:
    """Return what a container (cgroup 2) leaves free; nothing where there is no limit."""
    try:
        limit, used = ((CGROUP / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        return [] if limit == "max" else [max(int(limit) - int(used), 0)]
    except (OSError, ValueError):
        return []


def _human(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
