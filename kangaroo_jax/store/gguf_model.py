"""The model in a GGUF file: its config, and its tensors by Hugging Face's names and in Hugging Face's order.

llama.cpp computes rotary embeddings of ``llama`` on neighbours, not on halves, so its converter reorders the rows of q
and k; here they are put back. Those of ``qwen2`` and ``qwen3`` stay as they are.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np

from kangaroo_jax.checks import brief
from kangaroo_jax.gguf import AGAIN, Gguf, GgufTensor, read_vocabulary
from kangaroo_jax.model import LlamaConfig, RopeScaling, rope_frequencies

_FAMILIES = ("llama", "qwen2", "qwen3")
_ROPE = "rope_freqs.weight"
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_PARTS = {
    "attn_norm": "input_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"attn_{part}_norm": f"self_attn.{part}_norm" for part in "qk"},
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
# What would change the arithmetic of these architectures, and with which value it does not.
_NEUTRAL = {
    "expert_count": 0,
    "attention.scale": 0,
    "logit_scale": 0,
    "residual_scale": 0,
    "embedding_scale": 0,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "attention.causal": 1,
    "use_parallel_residual": 0,
}


@dataclasses.dataclass(frozen=True)
class GgufModel:
    """A GGUF file, read as a checkpoint.

    Attributes:
        config: of the model.
        tensors: by Hugging Face's names, but for those that have none.
        reordered: for the names of tensors whose rows are put back in order, the number of their heads.
    """

    config: LlamaConfig
    tensors: dict[str, GgufTensor]
    reordered: dict[str, int]

    def get_tensor(self, name: str) -> np.ndarray:
        """Return the values of a tensor, as Hugging Face has them."""
        values = self.tensors[name].read()
        if (heads := self.reordered.get(name)) is None or len(values) % (2 * heads):
            return values
        pairs = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
        return pairs.swapaxes(1, 2).reshape(values.shape)


def read_model(file: Path) -> GgufModel:
    """Read what a GGUF file says, and none of its tensors but the factors of its rotary frequencies.

    Raises:
        ValueError: if the file is damaged, or of a model that this package does not compute.
    """
    gguf = Gguf(file)
    family = gguf.text("general.architecture")
    if family not in _FAMILIES:
        raise ValueError(f"{file} is of architecture {brief(family)}; {', '.join(_FAMILIES)} are read")
    if (kind := gguf.text("general.type") or "model") != "model":
        raise ValueError(f"{file} holds no model, but is of type {brief(kind)}; give the file of the model")
    for name, neutral in _NEUTRAL.items():
        if gguf.scalar(f"{family}.{name}") not in (None, neutral):
            what = "mixtures of experts are" if name == "expert_count" else "what it changes is"
            raise ValueError(f"{file} has {family}.{name}; {what} not supported")
    try:
        config = _config(gguf, family)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(file)) else f"{file}: {text}") from error
    tensors = {_hf_name(name): tensor for name, tensor in gguf.tensors.items() if name != _ROPE}
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads} if family == "llama" else {}
    reordered = {
        f"model.layers.{i}.self_attn.{part}_proj.weight": count
        for i in range(config.num_hidden_layers)
        for part, count in heads.items()
    }
    return GgufModel(config, tensors, reordered)


def _hf_name(name: str) -> str:
    """Return Hugging Face's name of a tensor; one that it has no name for keeps its own."""
    if (layer := _LAYER.fullmatch(name)) and layer[2] in _PARTS:
        return f"model.layers.{layer[1]}.{_PARTS[layer[2]]}.{layer[3]}"
    return _NAMES.get(name, name)


