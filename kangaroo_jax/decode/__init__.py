"""The algorithm: prefill, then rounds of draft, verify, accept, commit. Pure functions; one idea a file."""

from kangaroo_jax.decode.accept import accept_greedy, accept_sampled
from kangaroo_jax.decode.drafter import PLAIN, DecodeSpec, Drafter, Piece, Verified, token_draft
from kangaroo_jax.decode.kangaroo import Kangaroo
from kangaroo_jax.decode.likely import surest
from kangaroo_jax.decode.loop import decode, plain_round, speculative_round
from kangaroo_jax.decode.prefill import allocate, bucket, cache_slots, prefill, prefill_chunk
from kangaroo_jax.decode.sampling import NATIVE, Cut, Sampling, cut, log_probabilities, most_likely
from kangaroo_jax.decode.state import (
    LENGTH,
    RUNNING,
    STOP,
    Caches,
    Controls,
    DecodeState,
    Draft,
    Weights,
    commit,
    newest,
)
from kangaroo_jax.decode.stats import DecodeStats
from kangaroo_jax.decode.tree import Tree, accept_tree, last_row, tree_of
from kangaroo_jax.decode.verify import verify

__all__ = [
    "LENGTH",
    "NATIVE",
    "PLAIN",
    "RUNNING",
    "STOP",
    "Caches",
    "Controls",
    "Cut",
    "DecodeSpec",
    "DecodeState",
    "DecodeStats",
    "Draft",
    "Drafter",
    "Kangaroo",
    "Piece",
    "Sampling",
    "Tree",
    "Verified",
    "Weights",
    "accept_greedy",
    "accept_sampled",
    "accept_tree",
    "allocate",
    "bucket",
    "cache_slots",
    "commit",
    "cut",
    "decode",
    "last_row",
    "log_probabilities",
    "most_likely",
    "newest",
    "plain_round",
    "prefill",
    "prefill_chunk",
    "speculative_round",
    "surest",
    "token_draft",
    "tree_of",
    "verify",
]
