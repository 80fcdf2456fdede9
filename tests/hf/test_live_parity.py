"""The golden fixtures' comparison, live: torch and transformers on random checkpoints, logits and 200 greedy tokens."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model import embed, forward, init_cache, line, logits, run_layers
from kangaroo_jax.store import read_hf, write_hf

pytestmark = pytest.mark.hf

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "mha": {"num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "gqa": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "llama3": {"rope_parameters": LLAMA3 | {"rope_theta": 1e4}, "head_dim": 14},
    "tied": {"tie_word_embeddings": True},
    "smollm2": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 31},
    "mistral-v0.3": {"model_type": "mistral", "sliding_window": None, "head_dim": 14},
    "qwen2": {"model_type": "qwen2", "head_dim": 14},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 31,
        "max_window_layers": 0,
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 22},
    "qwen3-tied": {"model_type": "qwen3", "tie_word_embeddings": True},
}
BASE = {
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 59,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
PROMPT, NEW = 61, 200


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def step(config, params, tokens, start, caches):
    """Logits of the last token of a block, and the caches with the block."""
    context = line(start + jnp.arange(tokens.shape[1])[None], caches[0].slots)
    x, caches = run_layers(config, params, embed(params, tokens), context, caches, 0, config.num_hidden_layers)
    return logits(config, params, x[:, -1]), caches


def greedy(config, params, prompt, count):
    """Plain greedy decoding with a cache, one jitted step per token."""
    caches = init_cache(config, 1, len(prompt) + count, jnp.float32, config.num_hidden_layers)
    block, start, ids = jnp.asarray(prompt)[None], 0, []
    for _ in range(count):
        logits, caches = step(config, params, block, start, caches)
        start += block.shape[1]
        ids.append(int(logits[0].argmax()))
        block = jnp.asarray([[ids[-1]]])
    return ids


def random_model(fields):
    """A model of transformers whose weights make every constant matter; without ``model_type`` a Llama."""
    # Imported here: this file is collected, and left out by its mark, where torch is not installed.
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    fields = BASE | fields
    config = AutoConfig.for_model(**fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.uniform_(0.5, 1.5) if "norm" in name else weight.normal_(std=0.02 if "embed" in name else 0.2)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_those_of_transformers(case, tmp_path):
    import torch

    model = random_model(CASES[case])
    model.save_pretrained(tmp_path)
    model.generation_config.eos_token_id = None

    prompt = torch.randint(101, (1, PROMPT))
    # Without a mask, generate takes every 0 of the prompt for padding and hides it.
    mask = torch.ones_like(prompt)
    with torch.no_grad():
        ids = model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=NEW, pad_token_id=0)
        expected = model(ids).logits[0].numpy()
    assert ids.shape == (1, PROMPT + NEW) and len(set(ids[0, PROMPT:].tolist())) > 1

    config, params = read_hf(tmp_path, "float32")
    logits = forward(config, params, jnp.asarray(ids.numpy()))[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert greedy(config, params, prompt[0].numpy(), NEW) == ids[0, PROMPT:].tolist()


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_back_by_transformers(case, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = random_model(CASES[case])
    model.save_pretrained(tmp_path / "theirs")
    write_hf(tmp_path / "ours", *read_hf(tmp_path / "theirs"))
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(back) is type(model)
    tokens = torch.randint(101, (1, PROMPT))
    with torch.no_grad():
        torch.testing.assert_close(back(tokens).logits, model(tokens).logits, rtol=0, atol=0)
