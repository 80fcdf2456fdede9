"""The algorithm: prefill, then rounds of draft, verify, accept, commit. Pure functions; one idea a file."""

from kangaroo_jax.decode.accept import accept_greedy
from kangaroo_jax.decode.draft import DecodeSpec, Draft, draft, propose
from kangaroo_jax.decode.loop import bucket, cache_slots, decode, kangaroo_round, plain_round, prefill
from kangaroo_jax.decode.state import LENGTH, RUNNING, STOP, DecodeState, DecodeStats, Weights, commit
from kangaroo_jax.decode.verify import verify

__all__ = [
    "LENGTH",
    "RUNNING",
    "STOP",
    "DecodeSpec",
    "DecodeState",
    "DecodeStats",
    "Draft",
    "Weights",
    "accept_greedy",
    "bucket",
    "cache_slots",
    "commit",
    "decode",
    "draft",
    "kangaroo_round",
    "plain_round",
    "prefill",
    "propose",
    "verify",
]
