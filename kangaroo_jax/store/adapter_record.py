"""What an adapter says of itself beside its tensors, and the fingerprint of the target it is for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from kangaroo_jax.checks import brief
from kangaroo_jax.model import LOOKUP, METHODS, SIBLINGS, AdapterConfig, KangarooConfig, LlamaConfig
from kangaroo_jax.store.dialects import config_to_hf
from kangaroo_jax.store.mapping import flatten
from kangaroo_jax.store.torch_zip import shown

AGAIN = "train or download the adapter again"
_KINDS: dict[str, tuple[type, ...]] = {
    "exit_layer": (int,),
    "gamma": (int,),
    "eta": (int, float),
    "hidden_size": (int,),
    "target": (str,),
    "training": (dict,),
    "adapter": (str,),
    "rope_theta": (int, float, type(None)),
    "num_key_value_heads": (int, type(None)),
    "intermediate_size": (int, type(None)),
    "draft_vocabulary": (int, type(None)),
    "final_states": (bool,),
    "method": (str,),
    "siblings": (int,),
    "lookup": (int,),
}
# What records had no place for at first, and are without where it is this.
_OWN = {field.name: field.default for field in dataclasses.fields(AdapterConfig) if field.name != "kind"}
_WITHOUT: dict[str, Any] = {**_OWN, "training": {}, "adapter": "kangaroo", "method": "kangaroo"}
_WITHOUT |= {"siblings": 0, "lookup": 0}


def fingerprint(config: LlamaConfig) -> str:
    """Return a short name for what an adapter depends on in its target: everything that shapes the computation.

    Special tokens and the context length are left out; they may be edited without harm to an adapter.
    """
    ignored = ("bos_token_id", "eos_token_id", "max_position_embeddings")
    fields = flatten({name: value for name, value in config_to_hf(config).items() if name not in ignored})
    # 500000 and 500000.0 are the same theta.
    fields = {name: float(value) if isinstance(value, int | float) else value for name, value in fields.items()}
    return f"{config.model_type}-" + hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def adapter_record(config: LlamaConfig, draft: KangarooConfig, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an adapter directory says beside its tensors: ``adapter_config.json``, or ``kangaroo`` in theirs."""
    fields: dict[str, Any] = {"exit_layer": draft.exit_layer, "gamma": draft.gamma, "eta": draft.eta}
    adapter: dict[str, Any] = {"adapter": draft.adapter.kind}
    adapter |= {name: value for name, usual in _OWN.items() if (value := getattr(draft.adapter, name)) != usual}
    if draft.method != "kangaroo":
        fields |= {"method": draft.method}
    fields |= {name: value for name in ("siblings", "lookup") if (value := getattr(draft, name))}
    target = {"hidden_size": config.hidden_size, "target": fingerprint(config)}
    return fields | adapter | target | {"training": dict(training)}


def read_record(
    fields: Mapping[str, Any], where: str, config: LlamaConfig, exit_layer: int | None
) -> tuple[KangarooConfig, dict[str, Any]]:
    """Return the draft model and training that an ``adapter_record`` holds.

    Args:
        fields: the record; one without ``adapter`` and the like is of the paper's adapter with the target's rope.
        where: where it was found, for messages.
        config: the target it is to draft for.
        exit_layer: the layer asked for, or None.

    Raises:
        ValueError: if it is damaged, of another target, or of another exit layer than ``exit_layer``.
    """
    fields = _WITHOUT | dict(fields)
    if wrong := [name for name, kinds in _KINDS.items() if type(fields.get(name)) not in kinds]:
        raise ValueError(f"{where} has no usable {', '.join(wrong)}; {AGAIN}")
    if fields["hidden_size"] != config.hidden_size:
        raise ValueError(
            f"{where}: the adapter is for hidden_size {brief(fields['hidden_size'])}, the model has "
            f"{config.hidden_size}; use the adapter trained for this model"
        )
    try:
        adapter = AdapterConfig(fields["adapter"], **{name: fields[name] for name in _OWN})
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {AGAIN}") from None
    names = ("exit_layer", "gamma", "eta", "method", "siblings", "lookup")
    draft = KangarooConfig(adapter=adapter, **{name: fields[name] for name in names})
    if exit_layer not in (None, draft.exit_layer):
        raise ValueError(
            f"{where}: the adapter was trained for exit_layer {brief(draft.exit_layer)}, and exit_layer "
            f"{brief(exit_layer)} is asked for; leave that out, or give another adapter"
        )
    check_draft(draft, config, where)
    if fields["target"] != fingerprint(config):
        raise ValueError(
            f"{where}: the adapter is for target {shown(fields['target'])[1:-1]}, the model is {fingerprint(config)}; "
            "use the adapter trained for this model"
        )
    return dataclasses.replace(draft, eta=float(draft.eta)), fields["training"]


def check_draft(draft: KangarooConfig, config: LlamaConfig, where: str) -> None:
    """Raise ValueError if a field of ``draft`` is none for this target; ``where`` it stands is for the message."""
    layers = config.num_hidden_layers
    if not 1 <= draft.exit_layer < layers:
        raise ValueError(
            f"{where}: exit_layer is {brief(draft.exit_layer)}; a model of {layers} layers needs 1 to {layers - 1}"
        )
    heads, own = config.num_attention_heads, draft.adapter.num_key_value_heads
    if own is not None and heads % own:
        raise ValueError(f"{where}: num_key_value_heads is {own}; it must divide the {heads} heads of the model")
    if draft.adapter.draft_vocabulary is not None and draft.adapter.draft_vocabulary > config.vocab_size:
        raise ValueError(
            f"{where}: draft_vocabulary is {draft.adapter.draft_vocabulary}; the model has {config.vocab_size} tokens"
        )
    if draft.gamma < 1:
        raise ValueError(f"{where}: gamma is {brief(draft.gamma)}; at least 1 token must be drafted")
    if draft.gamma > config.max_position_embeddings:
        raise ValueError(
            f"{where}: gamma is {brief(draft.gamma)}; it must be at most the model's context, "
            f"{config.max_position_embeddings} tokens"
        )
    if not 0 <= draft.siblings <= SIBLINGS:
        raise ValueError(f"{where}: siblings is {brief(draft.siblings)}; it must be from 0 to {SIBLINGS}")
    if not 0 <= draft.lookup <= LOOKUP:
        raise ValueError(f"{where}: lookup is {brief(draft.lookup)}; it must be from 0 to {LOOKUP}")
    if draft.method not in METHODS:
        raise ValueError(f"{where}: method is {brief(draft.method)}; it must be one of {', '.join(METHODS)}")
    if not 0 <= draft.eta <= sys.float_info.max:  # JSON's integers have no bound.
        raise ValueError(f"{where}: eta is {brief(draft.eta)}; it must be 0 or more, and finite")
