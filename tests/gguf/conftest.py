"""GGUF files as llama.cpp's converter writes them: random models, and tokenizers of a few hundred tokens."""

from __future__ import annotations

import types

import gguf
import jax
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType as Kind

from kangaroo_jax.model import LlamaConfig, RopeScaling, init_params, rope_frequencies
from kangaroo_jax.store import from_flax

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    **{f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}
SHAPE = {
    "vocab_size": 293,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e4,
    "max_position_embeddings": 512,
}
CASES = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "llama3": {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64)},
    "linear": {"rope_scaling": RopeScaling("linear", 4.0)},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 22, "tie_word_embeddings": True},
}


def config_of(case="llama", **changes):
    return LlamaConfig(**SHAPE | CASES[case] | {"bos_token_id": None, "eos_token_id": ()} | changes)


def their_name(name):
    """Return llama.cpp's name of a tensor."""
    stem, _, end = name.rpartition(".")
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{end}"
    return f"{NAMES[stem]}.{end}"


def their_order(rows, heads):
    """Return the rows of q or k as llama.cpp has them: a head's halves interleaved."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def random_tensors(config, seed=0):
    """Return tensors by Hugging Face's names, large enough that logits differ from token to token."""
    params = jax.device_get(init_params(config, jax.random.key(seed)))
    generator = np.random.default_rng(seed)
    return {
        name: values * 8 if values.ndim == 2 else values + generator.normal(0, 0.1, values.shape).astype(np.float32)
        for name, values in from_flax(config, params)
    }


def describe(writer, config):
    """Write the keys of a config."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if (scaling := config.rope_scaling) and scaling.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)


def write(file, config, tensors, kind="F32", *, keys=None, tokenizer=None, family=None):
    """Write a model; return the values that its tensors stand for, by Hugging Face's names.

    ``kind`` is of the matrices that it has blocks for; norms and biases are F32. ``keys`` takes the writer and adds
    what it likes; so does ``tokenizer``.
    """
    family = family or config.model_type
    writer = gguf.GGUFWriter(file, family)
    describe(writer, config)
    for add in filter(None, (keys, tokenizer)):
        add(writer)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    meant = {}
    for name, values in tensors.items():
        order = next((count for end, count in heads.items() if name.endswith(end) and family == "llama"), None)
        theirs = values if order is None else their_order(values, order)
        block = gguf.GGML_QUANT_SIZES[Kind[kind]][0]
        used = Kind[kind] if values.ndim == 2 and values.shape[-1] % block == 0 else Kind.F32
        stored = gguf.quants.quantize(theirs, used)
        writer.add_tensor(their_name(name), stored, raw_dtype=used)
        meant[name] = gguf.quants.dequantize(gguf.quants.quantize(values, used), used)
    if (scaling := config.rope_scaling) and scaling.rope_type == "llama3":
        plain = rope_frequencies(LlamaConfig(**SHAPE | {"head_dim": config.head_dim, "rope_theta": config.rope_theta}))
        writer.add_tensor("rope_freqs.weight", plain / rope_frequencies(config))
    finish(writer)
    return meant


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def ggufs():
    """The functions above."""
    functions = (config_of, their_name, their_order, random_tensors, describe, write, finish)
    return types.SimpleNamespace(cases=CASES, **{function.__name__: function for function in functions})


def byte_level(merges=(("a", "b"),), pre="gpt-2", controls=("<|end|>", "<|start|>"), users=(), size=None, **flags):
    """Return what writes a byte-level tokenizer: controls, user's tokens, the 256 bytes, a token for each merge."""

    def add(writer):
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        pieces = [*alphabet, *dict.fromkeys("".join(pair) for pair in merges)]
        tokens = [*controls, *users, *pieces]
        kinds = [3] * len(controls) + [4] * len(users) + [1] * len(pieces)
        padding = [f"[PAD{i}]" for i in range(len(tokens), size or len(tokens))]
        writer.add_tokenizer_model("gpt2")
        if pre:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens + padding)
        writer.add_token_types(kinds + [5] * len(padding))
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(1)
        for name, value in flags.items():
            getattr(writer, f"add_{name}")(value)

    return add


def sentencepiece(pieces, users=(), **flags):
    """Return what writes a SentencePiece tokenizer: ``<unk>``, ``<s>``, ``</s>``, the bytes, user's tokens, pieces.

    A piece scores higher the earlier it stands.
    """

    def add(writer):
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_, *users, *pieces])
        writer.add_token_scores([0.0] * (259 + len(users)) + [-float(i) for i in range(len(pieces))])
        writer.add_token_types([2, 3, 3] + [6] * 256 + [4] * len(users) + [1] * len(pieces))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        for name, value in flags.items():
            getattr(writer, f"add_{name}")(value)

    return add


@pytest.fixture(scope="session", name="byte_level")
def _byte_level():
    return byte_level


@pytest.fixture(scope="session", name="sentencepiece")
def _sentencepiece():
    return sentencepiece
