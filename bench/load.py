"""Load a model, generate with plain decoding and with Kangaroo, and say what it took: seconds and memory.

    python -m bench.load DIR --dtype bfloat16

For models as large as the machine; one prompt of token ids, drawn at random. ``bench.shapes`` makes such a model.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import jax
import numpy as np

import kangaroo_jax
from workshop.command import exit_status

PROMPT_TOKENS = 16


def peak_gib() -> float:
    """Return the largest resident memory that this process has had, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(name: str, dtype: str | None, new_tokens: int) -> None:
    """Load, generate, and print a line for each."""
    began = time.perf_counter()
    params = kangaroo_jax.load(name, dtype=dtype)
    jax.block_until_ready(params.target)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params.target)) / 2**30
    kind = params.dtype.name
    seconds = time.perf_counter() - began
    print(f"load      {seconds:.1f} s, {weights:.2f} GiB of {kind} weights, peak {peak_gib():.2f} GiB", flush=True)
    prompt = np.random.default_rng(0).integers(3, params.config.vocab_size, PROMPT_TOKENS).tolist()
    for method in ("plain", "kangaroo") if params.draft else ("plain",):
        out = kangaroo_jax.generate(params, prompt, method=method, max_new_tokens=new_tokens, eos_token_id=())
        stats = out.stats
        per_token, per_round = (stats.decode_seconds / max(n, 1) for n in (stats.new_tokens - 1, stats.rounds))
        print(
            f"{method:<9} {per_token:.2f} s/token, {per_round:.2f} s/round, {stats.compression_rate:.2f} tokens/round"
        )
        print(f"          compiling {stats.compile_seconds:.1f} s, peak {peak_gib():.2f} GiB")
        print(f"          ids {' '.join(map(str, out.token_ids))}", flush=True)
    if params.draft:
        print(kangaroo_jax.verify_lossless(params, [prompt], max_new_tokens=new_tokens))


def main(argv: list[str] | None = None) -> int:
    """Measure and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="what kangaroo_jax.load takes")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: load's)")
    parser.add_argument("--new-tokens", type=int, default=8, help="tokens to generate (default: %(default)s)")
    args = parser.parse_args(argv)
    return exit_status(lambda: measure(args.model, args.dtype, args.new_tokens), name="load")


if __name__ == "__main__":
    sys.exit(main())
