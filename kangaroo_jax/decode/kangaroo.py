"""Drafting: the draft model is the target's first layers, the adapter and the target's own head (paper, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.decode.drafter import Draft, Drafter, Piece
from kangaroo_jax.decode.sampling import DRAFT, choose
from kangaroo_jax.decode.state import RUNNING, Controls, DecodeState, Weights, newest
from kangaroo_jax.model import KVCache, draft_head, embed, init_cache, linear, run_adapter, run_layers

if TYPE_CHECKING:
    from kangaroo_jax.decode.spec import DecodeSpec

Propose = Callable[..., tuple[Array, KVCache | None]]


def propose(
    spec: DecodeSpec,
    weights: Weights,
    hidden: Float[Array, "B 1 D"],
    positions: Int[Array, "B 1"],
    cache: KVCache | None,
) -> tuple[Float[Array, "B V"], KVCache | None]:
    """Return the draft model's logits of the token after ``positions``: adapter and LM head on the exit layer's states.

    Returns:
        fp32 logits, and the adapter's cache, if it has one, with this position written.
    """
    assert spec.adapter is not None
    adapted, cache = run_adapter(spec.config, weights["adapter"], hidden, positions, cache, spec.adapter)
    return linear(adapted, draft_head(weights["target"], weights["adapter"]), jnp.float32)[:, 0], cache


class _Carry(struct.PyTreeNode):
    step: Int[Array, ""]
    active: Bool[Array, " B"]
    draft: Draft


@dataclasses.dataclass(frozen=True)
class Kangaroo(Drafter):
    """Drafts with the target's first layers, an adapter and the target's head; remembers the adapter's cache."""

    @property
    def confident(self) -> bool:
        """Return True: the draft model's top-1 probability."""
        return True

    def allocate(self, spec: DecodeSpec, batch: int, slots: int, dtype: jnp.dtype) -> KVCache | None:
        """Return a zeroed cache, if there is an adapter that drafts and attends."""
        return init_cache(spec.config, batch, slots, dtype, 1)[0] if spec.adapter_cached else None

    def read(self, spec: DecodeSpec, weights: Weights, memory: KVCache | None, piece: Piece) -> KVCache | None:
        """Run the adapter over the states of the exit layer."""
        if memory is None or spec.adapter is None:
            return None
        return run_adapter(spec.config, weights["adapter"], piece.exit, piece.positions, memory, spec.adapter)[1]

    def draft(self, spec: DecodeSpec, weights: Weights, state: DecodeState, controls: Controls) -> Draft:
        """Draft until no sequence is confident any more, as ``decode.draft.draft`` says."""
        return draft(spec, weights, state, controls)


KANGAROO = Kangaroo()


def draft(spec: DecodeSpec, weights: Weights, state: DecodeState, controls: Controls) -> Draft:
    """Draft until no sequence is confident any more, or ``gamma`` tokens are drafted.

    The confidence is the draft model's top-1 probability, in fp32, before temperature and cuts. A token drafted with
    confidence below ``eta`` ends the drafting of its sequence, and is kept: it is verified like the others. While some
    sequence goes on, the others run along and their results are not counted.

    Args:
        spec: static description.
        weights: target and adapter.
        state: the state between two rounds.
        controls: eta, and how tokens are drawn.

    Returns:
        The draft. Afterwards shallow and adapter caches cover every position a round can commit, also when all drafts
        are accepted: the adapter has seen the last drafted token too.
    """
    token, position = newest(state)
    batch = token.shape[0]

    def shallow(token: Array, position: Array, caches: tuple[KVCache, ...], active: Array) -> tuple[Array, Any]:
        x = embed(weights["target"], token)
        count = active.astype(jnp.int32)
        return run_layers(spec.config, weights["target"], x, position, caches, 0, spec.exit_layer, count=count)

    def keep_drafting(carry: _Carry) -> Array:
        return carry.active.any() & (carry.step < spec.gamma)

    def draft_one(carry: _Carry) -> _Carry:
        step, now = carry.step, carry.draft
        hidden = jax.lax.dynamic_slice_in_dim(now.hidden, step, 1, axis=1)
        logits, memory = spec.propose(spec, weights, hidden, position + step, now.drafter)
        drafted, log_q = choose(spec, controls.sampling, logits, state.seed, state.length, DRAFT + step)
        confidence = 1.0 / jnp.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
        hidden, caches = shallow(drafted[:, None], position + step + 1, now.caches, carry.active)
        after = Draft(
            tokens=jax.lax.dynamic_update_slice(now.tokens, drafted[:, None], (0, step)),
            count=now.count + carry.active,
            confidence=jax.lax.dynamic_update_slice(now.confidence, confidence[:, None], (0, step)),
            # Nothing to note (None) when tokens are not drawn.
            log_q=jax.tree.map(
                lambda noted, new: jax.lax.dynamic_update_slice(noted, new[:, None], (0, step, 0)), now.log_q, log_q
            ),
            hidden=jax.lax.dynamic_update_slice(now.hidden, hidden, (0, step + 1, 0)),
            caches=caches,
            drafter=memory,
        )
        return _Carry(step + 1, carry.active & (confidence >= controls.eta), after)

    running = state.finish == RUNNING
    first, caches = shallow(token, position, state.caches[: spec.exit_layer], running)
    hidden = jnp.zeros((batch, spec.rows, first.shape[-1]), first.dtype)
    start = Draft(
        tokens=jnp.zeros((batch, spec.gamma), jnp.int32),
        count=jnp.zeros((batch,), jnp.int32),
        confidence=jnp.zeros((batch, spec.rows), jnp.float32),
        log_q=jnp.zeros((batch, spec.gamma, spec.config.vocab_size), jnp.float32) if spec.sample else None,
        hidden=jax.lax.dynamic_update_slice(hidden, first, (0, 0, 0)),
        caches=caches,
        drafter=state.drafter,
    )
    carry = _Carry(jnp.zeros((), jnp.int32), running, start)
    done = jax.lax.while_loop(keep_drafting, draft_one, carry).draft
    return done.replace(drafter=_close_hole(spec, weights, done, position))


def _close_hole(spec: DecodeSpec, weights: Weights, draft: Draft, position: Int[Array, "B 1"]) -> KVCache | None:
    """Write the adapter's keys and values of the last drafted token, which drafting itself never feeds to it.

    Only the cache is used, so XLA drops all but the projection of one row; the native kernels run the adapter.
    """
    if draft.drafter is None or spec.adapter is None:
        return None
    last = jnp.take_along_axis(draft.hidden, draft.count[:, None, None], axis=1)
    after = position + draft.count[:, None]
    return run_adapter(spec.config, weights["adapter"], last, after, draft.drafter, spec.adapter)[1]
