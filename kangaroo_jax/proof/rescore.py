"""The target's logits at one position of a text, computed as plain decoding does it and as verification does it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kangaroo_jax import decode as dec
from kangaroo_jax.engine import compiled
from kangaroo_jax.model import LlamaConfig, embed, init_cache, line, logits, run_layers
from kangaroo_jax.params import Params

_BLOCK = 512  # Most prompt positions that go through the layers at once: memory stays flat in the prompt's length.


def rescore(
    params: Params, prompt: Sequence[int], new: Sequence[int], max_new_tokens: int, gamma: int, lookup: int = 0
) -> tuple[Float[np.ndarray, " V"], ...]:
    """Return the fp32 logits of the token that follows ``prompt + new``, computed in two ways, or with lookup in three.

    Both are the target's, with caches, in the dtype of the params. They differ in how the new positions go through the
    layers: one at a time, as in plain decoding; or, beyond the exit layer, as many at once as a verification has, from
    hidden states that were kept. No round of the decode loop is run, so that a mistake there cannot pass for rounding.

    Args:
        params: from ``load``.
        prompt: ids of the prompt.
        new: ids after it; fewer than ``max_new_tokens``.
        max_new_tokens: the budget of the runs in question. Shapes depend on it and not on ``new``, so that all
            differences share two programs.
        gamma: largest number of tokens drafted in a round.
        lookup: whether tokens are looked up: those go through the shallow layers as a block, too.

    Returns:
        The logits as plain decoding computes them, as verification does, and as it does of tokens that were looked up.
    """
    assert params.draft is not None
    config = params.config
    exit_layer = params.draft.exit_layer
    spec = dec.DecodeSpec(config, dec.Kangaroo(params.draft.adapter, exit_layer=exit_layer), gamma)
    width = dec.bucket(len(prompt))
    longest = min(len(prompt) + max_new_tokens, config.max_position_embeddings)
    text = np.zeros((1, max(width, dec.cache_slots(spec, longest))), np.int32)
    text[0, : len(prompt) + len(new)] = [*prompt, *new]
    start = len(prompt) - (not new)
    block = math.gcd(width, _BLOCK)  # Divides the width: no block goes beyond the slots.
    args = (params.target, text, np.int32(start), np.int32(len(prompt) + len(new)))

    def by(rows: int, exit_layer: int) -> np.ndarray:
        program, _ = compiled(_last_logits, {0: config, 5: exit_layer, 6: rows, 7: block}, *args)
        return np.asarray(program(*args))

    block_of_all = (by(spec.rows, 0),) if lookup else ()
    return by(1, 0), by(spec.rows, exit_layer), *block_of_all


@partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _last_logits(
    config: LlamaConfig,
    target: Any,
    text: Int[Array, "1 S"],
    start: Int[Array, ""],
    end: Int[Array, ""],
    exit_layer: int,
    rows: int,
    block: int,
) -> Float[Array, " V"]:
    """Return the logits after ``text[:end]``: in blocks up to ``start``, then by ``rows`` positions.

    A step may go beyond what is asked for; those slots are overwritten before they are read::

        block 4, start 5, rows 2, end 9      0-3 4-7 | 5-6 7-8

    From ``start`` on, layers before ``exit_layer`` see one position at a time, as in drafting.
    """

    def layers(x: Any, position: Any, caches: Any, first: int, stop: int) -> Any:
        context = line(position + jnp.arange(x.shape[1])[None], text.shape[1])
        return run_layers(config, target, x, context, caches, first, stop)

    def step(size: int, shallow_size: int, position: Any, caches: Any) -> Any:
        x = embed(target, jax.lax.dynamic_slice(text, (0, position), (1, size)))
        shallow, deep = caches[:exit_layer], caches[exit_layer:]

        def draft(index: Any, carry: Any) -> Any:
            x, shallow = carry
            row = jax.lax.dynamic_slice_in_dim(x, index * shallow_size, shallow_size, axis=1)
            row, shallow = layers(row, position + index * shallow_size, shallow, 0, exit_layer)
            return jax.lax.dynamic_update_slice_in_dim(x, row, index * shallow_size, axis=1), shallow

        if exit_layer:
            x, shallow = jax.lax.fori_loop(0, size // shallow_size, draft, (x, shallow))
        x, deep = layers(x, position, deep, exit_layer, config.num_hidden_layers)
        return position + size, (*shallow, *deep), x

    def fill(carry: Any) -> Any:
        return step(block, block, *carry)[:2]

    def score(carry: Any) -> Any:
        position, caches, x = step(rows, 1, *carry[:2])
        return position, caches, logits(config, target, x)[0]

    dtype = target["embed_tokens"]["embedding"].dtype
    caches = init_cache(config, 1, text.shape[1], dtype, config.num_hidden_layers)
    carry = (jnp.zeros((), jnp.int32), caches)
    _, caches = jax.lax.while_loop(lambda carry: carry[0] < start, fill, carry)
    scores = jnp.zeros((rows, config.vocab_size), jnp.float32)
    # The head is in the loop, and sees as many rows as it does in decoding.
    position, _, scores = jax.lax.while_loop(lambda carry: carry[0] < end, score, (start, caches, scores))
    return scores[end - 1 - (position - rows)]
