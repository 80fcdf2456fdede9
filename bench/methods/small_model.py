"""Speculative decoding with a small model of its own as draft model (Leviathan et al. 2023, Chen et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

import kangaroo_jax
from bench.methods.base import Method, Ready, count_parameters
from kangaroo_jax import decode as dec
from kangaroo_jax.checks import integer, real
from kangaroo_jax.kernels import pack_target
from kangaroo_jax.model import KVCache, LlamaConfig, abstract_params, embed, init_cache, line, logits, run_layers
from kangaroo_jax.store import companion

PAPERS = "Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318"
MAKE = "python -m train.draft_model --model MODEL"
_PROBE = 'def f(x):\n    return {"key": [1, 2.5, None]}  # Größe, naïve\n'

Caches = tuple[KVCache, ...]


class _Carry(struct.PyTreeNode):
    step: Int[Array, ""]
    active: Bool[Array, " B"]
    tokens: Int[Array, "B G"]
    confidence: Float[Array, "B G"]
    count: Int[Array, " B"]
    caches: Caches


@dataclasses.dataclass(frozen=True)
class SmallModel(dec.Drafter):
    """Drafts with another Llama; remembers its caches.

    Between rounds these cover ``[0, length - 2)`` at least: of a draft that was accepted whole, the small model has not
    seen the last token. So a round begins with the last two committed tokens, of which the first is nearly always
    written again as it was::

        committed  a b c d e      cached by the small model  a b c d    or, after a draft accepted whole,  a b c
        first step       d e      then one token at a time

    Attributes:
        config: shape of the small model.
    """

    config: LlamaConfig

    @property
    def confident(self) -> bool:
        """Return True: the small model's top-1 probability."""
        return True

    def allocate(self, spec: dec.DecodeSpec, batch: int, slots: int, dtype: jnp.dtype) -> Caches:
        """Return zeroed caches of the small model's layers."""
        return init_cache(self.config, batch, slots, dtype, self.config.num_hidden_layers)

    def read(self, spec: dec.DecodeSpec, weights: dec.Weights, memory: Caches, piece: dec.Piece) -> Caches:
        """Run the small model over the piece."""
        return self._run(weights["drafter"], piece.tokens, piece.positions, memory)[1]

    def draft(
        self, spec: dec.DecodeSpec, weights: dec.Weights, state: dec.DecodeState, controls: dec.Controls
    ) -> dec.Draft:
        """Draft until no sequence is confident any more, or ``gamma`` tokens are drafted.

        As in Kangaroo, a token drafted with confidence below ``controls.eta`` is the last one, and is kept.
        """
        small, newest = weights["drafter"], state.length[:, None] - 1

        def step(tokens: Array, positions: Array, caches: Caches) -> tuple[Array, Array, Caches]:
            x, caches = self._run(small, tokens, positions, caches)
            scores = logits(self.config, small, x[:, -1])
            return *dec.surest(weights, scores)[:2], caches

        def keep_drafting(carry: _Carry) -> Array:
            return carry.active.any() & (carry.step < spec.gamma)

        def draft_one(carry: _Carry) -> _Carry:
            before = jax.lax.dynamic_slice_in_dim(carry.tokens, carry.step - 1, 1, axis=1)
            token, sure, caches = step(before, newest + carry.step, carry.caches)
            return _Carry(
                step=carry.step + 1,
                active=carry.active & (sure >= controls.eta),
                tokens=jax.lax.dynamic_update_slice(carry.tokens, token[:, None], (0, carry.step)),
                confidence=jax.lax.dynamic_update_slice(carry.confidence, sure[:, None], (0, carry.step)),
                count=carry.count + carry.active,
                caches=caches,
            )

        last_two = newest + jnp.array([-1, 0])
        token, sure, caches = step(jnp.take_along_axis(state.tokens, last_two, axis=1), last_two, state.drafter)
        running = state.finish == dec.RUNNING
        start = _Carry(
            step=jnp.ones((), jnp.int32),
            active=running & (sure >= controls.eta),
            tokens=jnp.pad(token[:, None], ((0, 0), (0, spec.gamma - 1))),
            confidence=jnp.pad(sure[:, None], ((0, 0), (0, spec.gamma - 1))),
            count=running.astype(jnp.int32),
            caches=caches,
        )
        done = jax.lax.while_loop(keep_drafting, draft_one, start)
        return dec.token_draft(spec, weights, state, done.tokens, done.count, done.caches, confidence=done.confidence)

    def _run(self, small: Any, tokens: Array, positions: Array, caches: Caches) -> tuple[Array, Caches]:
        context = line(positions, caches[0].slots)
        return run_layers(self.config, small, embed(small, tokens), context, caches, 0, self.config.num_hidden_layers)


def sps(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return speculative decoding with a draft model; without a setting, the one made for this model.

    Raises:
        ValueError: if there is no draft model, it has another vocabulary, or a setting is out of range.
    """
    gamma = integer("gamma", settings["gamma"], 1, params.config.max_position_embeddings)
    eta = real("eta", settings["eta"], "a probability threshold of 0 or more (0: always gamma tokens)")
    name = settings["draft_model"]
    if name is None:
        name = companion(params.name, "draft_model")
        if not name.is_dir():
            raise ValueError(
                f"sps: no draft model in {name}; make one: {MAKE.replace('MODEL', params.name)}, "
                "or set draft_model to any Llama of the same vocabulary"
            )
    few = params.draft_weights == "int8"  # As Kangaroo's adapter.
    small = kangaroo_jax.load(name, dtype=params.dtype, kernels="xla" if few else params.kernels)
    _check_vocabulary(params, small)
    weights = pack_target(dict(small.target), jnp.int8) if few else small.target
    spec = dec.DecodeSpec(params.config, SmallModel(small.config), gamma)
    used = {"draft_model": Path(name).name, "gamma": gamma, "eta": eta}
    return Ready("sps", params, spec, eta, weights, count_parameters(abstract_params(small.config)), used)


def _check_vocabulary(params: kangaroo_jax.Params, small: kangaroo_jax.Params) -> None:
    """Raise ValueError if a token of one model may be another token, or none, of the other."""
    own, other = params.config.vocab_size, small.config.vocab_size
    if own != other:
        raise ValueError(
            f"sps: draft model {small.name} has {other} tokens, the model {own}; give one of the same vocabulary"
        )
    try:
        same = params.tokenizer.encode(_PROBE) == small.tokenizer.encode(_PROBE)
    except ValueError:  # One of them has no tokenizer: the number of tokens is all that is known.
        return
    if not same:
        raise ValueError(
            f"sps: the tokenizer of draft model {small.name} is not the model's; give one of the same vocabulary"
        )


METHODS = (
    Method(
        "sps",
        "a small model of its own drafts, gamma tokens a round (transformers' 5, as Spec-Bench runs it; constant here)",
        PAPERS,
        {"draft_model": None, "gamma": 5, "eta": 0.0},
        sps,
        MAKE,
        "draft_model",
        [{"gamma": g, "eta": eta} for g, eta in ((1, 0.0), (2, 0.0), (3, 0.0), (3, 0.4), (5, 0.4), (5, 0.6))],
    ),
)
