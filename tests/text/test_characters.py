"""Bytes become text as SentencePiece and UTF-8 have it, at once, and no byte spoils the characters beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from kangaroo_jax.text import Characters, Detokenizer, Tokenizer, load_tokenizer

# Of 1 to 4 bytes, joined, control characters, what stands for invalid bytes, for a space, for SentencePiece's byte.
TEXTS = ["a", " ", "\n", "é", "漢", "🦘", "👩\u200d👩", "\0", "\x7f", "\ufffd", "\u2581", "<0x41>", "e\u0301"]
# Never UTF-8: overlong, surrogates, beyond Unicode, without a beginning, without an end.
GARBAGE = [
    b"\xff",
    b"\xc0\x80",
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xbc",
    b"\xe6\xbc",
    b"\xf0\x9f",
]
BYTES = st.lists(st.sampled_from([*(text.encode() for text in TEXTS), *GARBAGE]), max_size=8).map(b"".join)
CUTS = st.lists(st.integers(0, 40), max_size=20)


@pytest.fixture(scope="module")
def llama(sentencepiece_model: Path) -> Tokenizer:
    return load_tokenizer(sentencepiece_model.parent)


@pytest.fixture(scope="module")
def reference(sentencepiece_model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))


def by_byte(data: bytes) -> str:
    """Return UTF-8 as text, with one U+FFFD for each byte that is none."""
    return "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in data.decode("utf-8", "surrogateescape"))


def by_part(data: bytes) -> str:
    """Return UTF-8 as text, with one U+FFFD for all bytes that begin the same character."""
    return data.decode("utf-8", "replace")


def whole(data: bytes) -> bytes:
    """Return the bytes without those at the end that begin a character, by trying."""
    for size in (3, 2, 1):
        for count in range(1, 5 - size):
            for more in itertools.product(b"\x80\x90\xa0\xbf", repeat=count):
                found = (data[-size:] + bytes(more)).decode(errors="ignore")
                if len(data) >= size and len(found) == 1 and len(found.encode()) == size + count:
                    return data[:-size]
    return data


def ids_of(data: bytes) -> list[int]:
    return [3 + byte for byte in data]


# All pieces but <unk>, <s> and </s>; the first 256 are bytes.
@given(before=st.lists(st.integers(3, 300), max_size=9), data=BYTES, after=st.lists(st.integers(259, 300), max_size=4))
def test_whole_texts_are_sentencepieces(
    llama: Tokenizer,
    reference: sentencepiece.SentencePieceProcessor,
    before: list[int],
    data: bytes,
    after: list[int],
) -> None:
    ids = [*before, *ids_of(data), *after]
    if ids[:1] != ids_of(b" "):  # That one, at the very start, is stripped as the space of a word is.
        assert llama.decode([1, *ids, 2]) == reference.decode(ids)


@pytest.mark.parametrize(("name", "text"), [("llama", by_byte), ("byte_level", by_part)])
@given(data=BYTES, cuts=CUTS)
@example(data="中。中".encode()[:-1], cuts=[])  # A budget that cuts a character leaves the others.
@example(data=b"\xed\xa0\xed\x9f\xbf\xff", cuts=[1, 2, 3, 5])
def test_characters_are_text_as_soon_as_their_bytes_are_there(
    request: pytest.FixtureRequest, name: str, text: Callable[[bytes], str], data: bytes, cuts: list[int]
) -> None:
    tokenizer = request.getfixturevalue(name)
    word = tokenizer.encode("the")
    detokenizer, shown, done = Detokenizer(tokenizer, word), "", b""
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(bounds):
        shown, done = shown + detokenizer.push(ids_of(data[start:stop])), data[:stop]
        assert shown == text(whole(done))
    shown += detokenizer.finish()
    assert shown == text(data)
    assert tokenizer.decode([*word, *ids_of(data)]) == "the" + shown


@pytest.mark.parametrize("name", ["llama", "byte_level"])
@given(before=BYTES, character=st.sampled_from("é漢🦘"), cut=st.integers(1, 3), after=BYTES)
def test_a_prompt_that_ends_within_a_character(
    request: pytest.FixtureRequest, name: str, before: bytes, character: str, cut: int, after: bytes
) -> None:
    tokenizer, data = request.getfixturevalue(name), character.encode()
    cut = min(cut, len(data) - 1)
    detokenizer = Detokenizer(tokenizer, [*tokenizer.encode("the"), *ids_of(before + b"." + data[:cut])])
    pieces = [detokenizer.push([i]) for i in ids_of(data[cut:])]
    assert pieces == [""] * (len(pieces) - 1) + [character]
    rest = detokenizer.push(ids_of(after)) + detokenizer.finish()
    assert rest == {"llama": by_byte, "byte_level": by_part}[name](after)


HAN = ids_of("漢".encode())


def test_special_tokens_do_not_end_a_run_and_other_added_tokens_do(llama: Tokenizer) -> None:
    assert llama.decode([1, *HAN[:1], 2, *HAN[1:], *HAN[:2]]) == "漢\ufffd\ufffd"
    backend = llama._core
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    tool = backend.token_to_id("<tool>")
    assert Characters(backend).text([*HAN, *HAN[:2], tool, *HAN[2:], *HAN]) == "漢\ufffd\ufffd<tool>\ufffd漢"


def test_ids_that_the_tokenizer_does_not_have_are_nothing(llama: Tokenizer) -> None:
    ids = [*HAN[:2], 99999, *HAN[2:]]
    assert llama.decode(ids) == "漢"
    detokenizer = Detokenizer(llama, [])
    assert [detokenizer.push([i]) for i in ids] == ["", "", "", "漢"]


def backend_of(tokens: list[str], decoder: object) -> Backend:
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    if decoder is not None:
        backend.decoder = decoder
    return backend


def test_what_looks_like_bytes_is_text_where_nothing_decodes_it() -> None:
    tokens = ["<0xE6>", "<0xBC>", "ł"]
    for decoder in (None, decoders.Fuse(), decoders.ByteLevel()):
        backend = backend_of(tokens, decoder)
        characters = Characters(backend)
        assert characters.text([0, 1]) == backend.decode([0, 1]) and characters.unfinished([0, 1]) == 0
        # GPT-2's name of a byte in the middle of a character.
        assert characters.unfinished([2]) == 0
