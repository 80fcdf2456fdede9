"""The adapter's loss and its gradient against PyTorch's: transformers' target, and the adapter written out in torch."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from kangaroo_jax.model import init_adapter
from kangaroo_jax.store import read_hf
from train.loss import distillation_loss

pytestmark = pytest.mark.hf

HEADS, KEYS, WIDTH, HIDDEN, EXIT = 4, 2, 12, 48, 1
ROWS, LENGTH = 2, 256


def adapted(torch, weights, hidden, eps, theta):
    """Return ``RMSNorm_out(h + SelfAttention(RMSNorm_in(h)))`` of [B, T, D], in the dtype of ``hidden``."""

    def norm(x, scale):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * scale

    def turned(x):  # [B, T, heads, WIDTH]
        frequency = theta ** (-torch.arange(0, WIDTH, 2, dtype=x.dtype) / WIDTH)
        angle = (torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequency)[None, :, None]
        low, high = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
        return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], -1)

    x = norm(hidden, weights["in"])
    q, k, v = (
        (x @ weights[name]).unflatten(-1, (heads, WIDTH)) for name, heads in (("q", HEADS), ("k", KEYS), ("v", KEYS))
    )
    q, k = turned(q), turned(k)
    k, v = (torch.repeat_interleave(each, HEADS // KEYS, 2) for each in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / WIDTH**0.5
    later = torch.ones(scores.shape[-2:]).triu(1).bool()
    mixed = torch.einsum("bhts,bshd->bthd", scores.masked_fill(later, -torch.inf).softmax(-1), v)
    return norm(hidden + mixed.flatten(2) @ weights["o"], weights["out"])


def parted(kernel):
    """Return q, k and v of a fused kernel."""
    groups = np.asarray(kernel).reshape(HIDDEN, KEYS, HEADS // KEYS + 2, WIDTH)
    parts = {"q": groups[:, :, :-2], "k": groups[:, :, -2], "v": groups[:, :, -1]}
    return {name: part.reshape(HIDDEN, -1) for name, part in parts.items()}


def torch_side(torch, model, adapter, tokens, mask):
    """Return loss, sums and gradients in double precision, from the formulas."""
    model = model.double().eval()
    names = {"in": "input_layernorm", "out": "norm"}
    arrays = {short: np.asarray(adapter[name]["scale"]) for short, name in names.items()}
    arrays |= parted(adapter["self_attn"]["qkv_proj"]["kernel"]) | {
        "o": np.asarray(adapter["self_attn"]["o_proj"]["kernel"])
    }
    weights = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in arrays.items()}
    with torch.no_grad():
        out = model(torch.tensor(tokens), output_hidden_states=True)
    drafted = adapted(torch, weights, out.hidden_states[EXIT], model.config.rms_norm_eps, 10000.0)
    teacher, student = out.logits.softmax(-1), model.lm_head(drafted).log_softmax(-1)
    keep = torch.tensor(mask)
    total = -(teacher * student).sum(-1)[keep].sum()
    total.backward()
    best = student.topk(3).indices == teacher.argmax(-1, keepdim=True)
    sums = {f"top{k}": best[..., :k].any(-1)[keep].sum() for k in (1, 2, 3)}
    sums |= {"acceptance": torch.minimum(teacher, student.exp()).sum(-1)[keep].sum(), "loss": total}
    slopes = {name: weight.grad.numpy() for name, weight in weights.items()}
    return {name: float(value.detach()) for name, value in sums.items()}, slopes


def named(gradient):
    """Return our gradient under the names of the other side."""
    found = parted(gradient["self_attn"]["qkv_proj"]["kernel"]) | {"o": gradient["self_attn"]["o_proj"]["kernel"]}
    return found | {"in": gradient["input_layernorm"]["scale"], "out": gradient["norm"]["scale"]}


@pytest.mark.parametrize("chunk", [None, 100])
def test_loss_and_gradient_equal_pytorchs(tmp_path, chunk):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=101,
        hidden_size=HIDDEN,
        intermediate_size=59,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        head_dim=WIDTH,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    shape, target = read_hf(tmp_path, "float32")
    adapter = init_adapter(shape, jax.random.key(1))
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 101, (ROWS, LENGTH)), rng.random((ROWS, LENGTH)) < 0.7
    batch = {"tokens": tokens.astype(np.int32), "mask": mask}
    gradient = jax.jit(jax.grad(distillation_loss(shape, EXIT, chunk), has_aux=True))
    slopes, sums = gradient(adapter, target, batch)
    expected, expected_slopes = torch_side(torch, model, adapter, tokens, mask)
    assert {name: float(sums[name]) for name in expected} == pytest.approx(expected, rel=1e-5)
    for name, slope in named(slopes).items():
        error = np.linalg.norm(slope - expected_slopes[name]) / np.linalg.norm(expected_slopes[name])
        assert error < 1e-5, (name, error)
