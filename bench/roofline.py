"""How good is plain decoding? Bytes of weights read per second, against what a large matrix-vector product reaches.

python -m bench.roofline                   joey
python -m bench.roofline --transformers    and transformers' own generate on the same checkpoint (needs torch)
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import kangaroo_jax
from kangaroo_jax.compare import read_prompts
from kangaroo_jax.store import resolve


def matvec_bandwidth(megabytes: int = 256, repeats: int = 7) -> float:
    """Return the bytes per second that one fp32 matrix-vector product over a matrix of this size reads; the median."""
    rows = 4096
    matrix = jax.random.normal(jax.random.key(0), (rows, megabytes * 2**20 // 4 // rows))
    vector = jnp.ones((1, rows))
    product = jax.jit(lambda x, w: x @ w)
    product(vector, matrix).block_until_ready()

    def seconds() -> float:
        start = time.perf_counter()
        product(vector, matrix).block_until_ready()
        return time.perf_counter() - start

    return matrix.nbytes / statistics.median(seconds() for _ in range(repeats))


def weight_bytes(params: kangaroo_jax.Params) -> int:
    """Return the bytes of weights a plain step reads: all but the embedding table, of which it reads one row."""
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params.target))
    return total - (0 if params.config.tie_word_embeddings else params.target["embed_tokens"]["embedding"].nbytes)


def plain_rate(params: kangaroo_jax.Params, prompt: str, tokens: int) -> float:
    """Return tokens per second of plain decoding, prefill apart."""
    stats = kangaroo_jax.generate(params, prompt, method="plain", max_new_tokens=tokens, eos_token_id=()).stats
    return (stats.new_tokens - 1) / stats.decode_seconds


def transformers_rate(name: str) -> Callable[[str, int], float]:
    """Load the checkpoint with transformers and return the same measurement of its ``generate`` (greedy, fp32)."""
    import transformers

    directory = resolve(name)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)

    def rate(prompt: str, tokens: int) -> float:
        inputs = tokenizer(prompt, return_tensors="pt")
        times = []
        for budget in (1, tokens):  # One token is the prefill.
            start = time.perf_counter()
            model.generate(**inputs, max_new_tokens=budget, min_new_tokens=budget, do_sample=False)
            times.append(time.perf_counter() - start)
        return (tokens - 1) / (times[1] - times[0])

    return rate


def main(argv: list[str] | None = None) -> None:
    """Measure in turn, several times, and print medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="joey", help="as for kangaroo_jax.load (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each (default: %(default)s)")
    parser.add_argument("--transformers", action="store_true", help="also time transformers' generate; needs torch")
    args = parser.parse_args(argv)
    if args.tokens < 2 or args.repeats < 1:
        parser.error("--tokens must be at least 2, --repeats at least 1")
    params = kangaroo_jax.load(args.model, dtype="float32")
    prompt = read_prompts()[0]["prompt"]
    other = transformers_rate(args.model) if args.transformers else None
    plain_rate(params, prompt, args.tokens)
    bandwidth, rates, others = [], [], []
    for _ in range(args.repeats):
        bandwidth.append(matvec_bandwidth())
        rates.append(plain_rate(params, prompt, args.tokens))
        if other:
            others.append(other(prompt, args.tokens))
    reached = statistics.median(r * weight_bytes(params) / b for r, b in zip(rates, bandwidth, strict=True))
    print(f"matrix-vector product   {statistics.median(bandwidth) / 1e9:.1f} GB/s")
    print(f"plain decoding          {statistics.median(rates):.0f} tokens/s")
    print(f"weights read            {statistics.median(rates) * weight_bytes(params) / 1e9:.1f} GB/s")
    print(f"share of bandwidth      {100 * reached:.0f} %")
    if others:
        ratio = statistics.median(r / o for r, o in zip(rates, others, strict=True))
        print(f"transformers' generate  {statistics.median(others):.0f} tokens/s")
        print(f"plain / transformers    {ratio:.1f}")


if __name__ == "__main__":
    main()
