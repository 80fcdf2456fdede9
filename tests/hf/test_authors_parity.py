"""An adapter in the authors' files drafts here as in PyTorch: the same confidences, tokens and accept lengths.

The other side is a program of the method in PyTorch without caches of keys and values: every forward is over the whole
text.
"""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest

import kangaroo_jax
from convert import adapter as converter
from train.byte_tokenizer import write_byte_tokenizer
from train.corpus import VOCAB_SIZE

pytestmark = pytest.mark.hf

BASE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 44,
    "intermediate_size": 59,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}
CASES = {
    "mha": ({"num_key_value_heads": 2}, 2),
    "gqa": ({"num_attention_heads": 11, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}, 1),
    "theta": ({"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 2),
}
SETTINGS = ((6, 0.0), (6, 0.3), (6, 0.6), (6, 0.9), (3, 0.6), (6, 1.1))
SHORT, LONG, NEW = (5, 41), 257, 37


@dataclasses.dataclass
class Round:
    """What one round drafted, how sure it was of each token, and how much of it the target accepted."""

    confidence: list[float]
    accepted: int
    committed: int = 0


def make_adapter(config):
    """The adapter as a module of transformers' own parts; its parameters get the authors' names."""
    # Imported here: this file is collected, and left out by its mark, where torch is not installed.
    import torch
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.self_attn = LlamaAttention(config, layer_idx=0)

    class Adapter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer()])
            self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
            # The authors' adapter has base 10000, whatever the target's: docs/conversion.md.
            base = copy.deepcopy(config)
            base.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
            self.rotary = LlamaRotaryEmbedding(base)

        def forward(self, hidden):
            (layer,), length = self.layers, hidden.shape[1]
            mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
            angles = self.rotary(hidden, torch.arange(length)[None])
            attended, _ = layer.self_attn(layer.input_layernorm(hidden), angles, mask)
            return self.norm(hidden + attended)

    return Adapter().eval()


class TorchKangaroo:
    """A target of transformers, an adapter for it, and the decoding of both, each forward over the whole text."""

    def __init__(self, fields, exit_layer, seed=11):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        self.exit_layer, self.seen = exit_layer, {}
        self.target = LlamaForCausalLM._from_config(LlamaConfig(**BASE | fields), attn_implementation="eager").eval()
        self.adapter = make_adapter(self.target.config)
        with torch.no_grad():
            for name, weight in [*self.target.named_parameters(), *self.adapter.named_parameters()]:
                weight.uniform_(0.7, 1.3) if "norm" in name else weight.normal_(std=0.2)
            self.target.lm_head.weight.mul_(3.0)
            # So that the exit layer knows much of what the last one says: the deep layers and the adapter add little.
            self.adapter.norm.weight.copy_(self.target.model.norm.weight)
            for layer in [*self.target.model.layers[exit_layer:], *self.adapter.layers]:
                layer.self_attn.o_proj.weight.mul_(0.15)
            for layer in self.target.model.layers[exit_layer:]:
                layer.mlp.down_proj.weight.mul_(0.15)

    def save(self, directory):
        """Write the target and, beside it, the adapter as the authors do."""
        import torch

        self.target.save_pretrained(directory / "target")
        write_byte_tokenizer(directory / "target", BASE["max_position_embeddings"])
        tensors = {k: v for k, v in self.adapter.state_dict().items() if not k.startswith("rotary.")}
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
        (directory / "theirs").mkdir()
        torch.save(tensors, directory / "theirs" / "pytorch_model.bin")
        config = json.loads((directory / "target" / "config.json").read_text()) | {"num_hidden_layers": 1}
        (directory / "theirs" / "config.json").write_text(json.dumps(config))

    def look(self, ids):
        """Return the token drafted after the last one, its confidence, and the target's choice after every token.

        Remembered, since the texts of several settings begin alike.
        """
        import torch

        if (key := tuple(ids)) not in self.seen:
            with torch.no_grad():
                out = self.target(torch.tensor([ids]), output_hidden_states=True)
                scores = self.target.lm_head(self.adapter(out.hidden_states[self.exit_layer])[0, -1])
            sure, drafted = scores.softmax(-1).max(-1)
            self.seen[key] = int(drafted), float(sure), out.logits[0].argmax(-1).tolist()
        return self.seen[key]

    def decode(self, prompt, gamma, eta, new_tokens, eos=None):
        """Return the new ids, and the rounds that made all of them but the first."""
        ids, end, rounds = [*prompt, self.look(prompt)[-1][-1]], len(prompt) + new_tokens, []
        while ids[-1] != eos and len(ids) < end:
            drafted: list[int] = []
            confidence: list[float] = []
            while not drafted or (confidence[-1] >= eta and len(drafted) < gamma):
                token, sure, _ = self.look(ids + drafted)
                drafted.append(token)
                confidence.append(sure)
            follows = self.look(ids + drafted)[-1][len(ids) - 1 :]
            accepted = 0
            while accepted < len(drafted) and drafted[accepted] == follows[accepted]:
                accepted += 1
            rounds.append(Round(confidence, accepted))
            for token in follows[: accepted + 1]:
                if ids[-1] != eos and len(ids) < end:
                    ids.append(token)
                    rounds[-1].committed += 1
        return ids[len(prompt) :], rounds


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    """The program in PyTorch, and the same model and adapter loaded here."""
    import torch

    # More threads only wait for each other in matrices this small.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fields, exit_layer = CASES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    program = TorchKangaroo(fields, exit_layer)
    program.save(directory)
    target, ours = directory / "target", directory / "ours"
    argv = ["import", directory / "theirs", "--target", target, "--exit-layer", exit_layer, "--out", ours]
    assert converter.main([*map(str, argv)]) == 0
    yield program, kangaroo_jax.load(target, adapter=ours, dtype="float32")
    torch.set_num_threads(threads)


