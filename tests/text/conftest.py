"""Tokenizers of the three kinds: joey's bytes, words with byte fallback, a small SentencePiece model."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from kangaroo_jax.text import Tokenizer, load_tokenizer
from train.byte_tokenizer import write_byte_tokenizer

WORDS = ["\u2581", "\u2581hop", "hop", "\u2581\u2581", "a", "\u2581a", "\u00e9", "ha", "\ufffd"]


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(directory)
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer of Llama's kind: words with their space in front, bytes for all else, first space dropped."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = specials + [f"<0x{byte:02X}>" for byte in range(256)] + WORDS
    model = models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True)
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    directory: Path = tmp_path_factory.mktemp("fallback")
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(directory)
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model with Llama's settings: BPE, byte fallback, ids 0, 1, 2 = <unk>, <s>, </s>.

    As in Llama's, runs of spaces have low ids, and scores below all others.
    """
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    text = ["the kangaroo jumps over the lazy dog", "a user and an assistant", "what is the answer to this question"]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*text, "    the user        jumps", "        what  is"] * 3),
        model_writer=made,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(made.getvalue())
    for piece in model.pieces:
        if len(piece.piece) > 1 and not piece.piece.strip("\u2581"):
            piece.score = -1e9
    path.write_bytes(model.SerializeToString())
    return path
