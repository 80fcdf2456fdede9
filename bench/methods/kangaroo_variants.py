"""Kangaroo and what is left of it when a part is taken away."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import kangaroo_jax
from bench.methods.base import Method, Ready, count_parameters
from kangaroo_jax import decode as dec
from kangaroo_jax.checks import integer, real
from kangaroo_jax.engine import LINES, Options, plan
from kangaroo_jax.model import KangarooConfig, logits

PAPER = "Liu et al. 2024, arXiv 2404.18911"


def plain(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return plain decoding: no draft, a token for each pass over the model."""
    return Ready("plain", params, plan(params, Options(method="plain")).spec)


def kangaroo(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return Kangaroo; what the settings leave open is the adapter's.

    Raises:
        ValueError: if the model has no adapter.
    """
    checked = plan(params, Options(method="kangaroo", **settings))
    spec, eta = checked.spec, checked.settings[0].eta
    assert isinstance(spec.drafter, dec.Kangaroo)
    of_drafter = {name: getattr(spec.drafter, name) for name in ("siblings", "lookup", "exit_layer")}
    used = {"gamma": spec.gamma, "eta": eta, **of_drafter}
    return Ready("kangaroo", params, spec, eta, None, count_parameters(params.adapter), used)


def kangaroo_fixed(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return Kangaroo without its second early exit: always ``gamma`` tokens."""
    fixed = kangaroo(params, {**settings, "eta": 0.0, **LINES})
    return dataclasses.replace(fixed, name="kangaroo-fixed")


@dataclasses.dataclass(frozen=True)
class ExitHead(dec.Kangaroo):
    """Drafts with the target's own final norm and LM head on the exit layer's states, without an adapter."""

    @property
    def reads_adapter(self) -> bool:
        """Return False."""
        return False

    def vocabulary(self, weights: dec.Weights) -> None:
        """Return None: the head is whole."""

    def allocate(self, spec: dec.DecodeSpec, batch: int, slots: int, dtype: jnp.dtype) -> None:
        """Return nothing to remember."""

    def propose(
        self,
        spec: dec.DecodeSpec,
        weights: dec.Weights,
        hidden: Float[Array, "B 1 D"],
        positions: Int[Array, "B 1"],
        memory: Any,
    ) -> tuple[Float[Array, "B V"], Any]:
        """Return the logits of norm and head."""
        return logits(spec.config, weights["target"], hidden)[:, 0], memory


def early_exit(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return Kangaroo without its adapter: the head straight on the exit layer.

    Raises:
        ValueError: if a setting is out of range.
    """
    layers = params.config.num_hidden_layers
    # As Kangaroo without siblings and lookup, so that the two differ in the adapter alone; else the paper's settings.
    like = params.draft or KangarooConfig(-(-layers // 16))
    asked = {name: getattr(like, name) if settings[name] is None else settings[name] for name in settings}
    gamma = integer("early-exit: gamma", asked["gamma"], 1, params.config.max_position_embeddings)
    eta = real("early-exit: eta", asked["eta"], "a probability threshold of 0 or more")
    layer = integer("early-exit: exit_layer", asked["exit_layer"], 1, layers - 1)
    spec = dec.DecodeSpec(params.config, ExitHead(exit_layer=layer), gamma)
    used = {"gamma": gamma, "eta": eta, "exit_layer": layer}
    return Ready("early-exit", params, spec, eta, settings=used)


METHODS = (
    Method("plain", "one token for each pass over the model", "", {}, plain),
    Method(
        "kangaroo",
        "exit layer, adapter and the target's head draft, until they lose confidence; siblings and lookup as set",
        PAPER,
        {"gamma": None, "eta": None, "siblings": None, "lookup": None},
        kangaroo,
        "python -m train.adapter --model MODEL",
        published={"gamma": 6, "eta": 0.6, **LINES},
    ),
    Method(
        "kangaroo-fixed",
        "the same without the second early exit (eta 0)",
        PAPER,
        {"gamma": None},
        kangaroo_fixed,
        "python -m train.adapter --model MODEL",
    ),
    Method(
        "early-exit",
        "the target's norm and head straight on the exit layer, no adapter",
        "Elhoushi et al. 2024, arXiv 2404.16710 (LayerSkip), without its training",
        {"gamma": None, "eta": None, "exit_layer": None},
        early_exit,
    ),
)
