"""Frozen descriptions of a target model and of its Kangaroo draft model; field names are Hugging Face's."""

from __future__ import annotations

import dataclasses
from typing import Any

from kangaroo_jax.checks import DEEPEST, INT32, brief, check_integer, positive
from kangaroo_jax.model.variants import AdapterConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """What the layers of one ``model_type`` compute beside Llama's.

    Attributes:
        qkv_bias: whether q, k and v have biases.
        qk_norm: whether every head of q and k is normalised before it is rotated.
        windowed: whether ``sliding_window`` means something.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    windowed: bool = False


FAMILIES = {
    "llama": Family(),
    "mistral": Family(windowed=True),
    "qwen2": Family(qkv_bias=True, windowed=True),
    "qwen3": Family(qk_norm=True, windowed=True),
}


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
        model_type: "llama", "mistral", "qwen2" (biases on q, k and v) or "qwen3" (norms on q and k).
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


SIBLINGS = 16
"""Most second choices that are verified beside the first drafted token."""
LOOKUP = 8
"""Most tokens that are looked up in the text."""
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
        siblings: default for the number of second choices that are verified beside the first drafted token.
        lookup: default for the number of tokens that are looked up in the text before the draft model drafts.
        method: how a text is decoded where nothing else is asked for: ``"kangaroo"``, or ``"plain"`` where ``tune``
            found that no drafting pays.
    """

    exit_layer: int
    gamma: int = 6
    eta: float = 0.6
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    method: str = "kangaroo"
    siblings: int = 0
    lookup: int = 0


def _set_positive(config: Any, *names: str) -> None:
    """Check fields that are numbers above 0, and make floats of them: JSON may have 500000 for 500000.0."""
    for name in names:
        object.__setattr__(config, name, positive(name, getattr(config, name)))  # The class is frozen.