def make_prompt(length):
    return np.random.default_rng(length).integers(3, VOCAB_SIZE, length).tolist()


def generate(params, prompt, gamma, eta, eos=()):
    return kangaroo_jax.generate(params, prompt, max_new_tokens=NEW, gamma=gamma, eta=eta, eos_token_id=eos)


def assert_equal(generation, ids, rounds):
    """Ids, and of each round what was drafted with which confidence, accepted and committed."""
    stats = generation.stats
    assert list(generation.token_ids) == ids
    assert stats.accept_lengths == tuple(r.committed for r in rounds)
    assert stats.accepted_drafts == tuple(r.accepted for r in rounds)
    assert stats.draft_lengths == tuple(len(r.confidence) for r in rounds)
    for got, expected in zip(stats.confidence, rounds, strict=True):
        np.testing.assert_allclose(got, expected.confidence, rtol=0, atol=1e-4)


def test_rounds_equal_those_of_pytorch(both):
    program, params = both
    rejected, whole, short = 0, 0, 0
    for gamma, eta in SETTINGS:
        for length in SHORT:
            prompt = make_prompt(length)
            ids, rounds = program.decode(prompt, gamma, eta, NEW)
            assert_equal(generate(params, prompt, gamma, eta), ids, rounds)
            rejected += sum(r.accepted < len(r.confidence) for r in rounds)
            whole += sum(r.accepted == len(r.confidence) for r in rounds)
            short += sum(1 < len(r.confidence) < gamma for r in rounds)
    # Drafts were right and wrong, and confidence ended some of them.
    assert min(rejected, whole, short) > 20


def test_rounds_equal_far_from_the_start(both):
    """A wrong rotary base shows here, and hardly near the start."""
    program, params = both
    prompt = make_prompt(LONG)
    ids, rounds = program.decode(prompt, 6, 0.6, NEW)
    assert_equal(generate(params, prompt, 6, 0.6), ids, rounds)
    assert 0 < sum(r.accepted for r in rounds) < sum(len(r.confidence) for r in rounds)


def test_an_accepted_eos_ends_both(both):
    program, params = both
    for length in SHORT:
        prompt = make_prompt(length)
        ids, rounds = program.decode(prompt, 6, 0.0, NEW)
        # The first token of the first block of several that was not there before.
        starts = 1 + np.cumsum([0, *(r.committed for r in rounds)])
        blocks = [
            start for start, r in zip(starts, rounds, strict=False) if r.accepted and ids[start] not in ids[:start]
        ]
        eos = ids[blocks[0]]
        ids, rounds = program.decode(prompt, 6, 0.0, NEW, eos)
        assert ids[-1] == eos and rounds[-1].committed <= rounds[-1].accepted
        assert_equal(generate(params, prompt, 6, 0.0, eos), ids, rounds)


def test_another_adapter_is_noticed(both):
    """What the comparison must find: one weight of the adapter that differs by 3 %."""
    import torch

    program, params = both
    prompt = make_prompt(SHORT[1])
    generation = generate(params, prompt, 6, 0.6)
    weight = program.adapter.layers[0].self_attn.k_proj.weight
    with torch.no_grad():
        weight.mul_(1.03)
        program.seen.clear()
        ids, rounds = program.decode(prompt, 6, 0.6, NEW)
        weight.div_(1.03)
        program.seen.clear()
    assert list(generation.token_ids) == ids
    with pytest.raises(AssertionError):
        assert_equal(generation, ids, rounds)
