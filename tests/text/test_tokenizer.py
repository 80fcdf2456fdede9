"""Loading tokenizers: a lone SentencePiece model, a tokenizer.json, and directories that have neither."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from kangaroo_jax.text import load_tokenizer
from train.byte_tokenizer import write_byte_tokenizer

LLAMA_TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


@pytest.fixture(params=["tokenizer.model alone", "with tokenizer_config.json"])
def llama_directory(request: pytest.FixtureRequest, sentencepiece_model: Path, tmp_path: Path) -> Path:
    """Return a directory as Vicuna's: no tokenizer.json, the config of a Llama beside the model."""
    shutil.copy(sentencepiece_model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 320}))
    if "tokenizer_config" in request.param:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(LLAMA_TOKENIZER_CONFIG))
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "the user jumps",
        "A chat: what is this?",
        "kangaroo\nis é 漢 🦘",
        "x  y ",
        " the user",
        "the  user\n    jumps",  # The last space belongs to the word: pieces merge by score, not in the order of ids.
        "a         user <0x0A>",
    ],
)
def test_sentencepiece_model_is_read_as_sentencepiece_does(
    llama_directory: Path, sentencepiece_model: Path, text: str
) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    tokenizer = load_tokenizer(llama_directory)
    ids = tokenizer.encode(text)
    assert ids == [1, *reference.encode(text)]
    assert tokenizer.decode(ids) == text


def test_text_after_a_special_token_has_its_space_in_front(llama_directory: Path, sentencepiece_model: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    ids = load_tokenizer(llama_directory).encode("the user</s>jumps")
    assert ids == [1, *reference.encode("the user"), 2, *reference.encode("jumps")]


def test_what_tokenizer_config_says_counts(sentencepiece_model: Path, tmp_path: Path) -> None:
    shutil.copy(sentencepiece_model, tmp_path)
    config = LLAMA_TOKENIZER_CONFIG | {"legacy": False, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    ids = load_tokenizer(tmp_path).encode("the</s>jumps")
    end = ids.index(2)
    assert ids[:end] == reference.encode("the")
    assert not reference.id_to_piece(ids[end + 1]).startswith("\u2581")


def write_pieces(directory: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """Train a ``tokenizer.model`` as Llama's is, but for the options; return what reads it."""
    kind = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    kind |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "vocab_size": 400}
    made = io.BytesIO()
    lines = Path(shutil.__file__).read_text(encoding="utf-8").splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, hard_vocab_limit=False, minloglevel=2, **kind | options
    )
    (directory / "tokenizer.model").write_bytes(made.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byte_fallback": False},
        {"add_dummy_prefix": False},
        {"split_digits": True},
        {"control_symbols": ["[INST]"]},
        {"user_defined_symbols": ["<sep>", "[X]"]},
        {"user_defined_symbols": ["<sep>", "[X]"], "add_dummy_prefix": False},
    ],
    ids=str,
)
def test_models_of_other_settings(options: dict[str, Any], tmp_path: Path) -> None:
    reference = write_pieces(tmp_path, **options)
    tokenizer = load_tokenizer(tmp_path)
    for text in ["def f(x):\n    return os.path", " a<sep>b [X]<sep>>  12 ", "é 漢\t🦘", "[X]", "  ", ""]:
        assert tokenizer.encode(text) == [1, *reference.encode(text)]


@pytest.mark.parametrize(
    "options",
    [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}, {"remove_extra_whitespaces": True}],
    ids=str,
)
def test_a_model_that_would_be_read_otherwise_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    write_pieces(tmp_path, **options)
    with pytest.raises(
        ValueError, match=r"tokenizer\.model is no BPE that takes text as it is: tokenizer\.json is needed"
    ):
        load_tokenizer(tmp_path)


def test_special_ids(llama_directory: Path) -> None:
    tokenizer = load_tokenizer(llama_directory)
    assert tokenizer.special_ids == {0, 1, 2}


def test_decode_leaves_special_tokens_out_and_takes_arrays(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(np.array([1, 3 + ord("h"), 3 + ord("i"), 2], np.int32)) == "hi"
    assert tokenizer.decode([]) == ""


def test_text_longer_than_the_model_is_encoded_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    write_byte_tokenizer(tmp_path, model_max_length=7)
    with caplog.at_level(logging.WARNING):
        assert len(load_tokenizer(tmp_path).encode("a" * 11)) == 12
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no directory .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")


def test_directory_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor tokenizer\.model; copy") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_truncated_tokenizer(tmp_path: Path, sentencepiece_model: Path, name: str) -> None:
    write_byte_tokenizer(tmp_path / "whole")
    source = tmp_path / "whole" / name if name == "tokenizer.json" else sentencepiece_model
    (tmp_path / name).write_bytes(source.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


LOAD_WITHOUT_TORCH = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find_spec(name, package)
from kangaroo_jax.text import load_tokenizer
load_tokenizer(sys.argv[1]).encode("a")
import transformers
assert not transformers.is_torch_available()
"""


def test_loading_prints_nothing(tmp_path: Path) -> None:
    """On import transformers advises to install torch; a fresh interpreter shows whether that is kept away."""
    write_byte_tokenizer(tmp_path)
    command = [sys.executable, "-c", LOAD_WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