def _config(gguf: Gguf, family: str) -> LlamaConfig:
    def needed(name: str) -> int:
        if (value := gguf.integer(f"{family}.{name}")) is None:
            raise ValueError(f"{gguf.file} lacks {family}.{name}; {AGAIN}")
        return value

    def optional(name: str, default: int) -> int:
        return default if (value := gguf.integer(f"{family}.{name}")) is None else value

    if (table := gguf.tensors.get("token_embd.weight")) is None or len(table.shape) != 2:
        raise ValueError(f"{gguf.file} lacks the table token_embd.weight; {AGAIN}")
    vocabulary = read_vocabulary(gguf)
    eps = gguf.number(f"{family}.attention.layer_norm_rms_epsilon")
    if eps is None:
        raise ValueError(f"{gguf.file} lacks {family}.attention.layer_norm_rms_epsilon; {AGAIN}")
    hidden, heads = needed("embedding_length"), needed("attention.head_count")
    head_dim = optional("attention.key_length", hidden // heads if heads > 0 else 0)
    for name in ("attention.value_length", "rope.dimension_count"):
        if optional(name, head_dim) != head_dim:
            raise ValueError(
                f"{gguf.file} has {family}.{name} {optional(name, 0)}, and heads are of {head_dim}; only heads that "
                "are rotated whole, and as wide in v as in k, are supported"
            )
    window = gguf.integer(f"{family}.attention.sliding_window") or None
    config = LlamaConfig(
        vocab_size=table.shape[0],
        hidden_size=hidden,
        intermediate_size=needed("feed_forward_length"),
        num_hidden_layers=needed("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=optional("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=_shortest(eps),
        rope_theta=_shortest(gguf.number(f"{family}.rope.freq_base") or 10000.0),
        rope_scaling=_linear(gguf, family),
        max_position_embeddings=needed("context_length"),
        tie_word_embeddings="output.weight" not in gguf.tensors,
        bos_token_id=None if vocabulary is None else vocabulary.bos,
        eos_token_id=() if vocabulary is None else vocabulary.ends,
        model_type="mistral" if family == "llama" and window else family,
        sliding_window=window,
    )
    return config if (factors := gguf.tensors.get(_ROPE)) is None else _stretched(config, factors)


def _shortest(value: float) -> float:
    """Return the number that was meant: files hold 1e-5 in 32 bits, as 9.999999747378752e-06."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def _linear(gguf: Gguf, family: str) -> RopeScaling | None:
    """Return the stretch of rotary frequencies that the keys of a file ask for."""
    kind = gguf.text(f"{family}.rope.scaling.type")
    factor = gguf.number(f"{family}.rope.scaling.factor")
    if kind is None:  # Older files.
        factor = gguf.number(f"{family}.rope.scale_linear")
    if kind not in (None, "none", "linear"):
        raise ValueError(
            f"{gguf.file} scales rotary frequencies by {brief(kind)}; 'linear' and Llama 3's are supported"
        )
    return None if kind == "none" or factor in (None, 0.0, 1.0) else RopeScaling("linear", _shortest(factor))


def _stretched(config: LlamaConfig, factors: GgufTensor) -> LlamaConfig:
    """Return the config with the scaling of Llama 3 whose factors ``rope_freqs.weight`` has.

    The file has what each frequency is divided by: 1 for short wavelengths, ``factor`` for long ones, and in between
    what a line in the frequency gives. Of that line two numbers remain, of which Llama 3 has three; so one is set, as
    Llama 3 has it: ``low_freq_factor`` is 1.

    Raises:
        ValueError: if they are no such factors.
    """
    turns = rope_frequencies(config).astype(np.float64) / (2 * math.pi)  # Per position.
    odd = ValueError(
        f"{factors.file} divides rotary frequencies by what is no scaling of Llama 3 ({_ROPE}); this is not supported"
    )
    if factors.shape != turns.shape or config.rope_scaling:
        raise odd
    values = factors.read().astype(np.float64)
    if not (np.isfinite(values) & (values >= 1)).all():
        raise odd
    if (values == 1).all():
        return config
    factor = float(values.max())
    kept = (1 / values - 1 / factor) / (1 - 1 / factor)  # How much of each frequency stays as it is.
    between = (kept > 1e-6) & (kept < 1 - 1e-6)
    high = 4.0
    if between.sum() > 1:
        slope, start = np.polyfit(turns[between], kept[between], 1)
        if not (slope > 0 > start):
            raise odd
        high = round(1 - 1 / start, 3)
        original = slope * (high - 1)
    elif between.any():
        original = (kept[between][0] * (high - 1) + 1) / turns[between][0]
    else:
        original = math.floor(1 / turns[kept < 0.5].max())
    scaling = RopeScaling("llama3", _shortest(factor), 1.0, high, max(1, round(original)))
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    if not np.allclose(rope_frequencies(scaled), rope_frequencies(config) / values, rtol=1e-4, atol=0):
        raise odd
    return scaled
