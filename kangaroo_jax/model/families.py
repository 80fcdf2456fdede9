"""The model families: what each adds to Llama's layers, and what of a ``config.json`` is refused.

A family is a ``model_type`` of Hugging Face. All of them are one decoder with two options in its attention (biases on
q, k and v; norms on q and k) and one in its mask (a sliding window).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kangaroo_jax.model.fields import INT32, brief, check_integer


@dataclasses.dataclass(frozen=True)
class Family:
    """What sets one ``model_type`` apart.

    Attributes:
        architecture: transformers' class, as ``architectures`` of ``config.json`` has it.
        defaults: what transformers takes for fields that ``config.json`` leaves out, where it is not Llama's. With a
            ``sliding_window`` among them the family may have one, with ``use_sliding_window`` it must be switched on.
        qkv_bias: whether q, k and v have biases.
        qk_norm: whether every head of q and k is normalised before it is rotated.
    """

    architecture: str
    defaults: Mapping[str, Any]
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def windowed(self) -> bool:
        """Whether ``sliding_window`` means something."""
        return "sliding_window" in self.defaults

    @property
    def switched(self) -> bool:
        """Whether ``use_sliding_window`` must be set for it to mean something."""
        return "use_sliding_window" in self.defaults


_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
FAMILIES = {
    "llama": Family("LlamaForCausalLM", {}),
    "mistral": Family(
        "MistralForCausalLM", {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
    ),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN, qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", _QWEN | {"head_dim": 128}, qk_norm=True),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a ``config.json``; one without ``model_type`` is Llama's.

    Raises:
        ValueError: if its ``model_type`` is another, or it describes a network this package does not compute.
    """
    _refuse(config, "model_type", (*FAMILIES, None))
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise ValueError(
            f"config.json has a quantization_config ({brief(str(method))[1:-1]}); quantised weights are not read, "
            "use a checkpoint in float32, bfloat16 or float16"
        )
    family = FAMILIES[config.get("model_type") or "llama"]
    _refuse(config, "hidden_act", ("silu", "swish", None))
    if not family.qkv_bias:  # Where the family has biases anyway, transformers does not look at it.
        _refuse(config, "attention_bias", (False, None))
    for name in ("mlp_bias", "rope_interleaved"):
        _refuse(config, name, (False, None))
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(name):
            raise ValueError(f"config.json has {name} = {brief(config[name])}; mixtures of experts are not supported")
    return family


def window_from_hf(family: Family, config: Mapping[str, Any]) -> int | None:
    """Return the sliding window of every layer of a ``config.json``, defaults filled in, or None.

    Raises:
        ValueError: if some layers have a window and others none.
    """
    layers, window = config["num_hidden_layers"], config.get("sliding_window") if family.windowed else None
    if family.switched and not config["use_sliding_window"]:
        window = None
    if window is not None and family.switched:
        check_integer("max_window_layers", config["max_window_layers"], 0, INT32)
    first = layers if window is None else config["max_window_layers"] if family.switched else 0
    kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    if 0 < first < layers:
        raise ValueError(
            f"config.json has a sliding window from layer {first} on (max_window_layers); only a window in all of the "
            f"{layers} layers or in none is supported"
        )
    if (config.get("layer_types") or kinds) != kinds:
        listed = brief(config["layer_types"])
        raise ValueError(f"config.json has layer_types {listed}; only {kinds[0]} throughout fits it")
    return window if first == 0 else None


def window_to_hf(family: Family, window: int | None, layers: int) -> dict[str, Any]:
    """Return the fields of ``config.json`` that ``window_from_hf`` reads."""
    if not family.windowed:
        return {}
    if not family.switched:
        return {"sliding_window": window}
    first = layers if window is None else 0
    return {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": first}


def _refuse(config: Mapping[str, Any], name: str, allowed: tuple[Any, ...]) -> None:
    """Raise ValueError for a setting that would silently compute something else."""
    if config.get(name) not in allowed:
        listed = ", ".join(repr(value) for value in allowed if value is not None and value != "swish")
        verb = "are" if "," in listed else "is"
        raise ValueError(f"config.json has {name} = {brief(config[name])}; only {listed} {verb} supported")
