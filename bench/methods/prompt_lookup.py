"""Prompt lookup: drafts what followed the newest tokens where they stood before, in the prompt or the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

import kangaroo_jax
from bench.methods.base import Method, Ready
from kangaroo_jax import decode as dec
from kangaroo_jax.checks import integer

PUBLISHED = "Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding; cf. LLMA, arXiv 2304.04487"


@dataclasses.dataclass(frozen=True)
class PromptLookup(dec.Drafter):
    """Drafts by matching n-grams; has no weights and remembers nothing.

    Attributes:
        max_ngram: longest n-gram that is looked for.
    """

    max_ngram: int

    def draft(
        self, spec: dec.DecodeSpec, weights: dec.Weights, state: dec.DecodeState, controls: dec.Controls
    ) -> dec.Draft:
        """Return ``gamma`` tokens, or none where no n-gram matches."""
        tokens, count = look_up(state.tokens, state.length, self.max_ngram, spec.gamma)
        return dec.token_draft(spec, weights, state, tokens, count, None)


def look_up(
    tokens: Int[Array, "B S"], length: Int[Array, " B"], max_ngram: int, gamma: int
) -> tuple[Int[Array, "B G"], Int[Array, " B"]]:
    """Return what followed the first place where the newest n tokens stood before, for the largest n that has one.

    As the published code has it, ``gamma`` tokens must follow there, and the place must end more than n tokens before
    the text does::

        text a b c x y a b c, gamma 2    n = 3: a b c at the start, drafted x y

    Args:
        tokens: texts.
        length: their lengths.
        max_ngram: largest n; the smallest is 1.
        gamma: tokens to draft.

    Returns:
        The tokens, and how many of them are valid: ``gamma`` or 0.
    """
    place = jnp.arange(tokens.shape[1])[None]
    size = length[:, None]
    start = jnp.zeros_like(length)
    # Whether the newest n tokens of the text end at each place; longer n-grams come later and overrule.
    ends = jnp.ones(tokens.shape, bool)
    for n in range(1, max_ngram + 1):
        token = jnp.take_along_axis(tokens, jnp.maximum(size - n, 0), axis=1)
        ends &= (jnp.roll(tokens, n - 1, axis=1) == token) & (place >= n - 1) & (size >= n)
        after = place + 1
        good = ends & (after + gamma <= size) & (after < size - n)
        start = jnp.where(good.any(1), jnp.argmax(good, axis=1) + 1, start)
    drafted = jnp.take_along_axis(tokens, start[:, None] + jnp.arange(gamma)[None], axis=1)
    return drafted, jnp.where(start > 0, gamma, 0).astype(jnp.int32)


def prompt_lookup(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return prompt lookup on a model.

    Raises:
        ValueError: if a setting is out of range.
    """
    most = params.config.max_position_embeddings
    used = {name: integer(f"prompt-lookup: {name}", settings[name], 1, most) for name in ("max_ngram", "gamma")}
    spec = dec.DecodeSpec(params.config, PromptLookup(used["max_ngram"]), used["gamma"])
    return Ready("prompt-lookup", params, spec, settings=used)


METHODS = (
    Method(
        "prompt-lookup",
        "what followed the newest 3, 2 or 1 tokens where they first stood in prompt and output",
        PUBLISHED,
        {"max_ngram": 3, "gamma": 10},
        prompt_lookup,
        candidates=[{"max_ngram": n, "gamma": gamma} for n, gamma in ((3, 2), (3, 3), (3, 5), (3, 7), (2, 3), (4, 3))],
    ),
)
