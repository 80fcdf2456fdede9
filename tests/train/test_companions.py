"""``python -m train.medusa`` and ``train.draft_model``: their losses, what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kangaroo_jax
from bench import methods
from kangaroo_jax.baselines import init_medusa, load_medusa, medusa_logits
from kangaroo_jax.model import LlamaConfig, embed, line, run_layers
from kangaroo_jax.model.layers import RMSNorm
from train import draft_model, medusa
from train.companion import ahead_sums, counted
from train.draft_model import draft_config
from train.medusa import medusa_loss

SMALL = ["--hidden", "12", "--heads", "2", "--kv-heads", "1", "--intermediate", "10", "--layers", "1"]


@pytest.fixture
def command(tiny_model: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Six steps for the tiny model, into a home folder of their own."""
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path / "home"))
    return f"--model {tiny_model} --data {text_folder} --steps 6 --batch-size 3 --length 31 --eval-every 3".split()


def test_which_positions_count_as_drawn() -> None:
    def cells(text: str) -> np.ndarray:
        return np.array([[cell == "x" for cell in text.split()]])

    mask = jnp.array(cells("x x . x x x"))
    assert (np.asarray(counted(mask, 2)) == cells("x . . x . .")).all()
    assert (np.asarray(counted(mask, 1)) == cells("x x . x x .")).all()


def test_sums_of_predictions_further_ahead() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 7, 11))
    tokens = np.random.default_rng(1).integers(0, 11, (2, 7))
    counts = np.zeros((2, 7), bool)
    counts[0, 1] = counts[1, 0] = counts[1, 3] = True
    entropy, hits = ahead_sums(jnp.array(logits), jnp.array(tokens), jnp.array(counts), 3)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = [(0, 1), (1, 0), (1, 3)]
    assert entropy == pytest.approx(-sum(logs[row, at, tokens[row, at + 3]] for row, at in places), rel=1e-5)
    assert hits == sum(logits[row, at].argmax() == tokens[row, at + 3] for row, at in places)


