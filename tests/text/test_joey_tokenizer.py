"""joey's tokenizer is one token per byte, whatever the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import kangaroo_jax
from kangaroo_jax.text import Tokenizer, load_tokenizer
from train.byte_tokenizer import write_byte_tokenizer
from train.corpus import BOS, VOCAB_SIZE, encode_bytes


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("joey") / "made"
    write_byte_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return load_tokenizer(directory)


def check(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == [BOS, *encode_bytes(text.encode()).tolist()]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    ["", " both ends ", "\n\n\tx\r\n", "don't ,  stop .", "\x00\x7f\xad", "<s>", "a</s>b<unk>", "é 漢字 🦘"],
)
def test_one_token_per_byte(tokenizer: Tokenizer, text: str) -> None:
    check(tokenizer, text)


@given(text=st.text())
def test_one_token_per_byte_of_any_text(tokenizer: Tokenizer, text: str) -> None:
    check(tokenizer, text)


def test_every_id_is_in_the_vocabulary(tokenizer: Tokenizer, directory: Path) -> None:
    backend = AutoTokenizer.from_pretrained(directory)
    assert sorted(backend.get_vocab().values()) == list(range(VOCAB_SIZE))
    assert (backend.unk_token_id, backend.bos_token_id, backend.eos_token_id) == (0, 1, 2)
    assert backend.model_max_length == 1024
    assert tokenizer.special_ids == {0, 1, 2}


def test_bytes_outside_utf8_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([1, *encode_bytes(b"a\xffb\xc3").tolist(), 2]) == "a\ufffdb\ufffd"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_the_embedded_model_has_these_files(directory: Path, name: str) -> None:
    embedded = Path(kangaroo_jax.__file__).parent / "assets" / "joey" / name
    assert json.loads(embedded.read_text()) == json.loads((directory / name).read_text())
