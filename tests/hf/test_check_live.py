"""The check against transformers itself: right conversions pass, wrong ones fail, and both sides round alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.check import EXACT, check
from convert.hf_to_flax import convert
from convert.reference import transformers_logits
from kangaroo_jax.store import read_config, read_hf, write_hf

pytestmark = pytest.mark.hf

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"


@pytest.mark.parametrize(
    ("case", "dtype"),
    [("mha", None), ("mha", "bfloat16"), ("llama3", "float32"), ("sharded", None), ("sharded", "bfloat16")]
    + [(case, None) for case in ("tied", "mistral", "qwen2", "qwen3")],
)
def test_a_right_conversion_passes_by_far(case, dtype, tmp_path):
    convert(FIXTURES / case, tmp_path / "out", dtype)
    found = check(tmp_path / "out", FIXTURES / case)
    assert found.passed and found.limit == EXACT and found.relative_error < EXACT / 10
    assert found.positions == 640 and found.top1_agreement > 0.99


@pytest.mark.parametrize(
    ("case", "renamed"),
    [
        ("sharded", lambda name: f"_orig_mod.{name}"),
        ("mha", lambda name: f"module.{name}"),
        ("gqa", lambda name: name.removeprefix("model.")),
        ("tied", lambda name: name.replace("model.embed_tokens", "lm_head")),
    ],
)
def test_other_names_are_the_same_model(case, renamed, tmp_path):
    """transformers has the plain names; its own reading of the others is the check's reference."""
    source = Path(shutil.copytree(FIXTURES / case, tmp_path / case))
    for file in source.glob("*.safetensors"):
        save_file({renamed(name): values for name, values in load_file(file).items()}, file, {"format": "pt"})
    if (index := source / "model.safetensors.index.json").is_file():
        found = json.loads(index.read_text())
        found["weight_map"] = {renamed(name): file for name, file in found["weight_map"].items()}
        index.write_text(json.dumps(found))
    convert(source, tmp_path / "out")
    for reference in (source, FIXTURES / case):
        found = check(tmp_path / "out", reference)
        assert found.passed and found.relative_error < EXACT / 10


def test_a_wrong_conversion_fails(tmp_path):
    config, params = read_hf(FIXTURES / "mha")
    kernel = params["layers_1"]["self_attn"]["qkv_proj"]["kernel"]
    groups = kernel.reshape(len(kernel), config.num_key_value_heads, 3, config.head_dim)
    groups[:] = groups[:, :, [1, 0, 2]].copy()
    write_hf(tmp_path / "wrong", config, params)
    convert(tmp_path / "wrong", tmp_path / "out")
    found = check(tmp_path / "out", FIXTURES / "mha")
    assert not found.passed and found.relative_error > 1000 * EXACT


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_kept_narrow_compute_what_wide_ones_do(form, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(FIXTURES / "tied", dtype=torch.bfloat16, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    if form == "bin":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    tokens = np.random.default_rng(0).integers(97, size=(2, 300))
    with torch.no_grad():
        expected = model.float()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_array_equal(transformers_logits(tmp_path, tokens, "bfloat16"), expected)


def test_a_checkpoint_transformers_cannot_load_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text((FIXTURES / "mha" / "config.json").read_text())
    assert read_config(tmp_path).vocab_size == 97
    with pytest.raises(ValueError, match=r"transformers could not load it \(OSError: .*; either repair it") as caught:
        transformers_logits(tmp_path, np.zeros((1, 3), np.int32))
    assert "\n" not in str(caught.value)
