"""What is lossless: both methods side by side, where they differ, and whether rounding explains it."""

from kangaroo_jax.proof.compare import Pair, built_in, compare, is_repetition, read_prompts, summarise
from kangaroo_jax.proof.lossless import LosslessReport, LosslessRow, beginning, verify_lossless

__all__ = [
    "LosslessReport",
    "LosslessRow",
    "Pair",
    "beginning",
    "built_in",
    "compare",
    "is_repetition",
    "read_prompts",
    "summarise",
    "verify_lossless",
]
