"""Kangaroo and what is left of it when a part is taken away."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Int

import kangaroo_jax
from bench.methods.base import Method, Ready, count_parameters
from kangaroo_jax import decode as dec
from kangaroo_jax.model import KVCache, logits
from kangaroo_jax.options import Options, plan

PAPER = "Liu et al. 2024, arXiv 2404.18911"


def plain(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return plain decoding: no draft, a token for each pass over the model."""
    return Ready("plain", params, plan(params, Options(method="plain")).spec)


def kangaroo(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return Kangaroo; gamma and eta of the adapter where the settings leave them open.

    Raises:
        ValueError: if the model has no adapter.
    """
    checked = plan(params, Options(method="kangaroo", gamma=settings["gamma"], eta=settings["eta"]))
    used = {"gamma": checked.spec.gamma, "eta": checked.eta, "exit_layer": checked.spec.exit_layer}
    return Ready("kangaroo", params, checked.spec, checked.eta, None, count_parameters(params.adapter), used)


def kangaroo_fixed(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return Kangaroo without its second early exit: always ``gamma`` tokens."""
    fixed = kangaroo(params, {**settings, "eta": 0.0})
    return dataclasses.replace(fixed, name="kangaroo-fixed")


def exit_head(
    spec: dec.DecodeSpec,
    weights: dec.Weights,
    hidden: Float[Array, "B 1 D"],
    positions: Int[Array, "B 1"],
    cache: KVCache | None,
) -> tuple[Float[Array, "B V"], KVCache | None]:
    """Draft with the target's own final norm and LM head on the exit layer's states, without an adapter."""
    return logits(spec.config, weights["target"], hidden)[:, 0], cache


def early_exit(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return Kangaroo without its adapter: the head straight on the exit layer.

    Raises:
        ValueError: if a setting is out of range.
    """
    layers, layer = params.config.num_hidden_layers, settings["exit_layer"]
    if layer is None:
        layer = params.draft.exit_layer if params.draft else -(-layers // 16)
    if not 1 <= layer < layers:
        raise ValueError(f"early-exit: exit_layer is {layer}; a model of {layers} layers needs 1 to {layers - 1}")
    spec = dec.DecodeSpec(params.config, layer, settings["gamma"], adapter=None, propose=exit_head)
    return Ready("early-exit", params, spec, settings["eta"], settings={**settings, "exit_layer": layer})


METHODS = (
    Method("plain", "one token for each pass over the model", "", {}, plain),
    Method(
        "kangaroo",
        "exit layer, adapter and the target's head draft, until they lose confidence",
        PAPER,
        {"gamma": None, "eta": None},
        kangaroo,
        "python -m train.adapter --model MODEL",
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
        {"gamma": 6, "eta": 0.6, "exit_layer": None},
        early_exit,
    ),
)
