"""Characters out of tokens that are bytes: each is text as soon as its bytes are there, whatever is beside them."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

# How byte-level tokenizers write bytes (GPT-2's table): printable ones as themselves, the others from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_LEVEL = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}
_FALLBACK = {f"<0x{byte:02X}>": byte for byte in range(256)}
_LONGEST = 3  # Bytes of a character that lacks one.


class Characters:
    """Decodes ids as the ``tokenizers`` library does, but for runs of SentencePiece's byte-fallback pieces.

    The library makes one U+FFFD of every byte of a run of which any is not UTF-8. Here, as in SentencePiece, the bytes
    that are no part of a character become one U+FFFD each, and the characters beside them stay::

        <0xE4> <0xB8> <0xAD> <0xE4> <0xB8>      the library "\\ufffd" * 5      here "中\\ufffd\\ufffd"
    """

    def __init__(self, backend: Any) -> None:
        """Look how a tokenizer writes bytes.

        Args:
            backend: of the ``tokenizers`` library.
        """
        self._backend = backend
        vocabulary = backend.get_vocab() if self._decodes("<0x0A>") else {}
        self._byte_ids = frozenset(vocabulary[piece] for piece in _FALLBACK if piece in vocabulary)
        self._byte_level = self._decodes("Ċ")

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, none of them special; those that the tokenizer does not have are nothing."""
        if self._byte_ids.isdisjoint(ids):
            return self._backend.decode(ids, skip_special_tokens=False)
        known = [i for i in ids if self._backend.id_to_token(i) is not None]
        tokens: list[str] = []
        for is_byte, run in itertools.groupby(known, key=self._byte_ids.__contains__):
            pieces = [self._backend.id_to_token(i) for i in run]
            tokens += _apart(pieces) if is_byte else pieces
        return self._backend.decoder.decode(tokens)

    def unfinished(self, ids: Sequence[int]) -> int:
        """Return how many characters (U+FFFD) at the end of ``text(ids)`` may yet become another one."""
        tail = b""
        for token in reversed(ids):
            tail = self._spelled(token) + tail
            if len(tail) >= _LONGEST:
                break
        held = _begun(tail)
        # One for each byte, or, by a byte-level decoder, one for all.
        return held if self._byte_ids else min(held, 1)

    def _decodes(self, newline: str) -> bool:
        return self._backend.decoder is not None and self._backend.decoder.decode([newline]) == "\n"

    def _spelled(self, token: int) -> bytes:
        """Return the bytes of a token, at least the last of them."""
        piece = self._backend.id_to_token(token) or ""
        if token in self._byte_ids:
            return bytes([_FALLBACK[piece]])
        if self._byte_level and all(letter in _LEVEL for letter in piece):
            return bytes(_LEVEL[letter] for letter in piece)
        return piece.encode()


def _apart(pieces: Sequence[str]) -> Iterator[str]:
    """Yield the pieces of a run of bytes with an empty one after each character: what ends a run."""
    left = iter(pieces)
    # Each byte that is part of no character becomes one surrogate.
    for character in bytes(_FALLBACK[piece] for piece in pieces).decode("utf-8", "surrogateescape"):
        for _ in character.encode("utf-8", "surrogateescape"):
            yield next(left)
        yield ""


def _begun(tail: bytes) -> int:
    """Return how many bytes at the end begin a character that others may complete."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(tail[-_LONGEST:])
    kept = decoder.getstate()[0]
    return 0 if kept[:1] == b"\xed" and kept[1:] >= b"\xa0" else len(kept)  # Surrogates, which Python waits for.
