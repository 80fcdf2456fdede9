"""A student that knows some tokens alone: which ones, and figures that hold for the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kangaroo_jax
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import load_adapter, write_hf
from train.adapter import main
from train.batches import Conversations, Shape, Windows
from train.byte_tokenizer import write_byte_tokenizer
from train.corpus import BOS, EOS, TokenTexts
from train.data import Data
from train.loss import Teacher, chunked_sums
from train.render import Sample
from train.rows import BadRows
from train.run_log import read_log


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_figures_are_of_the_whole_vocabulary() -> None:
    rng = np.random.default_rng(3)
    head, final, drafted = (rng.normal(size=size) for size in ((7, 31), (1, 40, 7), (1, 40, 7)))
    drafted[0, :20] = final[0, :20]
    mask = rng.random((1, 40)) < 0.7
    ids = np.sort(rng.permutation(31)[:11])
    expected = dict.fromkeys(("loss", "top1", "acceptance", "tokens"), 0.0)
    slopes = np.zeros(drafted.shape)
    missed = 0
    for at in np.flatnonzero(mask[0]):
        p, q = softmax(final[0, at] @ head), softmax(drafted[0, at] @ head[:, ids])
        expected["loss"] -= float(p[ids] @ np.log(q))
        expected["top1"] += ids[q.argmax()] == p.argmax()
        expected["acceptance"] += np.minimum(p[ids], q).sum()
        expected["tokens"] += 1
        slopes[0, at] = head[:, ids] @ (p[ids].sum() * q - p[ids])
        missed += p.argmax() not in ids
    assert missed > 3 and expected["top1"] > 3

    def loss(drafted: jax.Array) -> Any:
        arrays = (jnp.asarray(x, jnp.float32) for x in (final, head, head[:, ids]))
        states, whole, columns = arrays
        teacher = Teacher(states, head=whole, columns=columns, ids=jnp.asarray(ids, jnp.int32))
        return chunked_sums(teacher, columns, drafted, jnp.asarray(mask), 16)

    gradient, sums = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(drafted, jnp.float32))
    assert {name: float(sums[name]) for name in expected} == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-5)


def test_it_has_what_is_trained_most_often_and_eos() -> None:
    tokens = np.array([9, 5, 5, 7, 7, 7, 9, 9, 9, 9], np.int32)
    mask = np.array([0, 1, 1, 1, 1, 0, 0, 1, 0, 0], bool)  # Predicted are 5 7 7 7 9.
    chats = Conversations([Sample(tokens, mask)], Shape(1, 16))
    data = Data(chats, chats, BadRows(), "")
    assert data.most_frequent(2, 31).tolist() == [5, 7]  # 5 and 9 come as often.
    assert data.most_frequent(3, 31, [30, 2]).tolist() == [2, 7, 30]
    assert data.most_frequent(31, 31, [2]).tolist() == [*range(31)]
    text = Windows(TokenTexts([np.array([4, 8, 8]), np.array([8, 4, 6])], BOS, EOS, np.array([13])), Shape(1, 16))
    assert Data(text, text, BadRows(), "").most_frequent(2, 31).tolist() == [4, 8]


@pytest.mark.parametrize("finals", ["", " --final-states"])
def test_an_adapter_of_its_own_shape_is_trained_kept_and_decodes(
    tmp_path: Path, tiny_config: LlamaConfig, tiny_params: dict, refusal: Callable[..., str], finals: str
) -> None:
    model, rows = tmp_path / "tiny", tmp_path / "chats.jsonl"
    write_hf(model, tiny_config, tiny_params, "float32")
    write_byte_tokenizer(model)
    turn = '{{"messages": [{{"role": "user", "content": "{0}?"}}, {{"role": "assistant", "content": "is {0}{0}"}}]}}\n'
    rows.write_text("".join(turn.format(index) for index in range(40)))
    words = f"--model {model} --data {rows} --exit-layer 1 --steps 4 --warmup 1 --batch-size 4 --length 64 --seed 3"
    words += (
        " --learning-rate 0.02 --optimizer muon --adapter with-mlp --kv-heads 2 --mlp-width 17 --draft-vocabulary 19"
    )
    words += finals
    plain = [*words.split(), "--decode-every", "2", "--decode-prompts", "2"]
    assert main(plain) == 0
    draft, params = load_adapter(model / "adapter", tiny_config, "float32")
    adapter = draft.adapter
    assert (adapter.num_key_value_heads, adapter.intermediate_size, adapter.draft_vocabulary) == (2, 17, 19)
    assert adapter.final_states is bool(finals) is bool(np.any(params.get("final_proj", {}).get("kernel", 0)))
    ids = np.asarray(params["draft_vocabulary"]["ids"]).tolist()
    assert EOS in ids and all(ord(char) + 3 in ids for char in "is 0123456789")
    loaded = kangaroo_jax.load(model)
    one, other = (
        kangaroo_jax.generate(loaded, "what?", method=method, max_new_tokens=20).token_ids
        for method in ("kangaroo", "plain")
    )
    assert one == other
    # The same from stored features; and it is where another run starts.
    out = tmp_path / "stored"
    stored = [*words.split(), "--decode-every", "0", "--store-features", str(tmp_path / "features"), "--out"]
    assert main([*stored, str(out)]) == 0
    assert np.asarray(load_adapter(out, tiny_config, "float32")[1]["draft_vocabulary"]["ids"]).tolist() == ids
    logs = [read_log(folder / "log.jsonl") for folder in (model / "adapter-training", tmp_path / "stored-training")]
    for name in ("loss", "held_out_loss", "held_out_acceptance", "held_out_top3"):
        assert logs[1][name][-1][1] == pytest.approx(logs[0][name][-1][1], rel=1e-3), name
    assert main([*stored, str(tmp_path / "next"), "--init-adapter", str(out)]) == 0
    fewer = [*stored, str(tmp_path / "other"), "--init-adapter", str(out), "--kv-heads", "1"]
    assert "has the num_key_value_heads 2, and --kv-heads is 1" in refusal(main, fewer)
    other = [word for word in (*stored, str(tmp_path / "more"), "--init-adapter", str(out)) if word != "--final-states"]
    if finals:
        assert "reads final states; pass --final-states, too" in refusal(main, other)
    else:
        assert main([*other, "--final-states"]) == 0
        assert load_adapter(tmp_path / "more", tiny_config, "float32")[0].adapter.final_states
