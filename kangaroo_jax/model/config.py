"""Frozen descriptions of a target model and of its Kangaroo draft model.

Field names are those of Hugging Face's ``config.json``, so reading one is a filter and a few checks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kangaroo_jax.model.families import FAMILIES, Family, family_of, window_from_hf, window_to_hf
from kangaroo_jax.model.fields import DEEPEST, INT32, WIDEST, brief, check_integer, positive
from kangaroo_jax.model.variants import AdapterConfig


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the pre-training length.

    Attributes:
        rope_type: ``"linear"`` (positions divided by ``factor``) or ``"llama3"`` (only low frequencies are).
        factor: the stretch, > 0.
        low_freq_factor: llama3 only; wavelengths longer than ``original / low_freq_factor`` are fully stretched.
        high_freq_factor: llama3 only; wavelengths shorter than ``original / high_freq_factor`` stay as they are.
        original_max_position_embeddings: llama3 only; context length of the pre-training, in tokens.
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.rope_type not in ("linear", "llama3"):
            raise ValueError(f"rope_type is {brief(self.rope_type)}; it must be 'linear' or 'llama3'")
        _set_positive(self, "factor", "low_freq_factor", "high_freq_factor")
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor is {self.low_freq_factor}; it must be below high_freq_factor "
                f"({self.high_freq_factor})"
            )
        check_integer("original_max_position_embeddings", self.original_max_position_embeddings, most=INT32)

    def to_hf(self) -> dict[str, Any]:
        """Return the ``rope_scaling`` entry of a ``config.json``."""
        fields: dict[str, Any] = {"rope_type": self.rope_type, "factor": self.factor}
        if self.rope_type == "llama3":
            fields |= {
                "low_freq_factor": self.low_freq_factor,
                "high_freq_factor": self.high_freq_factor,
                "original_max_position_embeddings": self.original_max_position_embeddings,
            }
        return fields


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape and constants of a decoder of the Llama family; hashable, so it can be a static argument of ``jax.jit``.

    Attributes:
        vocab_size: rows of the embedding table and columns of the LM head.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        num_hidden_layers: number of decoder layers (N in the paper).
        num_attention_heads: query heads.
        num_key_value_heads: key/value heads; divides ``num_attention_heads`` (grouped-query attention).
        head_dim: width of one head; independent of ``hidden_size``.
        rms_norm_eps: added to the mean square in every RMSNorm.
        rope_theta: base of the rotary frequencies.
        rope_scaling: stretch of the rotary frequencies, or None.
        max_position_embeddings: longest sequence the weights were trained for, in tokens.
        tie_word_embeddings: whether the LM head is the transposed embedding table.
        bos_token_id: token a prompt starts with, or None.
        eos_token_id: tokens that end a sequence; any number of them.
        model_type: "llama", "mistral", "qwen2" (biases on q, k and v) or "qwen3" (norms on q and k); see ``families``.
        sliding_window: positions that a token sees in every layer, itself included, or None for all before it. Caches
            still hold all positions.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: tuple[int, ...] = (2,)
    model_type: str = "llama"
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            check_integer(name, getattr(self, name))
        check_integer("num_hidden_layers", self.num_hidden_layers, most=DEEPEST)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}; it must divide num_attention_heads "
                f"({self.num_attention_heads})"
            )
        check_integer("head_dim", self.head_dim, 2)
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embedding needs an even number of at least 2")
        _set_positive(self, "rms_norm_eps", "rope_theta")
        check_integer("max_position_embeddings", self.max_position_embeddings, most=INT32)
        if type(self.tie_word_embeddings) is not bool:
            raise ValueError(f"tie_word_embeddings is {brief(self.tie_word_embeddings)}; it must be true or false")
        if self.bos_token_id is not None:
            check_integer("bos_token_id", self.bos_token_id, 0, INT32)
        for token in self.eos_token_id:
            check_integer("eos_token_id", token, 0, INT32)
        if self.model_type not in FAMILIES:
            raise ValueError(f"model_type is {brief(self.model_type)}; it must be one of {', '.join(FAMILIES)}")
        if self.sliding_window is None:
            return
        check_integer("sliding_window", self.sliding_window, most=INT32)
        if not self.family.windowed:
            raise ValueError(
                f"sliding_window is {self.sliding_window}, but models of model_type {self.model_type!r} have none"
            )

    @property
    def family(self) -> Family:
        """What sets the ``model_type`` apart."""
        return FAMILIES[self.model_type]

    @property
    def plain(self) -> LlamaConfig:
        """The same shape with Llama's own layers, without biases, q/k norms and window."""
        return dataclasses.replace(self, model_type="llama", sliding_window=None)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Build the config from the contents of a Hugging Face ``config.json``.

        Both dialects are read: ``rope_theta`` / ``rope_scaling``, and ``rope_parameters`` of transformers 5.

        Args:
            config: the parsed ``config.json``.

        Raises:
            ValueError: if a field is missing, or describes a network this package does not compute.
        """
        family = family_of(config)
        config = {**family.defaults, **config}
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
        return cls(
            **{name: config[name] for name in required},
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            rope_theta=theta,
            rope_scaling=scaling,
            eos_token_id=() if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,),
            model_type=config.get("model_type") or "llama",
            sliding_window=window_from_hf(family, config),
            **optional,
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the ``config.json`` of this model, readable by transformers and by ``from_hf``."""
        fields = dataclasses.asdict(self)
        del fields["sliding_window"]
        eos = list(self.eos_token_id)
        fields |= {
            "architectures": [self.family.architecture],
            "hidden_act": "silu",
            **({} if self.family.qkv_bias else {"attention_bias": False}),
            "mlp_bias": False,
            "rope_scaling": self.rope_scaling.to_hf() if self.rope_scaling else None,
            "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else eos,
        }
        # For Llama these fields stay as they are: fingerprints of targets, which adapters carry, are made from them.
        return fields | window_to_hf(self.family, self.sliding_window, self.num_hidden_layers)


METHODS = ("kangaroo", "plain")
"""Ways to decode a text."""


@dataclasses.dataclass(frozen=True)
class KangarooConfig:
    """The draft model: where drafting leaves the target, and what it drafts with (paper, section 3.1).

    Attributes:
        exit_layer: number of target layers the draft model shares, l in the paper; hidden state ``hidden_states[l]``.
        gamma: default for the largest number of tokens drafted in one round.
        eta: default confidence below which drafting stops (second early exit).
        adapter: what the adapter computes.
        method: how a text is decoded where nothing else is asked for: ``"kangaroo"``, or ``"plain"`` where ``tune``
            found that no drafting pays.
    """

    exit_layer: int
    gamma: int = 6
    eta: float = 0.6
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    method: str = "kangaroo"


def _set_positive(config: Any, *names: str) -> None:
    """Check fields that are numbers above 0, and make floats of them: JSON may have 500000 for 500000.0."""
    for name in names:
        object.__setattr__(config, name, positive(name, getattr(config, name)))  # The class is frozen.


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
