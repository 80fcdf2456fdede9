"""bench.gguf_source: the same weights, and a tokenizer that SentencePiece reads, with joey's ids."""

from __future__ import annotations

import filecmp

import pytest
import sentencepiece

from bench import gguf_source
from bench.shapes import write_random
from kangaroo_jax import load
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import resolve
from kangaroo_jax.text import load_tokenizer


@pytest.fixture(scope="module")
def joey(tmp_path_factory):
    out = tmp_path_factory.mktemp("source") / "joey"
    assert gguf_source.main(["--model", "joey", "--out", str(out)]) == 0
    return out


def test_all_but_the_tokenizer_is_the_checkpoints(joey):
    source = resolve("joey")
    names = ["config.json", "generation_config.json", "model.safetensors", *_adapter(source)]
    assert filecmp.cmpfiles(source, joey, names, shallow=False) == (names, [], [])
    assert sorted(str(path.relative_to(joey)) for path in joey.rglob("*") if path.is_file()) == sorted(
        [*names, "tokenizer.model"]
    )


def _adapter(directory):
    return [str(path.relative_to(directory)) for path in (directory / "adapter").iterdir()]


@pytest.mark.parametrize("text", ["def f(x):\n    return x", "  two  spaces ", "\u00e9\u4e2d\U0001f998\x00", ""])
def test_sentencepiece_gives_joeys_ids(joey, text):
    model = sentencepiece.SentencePieceProcessor(model_file=str(joey / "tokenizer.model"))
    ids = load_tokenizer(resolve("joey")).encode(text)
    assert [model.bos_id(), *model.encode(text)] == ids and model.decode(ids[1:]) == text


def test_kinds_of_pieces_are_sentencepieces_own():
    model = sentencepiece.SentencePieceProcessor(model_proto=gguf_source.byte_tokenizer())
    assert model.vocab_size() == 259 and (model.unk_id(), model.bos_id(), model.eos_id()) == (0, 1, 2)
    assert [model.is_control(number) for number in range(4)] == [False, True, True, False]
    assert [number for number in range(259) if model.is_byte(number)] == [*range(3, 259)]


def test_a_random_model_gets_a_tokenizer(tmp_path):
    write_random(tmp_path / "random", LlamaConfig(263, 22, 29, 3, 6, 3, 4))
    gguf_source.write_source(tmp_path / "random", tmp_path / "out")
    params = load(tmp_path / "out", dtype="bfloat16")
    assert params.draft and params.tokenizer.encode("a b")[-1] == 3 + ord("b")


def test_what_has_no_room_or_is_in_the_way_is_refused(tmp_path, capsys):
    write_random(tmp_path / "small", LlamaConfig(61, 22, 29, 3, 6, 3, 4))
    words = ["--model", str(tmp_path / "small"), "--out"]
    assert gguf_source.main([*words, str(tmp_path / "out")]) == 2
    assert "has a vocabulary of 61; the stand-in tokenizer needs 259" in capsys.readouterr().err
    assert gguf_source.main([*words, str(tmp_path)]) == 2
    assert "exists; choose another --out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
