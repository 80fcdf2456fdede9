"""Ids that are written with native kernels: XLA's, each prompt's own in a batch, and plain decoding's."""

from __future__ import annotations

from functools import cache

import pytest

import kangaroo_jax
from kangaroo_jax.proof.compare import read_prompts
from kangaroo_jax.proof.lossless import verify_lossless

PROMPTS = [row["prompt"] for row in read_prompts()]


@cache
def joey(dtype: str, kernels: str = "native") -> kangaroo_jax.Params:
    return kangaroo_jax.load("joey", dtype=dtype, kernels=kernels)


@pytest.mark.parametrize("method", ["plain", "kangaroo"])
def test_ids_are_xlas_in_fp32(method: str) -> None:
    for prompt in PROMPTS[:2]:
        ids = [
            kangaroo_jax.generate(joey("float32", kernels), prompt, method=method, max_new_tokens=48).token_ids
            for kernels in ("native", "xla")
        ]
        assert ids[0] == ids[1] and len(ids[0]) > 20


def test_a_batch_has_the_ids_that_each_prompt_has_alone() -> None:
    """Some end early, drafts are of different lengths: rows that are left out change nothing."""
    params = joey("float32")
    for method in ("plain", "kangaroo"):
        together = kangaroo_jax.generate(params, PROMPTS[:3], method=method, max_new_tokens=48)
        alone = [kangaroo_jax.generate(params, prompt, method=method, max_new_tokens=48) for prompt in PROMPTS[:3]]
        assert [out.token_ids for out in together] == [out.token_ids for out in alone]


def test_kangaroos_ids_are_plain_decodings_in_bf16() -> None:
    """With XLA near ties are decided by rounding; tests/decode has the same in fp32."""
    report = verify_lossless(joey("bfloat16"), PROMPTS, max_new_tokens=40)
    assert report.identical and len(report.rows) == len(PROMPTS)
