"""Kangaroo: lossless self-speculative decoding with double early exiting, in JAX and Flax (arXiv 2404.18911).

>>> import kangaroo_jax
>>> params = kangaroo_jax.load("joey")
>>> print(kangaroo_jax.generate(params, "def fibonacci(n):"))  # doctest: +SKIP
"""

from kangaroo_jax.api import generate, stream
from kangaroo_jax.chat import Chat
from kangaroo_jax.engine import Generation, Stats
from kangaroo_jax.model import KangarooConfig, LlamaConfig
from kangaroo_jax.params import Params, load
from kangaroo_jax.proof import LosslessReport, LosslessRow, verify_lossless
from kangaroo_jax.tuning import Tuning, tune
from kangaroo_jax.version import VERSION as __version__

__all__ = [
    "Chat",
    "Generation",
    "KangarooConfig",
    "LlamaConfig",
    "LosslessReport",
    "LosslessRow",
    "Params",
    "Stats",
    "Tuning",
    "__version__",
    "generate",
    "load",
    "stream",
    "tune",
    "verify_lossless",
]
