"""How often a product over several rows decides otherwise than one over a single row: near-ties and rounding."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import kangaroo_jax
from bench.forced import Loop
from kangaroo_jax.engine import compiled
from kangaroo_jax.model import LlamaConfig, embed, line, logits, run_layers

ROWS = 7


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def choices(config: LlamaConfig, rows: int, target: Any, text: Any, caches: Any, place: Any) -> Any:
    """Return the target's choice after each of ``rows`` tokens of a text from ``place`` on, and the caches."""
    tokens = jax.lax.dynamic_slice_in_dim(text, place, rows, axis=1)
    context = line(place + jnp.arange(rows)[None], caches[0].slots)
    x, caches = run_layers(config, target, embed(target, tokens), context, caches, 0, config.num_hidden_layers)
    return jnp.argmax(logits(config, target, x), axis=-1), caches


def ties(params: kangaroo_jax.Params, plain: Loop, rows: int = ROWS) -> tuple[int, int]:
    """Run the text of a plain loop again, several tokens at a time, and count where the choice is another one.

    Args:
        params: the model.
        plain: a loop with gamma 0 that has run; its caches are written anew.
        rows: tokens at a time.

    Returns:
        Choices that differ, and choices compared.
    """
    state, caches = plain.state, plain.state.caches
    text = jax.device_get(state.tokens)[0]
    different = compared = 0
    for place in range(plain.start - 1, plain.end - rows, rows):
        args = (params.target, state.tokens, caches, jnp.int32(place))
        program, _ = compiled(choices, {0: params.config, 1: rows}, *args)
        chosen, caches = program(*args)
        different += int((jax.device_get(chosen)[0] != text[place + 1 : place + 1 + rows]).sum())
        compared += rows
    plain.state = state.replace(caches=caches)
    return different, compared
