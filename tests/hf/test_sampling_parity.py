"""The distribution tokens are drawn from, live: logits and what transformers' generate makes of them, in its order."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.decode import Sampling, log_probabilities

pytestmark = pytest.mark.hf

VOCAB, ROWS, NEW = 101, 7, 11
CUTS = (  # temperature, top_k, top_p, min_p
    *itertools.product((0.3, 1.0, 1.7), (13, VOCAB), (0.35, 0.9, 1.0), (0.0, 0.02, 0.4)),
    (1.7, 1, 1.0, 0.0),
    (1.7, VOCAB, 1e-6, 0.0),
    (1.7, VOCAB, 1.0, 1.0),
    (1e-3, VOCAB, 1.0, 0.0),
)


@pytest.fixture(scope="module")
def model():
    # Imported here: this file is collected, and left out by its mark, where torch is not installed.
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=29,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), CUTS)
def test_the_distribution_is_that_of_transformers(model, temperature, top_k, top_p, min_p):
    import torch

    torch.manual_seed(7)
    prompt = torch.randint(VOCAB, (ROWS, 5))
    with torch.no_grad():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            max_new_tokens=NEW,
            pad_token_id=0,
            output_logits=True,
            output_scores=True,
            return_dict_in_generate=True,
        )
    logits, scores = (torch.stack(each).float() for each in (out.logits, out.scores))
    expected = torch.log_softmax(scores, -1).numpy()
    assert logits.shape == (NEW, ROWS, VOCAB)
    # With ties, what stays would depend on how torch sorts.
    assert (logits.sort(-1).values.diff(dim=-1) > 0).all()

    rows = (jnp.array([value]) for value in (temperature, top_k, top_p, min_p))
    sampling = Sampling(*rows)
    got = jax.jit(log_probabilities, static_argnums=2)(sampling, logits.numpy(), True)
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 / min(temperature, 1))
