"""Drafting: the draft model is the target's first layers, the adapter and the target's own head (paper, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.decode.accept import accept_greedy, accept_sampled
from kangaroo_jax.decode.sampling import DRAFT, choose
from kangaroo_jax.decode.state import RUNNING, Controls, DecodeState, Weights, newest
from kangaroo_jax.model import AdapterConfig, KVCache, LlamaConfig, draft_head, embed, run_adapter, run_layers
from kangaroo_jax.model.layers import linear

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
    adapted, cache = run_adapter(spec.config, weights["adapter"], hidden, positions, cache, spec.adapter)
    return linear(adapted, draft_head(weights["target"], weights["adapter"]), jnp.float32)[:, 0], cache


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """What the compiled decode loop depends on; a new value of any field compiles anew.

    Attributes:
        config: shape of the target.
        exit_layer: layers the draft model shares with the target (l).
        gamma: largest number of tokens drafted in one round; 0 decodes plainly.
        adapter: what the adapter computes.
        sample: whether tokens are drawn at random, or the most likely one is taken.
        truncate: whether top_k and top_p are applied to what is drawn from.
        propose: drafts from a hidden state; replaced in tests by an oracle and a fool.
        accept: the rule of acceptance when tokens are drawn; replaced in tests by wrong ones.
        agree: the rule of acceptance when the most likely tokens are taken; replaced where a measurement forces it.
    """

    config: LlamaConfig
    exit_layer: int
    gamma: int
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    sample: bool = False
    truncate: bool = False
    propose: Propose = propose
    accept: Callable[..., tuple[Array, Array]] = accept_sampled
    agree: Callable[..., Array] = accept_greedy

    @property
    def rows(self) -> int:
        """Rows of a verification: ``gamma + 1`` rounded up to a multiple of 8.

        At joey's shape a CPU's product over 8 rows is no slower than one over 4 to 7 (docs/joey.md), and where reading
        the weights takes all the time, as on a GPU, it costs the same.
        """
        return -(-(self.gamma + 1) // 8) * 8

    @property
    def adapter_cached(self) -> bool:
        """Whether a state has a cache for the adapter."""
        return self.gamma > 0 and self.adapter.made_of.cached

    @property
    def for_prefill(self) -> DecodeSpec:
        """The spec of the prefill that serves this one: the same for each gamma above 0 with as many rows."""
        return dataclasses.replace(self, gamma=max(self.rows - 8, 1) if self.gamma else 0)


class Draft(struct.PyTreeNode):
    """What one drafting phase leaves for verification.

    Attributes:
        tokens: drafted tokens, ``[B, G]``; valid up to ``count``.
        count: tokens drafted for each sequence, at least 1 while it runs, ``[B]``.
        confidence: top-1 probability of the draft model at each drafted token, ``[B, R]``; valid up to ``count``.
        log_q: log-probabilities each token was drawn with, ``[B, G, V]``; None when the most likely one is taken.
        hidden: ``hidden_states[l]`` of the newest committed token and of every drafted one, ``[B, R, D]``; R is
            ``DecodeSpec.rows``, rows beyond ``count`` are zeros or stale.
        caches: the shallow layers' caches, written at all those positions.
        adapter: the adapter's cache, written at all those positions; None where it has none.
    """

    tokens: Int[Array, "B G"]
    count: Int[Array, " B"]
    confidence: Float[Array, "B R"]
    log_q: Float[Array, "B G V"] | None
    hidden: Float[Array, "B R D"]
    caches: tuple[KVCache, ...]
    adapter: KVCache | None


class _Carry(struct.PyTreeNode):
    step: Int[Array, ""]
    active: Bool[Array, " B"]
    draft: Draft


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

    def shallow(token: Array, position: Array, caches: tuple[KVCache, ...]) -> tuple[Array, Any]:
        x = embed(weights["target"], token)
        return run_layers(spec.config, weights["target"], x, position, caches, 0, spec.exit_layer)

    def keep_drafting(carry: _Carry) -> Array:
        return carry.active.any() & (carry.step < spec.gamma)

    def draft_one(carry: _Carry) -> _Carry:
        step, now = carry.step, carry.draft
        hidden = jax.lax.dynamic_slice_in_dim(now.hidden, step, 1, axis=1)
        logits, adapter = spec.propose(spec, weights, hidden, position + step, now.adapter)
        drafted, log_q = choose(spec, controls.sampling, logits, state.seed, state.length, DRAFT + step)
        confidence = 1.0 / jnp.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
        hidden, caches = shallow(drafted[:, None], position + step + 1, now.caches)
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
            adapter=adapter,
        )
        return _Carry(step + 1, carry.active & (confidence >= controls.eta), after)

    first, caches = shallow(token, position, state.caches[: spec.exit_layer])
    hidden = jnp.zeros((batch, spec.rows, first.shape[-1]), first.dtype)
    start = Draft(
        tokens=jnp.zeros((batch, spec.gamma), jnp.int32),
        count=jnp.zeros((batch,), jnp.int32),
        confidence=jnp.zeros((batch, spec.rows), jnp.float32),
        log_q=jnp.zeros((batch, spec.gamma, spec.config.vocab_size), jnp.float32) if spec.sample else None,
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
    after = position + draft.count[:, None]
    return run_adapter(spec.config, weights["adapter"], last, after, draft.adapter, spec.adapter)[1]