def test_the_loss_of_head_k_is_of_the_token_k_plus_1_places_on(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    heads = init_medusa(tiny_config, 3, tiny_params)
    keys = iter(jax.random.split(jax.random.key(1), 9))
    heads = jax.tree.map(lambda leaf: leaf + jax.random.normal(next(keys), leaf.shape), heads)
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(3, 259, (2, 23)), rng.random((2, 23)) < 0.9
    total, sums = jax.jit(medusa_loss(tiny_config, 3))(heads, tiny_params, {"tokens": tokens, "mask": jnp.array(mask)})
    at = jnp.broadcast_to(jnp.arange(23), (2, 23))

    @jax.jit
    def log_probabilities(params: dict) -> jax.Array:
        x, _ = run_layers(tiny_config, params, embed(params, tokens), line(at, None), None, 0, 3)
        x = RMSNorm(tiny_config.rms_norm_eps).apply({"params": params["norm"]}, x)
        return jax.nn.log_softmax(medusa_logits(heads, x))

    logs = np.asarray(log_probabilities(tiny_params))
    places = [(row, t) for row in range(2) for t in range(19) if mask[row, t : t + 4].all()]
    assert sums["tokens"] == len(places) > 5
    each = [-sum(logs[k - 1, row, t, tokens[row, t + k + 1]] for row, t in places) for k in (1, 2, 3)]
    np.testing.assert_allclose([sums[f"head{k}_loss"] for k in (1, 2, 3)], each, rtol=1e-5)
    assert total == pytest.approx(0.8 * each[0] + 0.64 * each[1] + 0.512 * each[2], rel=1e-5)


def test_fresh_heads_say_what_the_target_says(tiny_config: LlamaConfig, tiny_params: dict) -> None:
    x = jax.random.normal(jax.random.key(0), (5, tiny_config.hidden_size))
    logits = medusa_logits(init_medusa(tiny_config, 3, tiny_params), x)
    np.testing.assert_allclose(logits, np.broadcast_to(x @ tiny_params["lm_head"]["kernel"], (3, 5, 259)), rtol=1e-4)


@pytest.mark.full
def test_heads_are_made_found_and_lossless(
    command: list[str], tiny: kangaroo_jax.Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    medusa.main(command)
    out = tmp_path / "home" / "bench" / "tiny" / "medusa"
    assert f"written to {out}" in capsys.readouterr().out
    record = json.loads((out / "medusa_config.json").read_text())
    training = record["training"]
    assert record["heads"] == 4 and training["steps"] == 6 and training["tokens"] == 6 * 3 * 31
    assert training["command"].startswith("python -m train.medusa --model tiny") and training["data"] == ["text"]
    losses = [json.loads(line) for line in (out.parent / "medusa-training" / "log.jsonl").read_text().splitlines()]
    held = [line["held_out_loss"] for line in losses if "held_out_loss" in line]
    assert len(held) == 2 and held[1] < held[0]
    first = jax.tree.leaves(load_medusa(out, tiny.config))
    ready = methods.make("medusa-tree", tiny, {"nodes": 7})
    prompt = [1, 50, 60, 70]
    plain = methods.make("plain", tiny).generate(prompt, 12).token_ids
    assert ready.generate(prompt, 12).token_ids == plain
    # Without its checkpoints the same command makes the same heads.
    medusa.main([*command, "--out", str(tmp_path / "again")])
    again = jax.tree.leaves(load_medusa(tmp_path / "again", tiny.config))
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(first, again, strict=True))


def test_some_tokens_only(command: list[str], tiny: kangaroo_jax.Params, tmp_path: Path) -> None:
    """Heads and draft models that say the commonest tokens alone, and are lossless all the same."""
    medusa.main([*command, "--vocabulary", "9"])
    ready = methods.make("medusa-tree", tiny, {"nodes": 7})
    tokens = np.asarray(ready.weights["tokens"])
    assert tokens.shape == (9,) and (np.diff(tokens) > 0).all() and ord(" ") + 3 in tokens
    assert ready.weights["lm_head_3"]["kernel"].shape == (tiny.config.hidden_size, 9)
    plain = methods.make("plain", tiny).generate([1, 50, 60, 70], 12).token_ids
    assert ready.generate([1, 50, 60, 70], 12).token_ids == plain
    draft_model.main([*command, *SMALL, "--vocabulary", "9", "--out", str(tmp_path / "small")])
    head = kangaroo_jax.load(tmp_path / "small", kernels="xla").target["lm_head"]["kernel"]
    assert np.flatnonzero(np.asarray(head).any(0)).tolist() == tokens.tolist()
    assert medusa.main([*command, "--vocabulary", "300"]) == 2


@pytest.mark.full
def test_a_draft_model_is_made_found_and_lossless(
    command: list[str], tiny: kangaroo_jax.Params, tmp_path: Path
) -> None:
    draft_model.main([*command, *SMALL])
    out = tmp_path / "home" / "bench" / "tiny" / "draft_model"
    small = kangaroo_jax.load(out)
    assert small.config == draft_config(
        tiny.config, hidden=12, layers=1, heads=2, kv_heads=1, intermediate=10
    ) and small.tokenizer.encode("ab") == tiny.tokenizer.encode("ab")
    record = json.loads((out / "training.json").read_text())
    assert record["steps"] == 6 and record["hidden"] == 12 and 0 < record["held_out_loss"] < 5.6  # log(259) is 5.56.
    ready = methods.make("sps", tiny)
    plain = methods.make("plain", tiny).generate([1, 50, 60, 70], 12).token_ids
    assert ready.generate([1, 50, 60, 70], 12).token_ids == plain


@pytest.mark.parametrize("main", [medusa.main, draft_model.main])
def test_refusals_are_one_line(
    main: object, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*words: str) -> str:
        assert main([*command, *words]) == 2  # type: ignore[operator]
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("error: ")
        return message

    assert "--steps is 0; it must be at least 1" in refusal("--steps", "0")
    assert "--length is 999; the target has 101 positions at most" in refusal("--length", "999")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    assert "holds something else" in refusal("--out", str(tmp_path / "mine"))
    assert "unknown model 'nobody'" in refusal("--model", "nobody")
    assert "--heads is 0" in refusal("--heads", "0")
