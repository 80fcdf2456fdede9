"""Ahead-of-time compilation: compile time is known, never counted as decoding, and spent once for all processes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from kangaroo_jax.kernels import Packed
from kangaroo_jax.model import standard_numerics
from kangaroo_jax.store import home

CACHE_SWITCH = "KANGAROO_COMPILATION_CACHE"
GRAPH_SWITCH = "KANGAROO_ONE_GRAPH"
_OFF = ("0", "off", "false", "no")
_LEAST_SECONDS = 0.2
_executables: dict[Any, Any] = {}

OPTIONS: dict[str, dict[str, str]] = {
    # Products over a few rows: Eigen's beat YNNPACK's in most shapes measured (docs/joey.md).
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
}
"""XLA options by platform; dropped where the installed XLA does not know them."""

NARROW_OPTIONS: dict[str, dict[str, str]] = {
    # XLA converts weights narrower than fp32 for products of its own. Moved out of a loop, or all done first, these
    # conversions would hold a second copy of the model. bf16 products are YNNPACK's, which needs none.
    "cpu": {
        "xla_disable_hlo_passes": "while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion",
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    },
}
"""The same for programs with bf16 or fp16 arguments."""

ONE_GRAPH: dict[str, str] = {
    # Without WHILE a loop runs on the host: for each iteration it waits until the predicate has been copied to it. With
    # WHILE alone there are too few operations outside of the loop for a graph, so that nothing is put into any.
    "xla_gpu_graph_min_graph_size": "1",
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,DYNAMIC_SLICE_FUSION,WHILE",
    # CUB's sort is a call into a library that says of no graph that it may be in one. top_k and top_p rank few numbers.
    "xla_gpu_enable_cub_radix_sort": "False",
}
"""XLA options for an NVIDIA GPU: the whole decode loop, with the loop of drafting in it, becomes one CUDA graph.

Programs on one NVIDIA GPU have them, unless ``KANGAROO_ONE_GRAPH`` is 0. Loops in graphs crashed when they were run a
second time until January 2026 (openxla/xla 35760 and 36135), before any jax that this package supports (docs/gpu.md).
"""

HOST_LOOPS: dict[str, None] = dict.fromkeys(ONE_GRAPH)
"""For ``compiled``'s ``extra``: XLA's own settings in place of ``ONE_GRAPH``; the host runs the loops."""


def options(*args: Any) -> dict[str, str] | None:
    """Return the XLA options of a program with these arguments, on the platform JAX runs on."""
    leaves = jax.tree.leaves(args, is_leaf=lambda leaf: isinstance(leaf, Packed))
    # Packed weights are the native kernels' own business, whatever they are stored in.
    dtypes = [leaf.dtype for leaf in leaves if not isinstance(leaf, Packed)]
    narrow = any(jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 for dtype in dtypes)
    if (backend := jax.default_backend()) == "gpu":
        placed = [leaf.sharding for leaf in leaves if getattr(leaf, "sharding", None) is not None]
        spread = any(len(sharding.device_set) > 1 for sharding in placed)
        return ONE_GRAPH if one_graph(jax.local_devices()[0].client.platform_version, spread) else None
    return (NARROW_OPTIONS if narrow else OPTIONS).get(backend)


def one_graph(platform_version: str, spread: bool) -> bool:
    """Return whether a program for a GPU is to be one CUDA graph.

    Args:
        platform_version: what JAX says of the GPUs' runtime. Loops in the graphs of AMD's end the process
            (openxla/xla 46952).
        spread: whether it runs on several GPUs: what these tell each other is in no graph, so that the loop cannot be.
    """
    wanted = os.environ.get(GRAPH_SWITCH, "1").lower() not in _OFF
    return wanted and not spread and "cuda" in platform_version.lower()


def compiled(
    function: Any, static: dict[int, Any], *args: Any, extra: Mapping[str, str | None] | None = None
) -> tuple[Any, float]:
    """Return ``function`` compiled for these arguments, and the seconds that took (0 when it was compiled before).

    Args:
        function: a jitted function.
        static: its static arguments by position; hashable.
        *args: the traced arguments, in order; only their shapes, dtypes and placement matter.
        extra: XLA options beside the usual ones; None takes a usual one away, as in ``HOST_LOOPS``.

    Returns:
        A callable that takes the traced arguments, and compile seconds.
    """
    leaves, tree = jax.tree.flatten(args)
    shapes = tuple((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
    chosen = (*(extra or {}).items(), os.environ.get(GRAPH_SWITCH))
    key = (function, tuple(static.items()), tree, shapes, chosen)
    if key in _executables:
        return _executables[key], 0.0
    merged = list(args)
    for position, value in sorted(static.items()):
        merged.insert(position, value)
    if not _executables:
        _use_persistent_cache()
    start = time.perf_counter()
    with standard_numerics():
        lowered = function.lower(*merged)
    _executables[key], _ = compile_with(lowered, {**(options(*args) or {}), **(extra or {})})
    return _executables[key], time.perf_counter() - start


def compile_with(
    lowered: Any, wanted: Mapping[str, str | None] | None, otherwise: dict[str, str] | None = None
) -> tuple[Any, bool]:
    """Compile with XLA options, or with others where the installed XLA does not know one of them.

    Args:
        lowered: what ``jax.jit(f).lower(...)`` returns.
        wanted: XLA options by name; None is XLA's own setting.
        otherwise: the others; None is XLA's defaults.

    Returns:
        The compiled program, and whether the options were used.
    """
    given = {name: value for name, value in (wanted or {}).items() if value is not None}
    try:
        return lowered.compile(compiler_options=given or None), True
    except jax.errors.JaxRuntimeError as error:
        if not any(reason in str(error) for reason in ("No such compile option", "is not a valid")):
            raise
        return lowered.compile(compiler_options=otherwise), False


def _use_persistent_cache() -> None:
    """Let JAX keep compiled programs in the home folder, unless the user has chosen another place, or none.

    ``KANGAROO_COMPILATION_CACHE=0`` turns it off; a directory set for JAX itself (``JAX_COMPILATION_CACHE_DIR``) is
    left as it is. Where nothing can be written, nothing is kept.
    """
    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if chosen or os.environ.get(CACHE_SWITCH, "1").lower() in _OFF:
        return
    folder = home() / ".compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    compilation_cache.reset_cache()  # JAX looks for a directory once, and something may have been compiled before.


def executables() -> int:
    """Return how many programs have been compiled in this process; for tests that count them."""
    return len(_executables)
