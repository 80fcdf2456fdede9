"""The dialects of ``config.json``: what transformers writes for each family, read into a ``LlamaConfig`` and written.

A family is a ``model_type`` of Hugging Face. All of them are one decoder with two options in its attention (biases on
q, k and v; norms on q and k) and one in its mask (a sliding window). What this package does not compute is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kangaroo_jax.checks import DEEPEST, INT32, WIDEST, brief, check_integer
from kangaroo_jax.model import FAMILIES, LlamaConfig, RopeScaling


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How ``config.json`` describes one ``model_type``.

    Attributes:
        architecture: transformers' class, as ``architectures`` of ``config.json`` has it.
        defaults: what transformers takes for fields that ``config.json`` leaves out, where it is not Llama's. With
            ``use_sliding_window`` among them a window must be switched on.
    """

    architecture: str
    defaults: Mapping[str, Any]

    @property
    def switched(self) -> bool:
        """Whether ``use_sliding_window`` must be set for ``sliding_window`` to mean something."""
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
DIALECTS = {
    "llama": Dialect("LlamaForCausalLM", {}),
    "mistral": Dialect(
        "MistralForCausalLM", {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
    ),
    "qwen2": Dialect("Qwen2ForCausalLM", _QWEN),
    "qwen3": Dialect("Qwen3ForCausalLM", _QWEN | {"head_dim": 128}),
}
assert DIALECTS.keys() == FAMILIES.keys()


def config_from_hf(config: Mapping[str, Any]) -> LlamaConfig:
    """Return the contents of a Hugging Face ``config.json`` as a ``LlamaConfig``.

    Both dialects of rope are read: ``rope_theta`` / ``rope_scaling``, and ``rope_parameters`` of transformers 5.

    Args:
        config: the parsed ``config.json``.

    Raises:
        ValueError: if a field is missing, or describes a network this package does not compute.
    """
    kind = _kind(config)
    config = {**DIALECTS[kind].defaults, **config}
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if missing := [name for name in required if config.get(name) is None]:
        raise ValueError(f"config.json lacks {', '.join(missing)}; is it the config of a language model?")
    for name in required:  # Some are computed with here, before the rest is checked.
        check_integer(name, config[name], most=DEEPEST if name == "num_hidden_layers" else WIDEST)
    heads = config["num_attention_heads"]
    theta, scaling = _rope_from_hf(config)
    eos = config.get("eos_token_id", 2)  # As transformers' Llama: 2 when absent, none when null.
    optional = {
        name: config[name]
        for name in ("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "bos_token_id")
        if name in config
    }
    if config.get("max_sequence_length"):  # Vicuna's 16k models: the other field is the length before the stretch.
        optional["max_position_embeddings"] = config["max_sequence_length"]
    return LlamaConfig(
        **{name: config[name] for name in required},
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        rope_theta=theta,
        rope_scaling=scaling,
        eos_token_id=() if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,),
        model_type=kind,
        sliding_window=_window_from_hf(kind, config),
        **optional,
    )


def config_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Return the ``config.json`` of a model, readable by transformers and by ``config_from_hf``."""
    fields = dataclasses.asdict(config)
    del fields["sliding_window"]
    eos = list(config.eos_token_id)
    fields |= {
        "architectures": [DIALECTS[config.model_type].architecture],
        "hidden_act": "silu",
        **({} if config.family.qkv_bias else {"attention_bias": False}),
        "mlp_bias": False,
        "rope_scaling": _scaling_to_hf(config.rope_scaling) if config.rope_scaling else None,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else eos,
    }
    # For Llama these fields stay as they are: fingerprints of targets, which adapters carry, are made from them.
    return fields | _window_to_hf(config)


def _kind(config: Mapping[str, Any]) -> str:
    """Return the ``model_type`` of a ``config.json``; one without is Llama's.

    Raises:
        ValueError: if its ``model_type`` is another, or it describes a network this package does not compute.
    """
    _refuse(config, "model_type", (*DIALECTS, None))
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise ValueError(
            f"config.json has a quantization_config ({brief(str(method))[1:-1]}); quantised weights are not read, "
            "use a checkpoint in float32, bfloat16 or float16"
        )
    kind = config.get("model_type") or "llama"
    _refuse(config, "hidden_act", ("silu", "swish", None))
    if not FAMILIES[kind].qkv_bias:  # Where the family has biases anyway, transformers does not look at it.
        _refuse(config, "attention_bias", (False, None))
    for name in ("mlp_bias", "rope_interleaved"):
        _refuse(config, name, (False, None))
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(name):
            raise ValueError(f"config.json has {name} = {brief(config[name])}; mixtures of experts are not supported")
    return kind


def _window_from_hf(kind: str, config: Mapping[str, Any]) -> int | None:
    """Return the sliding window of every layer of a ``config.json``, defaults filled in, or None.

    Raises:
        ValueError: if some layers have a window and others none.
    """
    layers, switched = config["num_hidden_layers"], DIALECTS[kind].switched
    window = config.get("sliding_window") if FAMILIES[kind].windowed else None
    if switched and not config["use_sliding_window"]:
        window = None
    if window is not None and switched:
        check_integer("max_window_layers", config["max_window_layers"], 0, INT32)
    first = layers if window is None else config["max_window_layers"] if switched else 0
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


def _window_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Return the fields of ``config.json`` that ``_window_from_hf`` reads."""
    window = config.sliding_window
    if not config.family.windowed:
        return {}
    if not DIALECTS[config.model_type].switched:
        return {"sliding_window": window}
    first = config.num_hidden_layers if window is None else 0
    return {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": first}


def _scaling_to_hf(scaling: RopeScaling) -> dict[str, Any]:
    """Return the ``rope_scaling`` entry of a ``config.json``."""
    fields: dict[str, Any] = {"rope_type": scaling.rope_type, "factor": scaling.factor}
    if scaling.rope_type == "llama3":
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        fields |= {name: getattr(scaling, name) for name in names}
    return fields


def _rope_from_hf(config: Mapping[str, Any]) -> tuple[Any, RopeScaling | None]:
    """Read theta and scaling from either dialect of ``config.json``."""
    for name in ("rope_parameters", "rope_scaling"):
        if config.get(name) and not isinstance(config[name], Mapping):
            raise ValueError(f"{name} is {brief(config[name])}; it must be an object or null")
    new = config.get("rope_parameters") or {}
    scaling = new or config.get("rope_scaling") or {}
    thetas = (fields.get("rope_theta") for fields in (new, config))
    theta = next((theta for theta in thetas if theta is not None), 10000.0)
    if nested := [name for name, value in scaling.items() if isinstance(value, Mapping)]:
        raise ValueError(
            f"config.json has rope_parameters for {brief(', '.join(nested))[1:-1]}; only one rope for all is supported"
        )
    if (part := scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        raise ValueError(
            f"config.json has partial_rotary_factor = {brief(part)}; only heads rotated whole are supported"
        )
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise ValueError(
            f"config.json has rope_type {brief(kind)}; only 'default', 'linear' and 'llama3' are supported"
        )
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    needed = ("factor", *names) if kind == "llama3" else ("factor",)
    if missing := [name for name in needed if name not in scaling]:
        raise ValueError(f"config.json has rope_type {kind!r} without {', '.join(missing)}")
    extra = {name: scaling[name] for name in names} if kind == "llama3" else {}
    return theta, RopeScaling(kind, scaling["factor"], **extra)


def _refuse(config: Mapping[str, Any], name: str, allowed: tuple[Any, ...]) -> None:
    """Raise ValueError for a setting that would silently compute something else."""
    if config.get(name) not in allowed:
        listed = ", ".join(repr(value) for value in allowed if value is not None and value != "swish")
        verb = "are" if "," in listed else "is"
        raise ValueError(f"config.json has {name} = {brief(config[name])}; only {listed} {verb} supported")
