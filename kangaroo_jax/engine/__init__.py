"""The host's side of decoding: what is asked for, what is compiled, what fits the memory, and what comes out."""

from kangaroo_jax.engine.memory import sequence_bytes
from kangaroo_jax.engine.plan import LINES, Options, Plan, plan
from kangaroo_jax.engine.programs import HOST_LOOPS, ONE_GRAPH, compile_with, compiled, options
from kangaroo_jax.engine.prompts import asked, prompt_ids
from kangaroo_jax.engine.results import Generation, Piece, Stats
from kangaroo_jax.engine.run import Kept, Run

__all__ = [
    "HOST_LOOPS",
    "LINES",
    "ONE_GRAPH",
    "Generation",
    "Kept",
    "Options",
    "Piece",
    "Plan",
    "Run",
    "Stats",
    "asked",
    "compile_with",
    "compiled",
    "options",
    "plan",
    "prompt_ids",
    "sequence_bytes",
]
