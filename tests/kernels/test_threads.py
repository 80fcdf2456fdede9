"""Several programs at once share the threads that XLA has: each gets its results, and none waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import kangaroo_jax
from kangaroo_jax.kernels import pack, product

PROMPTS = ["def fib(n):", "import os\n", "class Point:", "for line in file:"]
TOGETHER = 2 * len(PROMPTS)
SECONDS = 300
"""What is not done by then is not waited for any more; it takes a few."""


@cache
def joey() -> kangaroo_jax.Params:
    return kangaroo_jax.load("joey", dtype="float32", kernels="native")


def write(prompt: str, method: str) -> tuple[int, ...]:
    return kangaroo_jax.generate(joey(), prompt, method=method, max_new_tokens=40).token_ids


def test_texts_that_are_written_at_once() -> None:
    """More programs than XLA has threads for, on a machine of a few cores."""
    expected = {prompt: write(prompt, "plain") for prompt in PROMPTS}
    write(PROMPTS[0], "kangaroo")  # Compiled once, here.
    barrier = threading.Barrier(TOGETHER)

    def one(prompt: str, method: str) -> tuple[int, ...]:
        barrier.wait(SECONDS)
        return write(prompt, method)

    with ThreadPoolExecutor(TOGETHER) as pool:
        asked = [(prompt, method) for prompt in PROMPTS for method in ("plain", "kangaroo")]
        futures = [pool.submit(one, *call) for call in asked]
        assert not wait(futures, SECONDS).not_done
    assert [future.result() for future in futures] == [expected[prompt] for prompt, _ in asked]


def test_products_within_one_program_at_once() -> None:
    """XLA may run what does not depend on each other at the same time."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 512)).astype(np.float32)
    kernels = [rng.standard_normal((512, 2048)).astype(np.float32) for _ in range(8)]
    packed = [pack(jnp.asarray(kernel)) for kernel in kernels]
    run = jax.jit(lambda x, packed: [product(x, kernel) for kernel in packed])
    alone = [np.asarray(jax.jit(product)(x, kernel)) for kernel in packed]
    for _ in range(20):
        for found, expected in zip(run(x, packed), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_steps_of_several_threads() -> None:
    """Small calls in quick succession: helpers come late, or to a call that has ended."""
    rng = np.random.default_rng(0)
    kernel = pack(jnp.asarray(rng.standard_normal((320, 1000)).astype(np.float32)))
    x = rng.standard_normal((3, 320)).astype(np.float32)
    run = jax.jit(product)
    expected = np.asarray(run(x, kernel))

    def many() -> int:
        return sum((np.asarray(run(x, kernel)) == expected).all() for _ in range(200))

    with ThreadPoolExecutor(TOGETHER) as pool:
        futures = [pool.submit(many) for _ in range(TOGETHER)]
        assert not wait(futures, SECONDS).not_done
    assert {future.result() for future in futures} == {200}
