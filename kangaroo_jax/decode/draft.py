"""Drafting: the draft model is the target's first layers, the adapter and the target's own head (paper, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.decode.state import RUNNING, DecodeState, Weights, newest
from kangaroo_jax.model import KVCache, LlamaConfig, embed, head, run_adapter, run_layers

Propose = Callable[..., tuple[Array, Array, KVCache | None]]


def propose(
    config: LlamaConfig,
    weights: Weights,
    hidden: Float[Array, "B 1 D"],
    positions: Int[Array, "B 1"],
    cache: KVCache | None,
) -> tuple[Int[Array, " B"], Float[Array, " B"], KVCache | None]:
    """Draft the token after ``positions`` from hidden states of the exit layer: adapter, LM head, argmax.

    Returns:
        The drafted tokens; their confidence, the top-1 softmax probability ``1 / sum(exp(logits - max))`` in fp32;
        and the adapter's cache with this position written.
    """
    adapted, cache = run_adapter(config, weights["adapter"], hidden, positions, cache)
    logits = head(weights["target"], adapted)[:, 0]
    confidence = 1.0 / jnp.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), confidence, cache


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """What the compiled decode loop depends on; a new value of any field compiles anew.

    Attributes:
        config: shape of the target.
        exit_layer: layers the draft model shares with the target (l).
        gamma: largest number of tokens drafted in one round; 0 decodes plainly.
        propose: drafts one token from a hidden state; replaced in tests by an oracle and a fool.
    """

    config: LlamaConfig
    exit_layer: int
    gamma: int
    propose: Propose = propose

    @property
    def rows(self) -> int:
        """Rows of a verification: ``gamma + 1`` rounded up to a multiple of 8.

        At joey's shape a CPU's product over 8 rows is no slower than one over 4 to 7 (docs/joey.md), and where reading
        the weights takes all the time, as on a GPU, it costs the same.
        """
        return -(-(self.gamma + 1) // 8) * 8


class Draft(struct.PyTreeNode):
    """What one drafting phase leaves for verification.

    Attributes:
        tokens: drafted tokens, ``[B, G]``; valid up to ``count``.
        count: tokens drafted for each sequence, at least 1 while it runs, ``[B]``.
        hidden: ``hidden_states[l]`` of the newest committed token and of every drafted one, ``[B, R, D]``; R is
            ``DecodeSpec.rows``, rows beyond ``count`` are zeros or stale.
        caches: the shallow layers' caches, written at all those positions.
        adapter: the adapter's cache, written at all those positions.
    """

    tokens: Int[Array, "B G"]
    count: Int[Array, " B"]
    hidden: Float[Array, "B R D"]
    caches: tuple[KVCache, ...]
    adapter: KVCache | None


class _Carry(struct.PyTreeNode):
    step: Int[Array, ""]
    active: Bool[Array, " B"]
    draft: Draft


def draft(spec: DecodeSpec, weights: Weights, state: DecodeState, eta: Float[Array, ""]) -> Draft:
    """Draft until no sequence is confident any more, or ``gamma`` tokens are drafted.

    A token drafted with confidence below ``eta`` ends the drafting of its sequence, and is kept: it is verified like
    the others. While some sequence goes on, the others run along and their results are not counted.

    Args:
        spec: static description.
        weights: target and adapter.
        state: the state between two rounds.
        eta: confidence below which drafting stops; a traced scalar.

    Returns:
        The draft. Afterwards shallow and adapter caches cover every position a round can commit, also when all drafts
        are accepted: the adapter has seen the last drafted token too.
    """
    token, position = newest(state)
    batch = token.shape[0]

    def shallow(token: Array, position: Array, caches: tuple[KVCache, ...]) -> tuple[Array, Any]:
        x = embed(weights["target"], token)
        return run_layers(spec.config, weights["target"], x, position, caches, 0, spec.exit_layer)

    def keep_drafting(carry: _Carry) -> Array:
        return carry.active.any() & (carry.step < spec.gamma)

    def draft_one(carry: _Carry) -> _Carry:
        step, now = carry.step, carry.draft
        hidden = jax.lax.dynamic_slice_in_dim(now.hidden, step, 1, axis=1)
        drafted, confidence, adapter = spec.propose(spec.config, weights, hidden, position + step, now.adapter)
        hidden, caches = shallow(drafted[:, None], position + step + 1, now.caches)
        after = Draft(
            tokens=jax.lax.dynamic_update_slice(now.tokens, drafted[:, None], (0, step)),
            count=now.count + carry.active,
            hidden=jax.lax.dynamic_update_slice(now.hidden, hidden, (0, step + 1, 0)),
            caches=caches,
            adapter=adapter,
        )
        return _Carry(step + 1, carry.active & (confidence >= eta), after)

    first, caches = shallow(token, position, state.caches[: spec.exit_layer])
    hidden = jnp.zeros((batch, spec.rows, first.shape[-1]), first.dtype)
    start = Draft(
        tokens=jnp.zeros((batch, spec.gamma), jnp.int32),
        count=jnp.zeros((batch,), jnp.int32),
        hidden=jax.lax.dynamic_update_slice(hidden, first, (0, 0, 0)),
        caches=caches,
        adapter=state.adapter,
    )
    carry = _Carry(jnp.zeros((), jnp.int32), state.finish == RUNNING, start)
    done = jax.lax.while_loop(keep_drafting, draft_one, carry).draft
    return done.replace(adapter=_close_hole(spec, weights, done, position))


def _close_hole(spec: DecodeSpec, weights: Weights, draft: Draft, position: Int[Array, "B 1"]) -> KVCache | None:
    """Write the adapter's keys and values of the last drafted token, which drafting itself never feeds to it.

    Only the cache is used, so the compiler drops all but the projection of one row.
    """
    if draft.adapter is None:
        return None
    last = jnp.take_along_axis(draft.hidden, draft.count[:, None, None], axis=1)
    return run_adapter(spec.config, weights["adapter"], last, position + draft.count[:, None], draft.adapter)[1]
