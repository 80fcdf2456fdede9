"""The algorithm: prefill, then rounds of draft, verify, accept, commit. Pure functions; one idea a file."""

from kangaroo_jax.decode.accept import accept_greedy, accept_sampled
from kangaroo_jax.decode.draft import DecodeSpec, Draft, draft, propose
from kangaroo_jax.decode.loop import decode, kangaroo_round, plain_round
from kangaroo_jax.decode.prefill import allocate, bucket, cache_slots, prefill, prefill_chunk
from kangaroo_jax.decode.sampling import Sampling, log_probabilities
from kangaroo_jax.decode.state import (
    LENGTH,
    RUNNING,
    STOP,
    Caches,
    Controls,
    DecodeState,
    DecodeStats,
    Weights,
    commit,
)
from kangaroo_jax.decode.verify import verify

__all__ = [
    "LENGTH",
    "RUNNING",
    "STOP",
    "Caches",
    "Controls",
    "DecodeSpec",
    "DecodeState",
    "DecodeStats",
    "Draft",
    "Sampling",
    "Weights",
    "accept_greedy",
    "accept_sampled",
    "allocate",
    "bucket",
    "cache_slots",
    "commit",
    "decode",
    "draft",
    "kangaroo_round",
    "log_probabilities",
    "plain_round",
    "prefill",
    "prefill_chunk",
    "propose",
    "verify",
]
