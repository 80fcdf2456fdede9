"""Incremental detokenizer: text pieces while ids are still arriving, never half a character."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from kangaroo_jax.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns a growing list of token ids into text pieces.

    The pieces, concatenated, are ``decode(prompt + ids)`` after its longest common prefix with ``decode(prompt)``.
    Text is held back as long as later ids could still change it::

        ids        b"a"   b"\\xc3"   b"\\xa9"   b"\\xc3"   b"b"          b"\\xff"
        piece      "a"    ""        "é"       ""        "\\ufffdb"    "\\ufffd"

    Only a window of ids is decoded in each step, so a long text costs no more per token than a short one: the window
    starts where the text was last complete, one piece back, since a tokenizer may drop the space of the first token
    it is given.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] | np.ndarray) -> None:
        """Start after a prompt.

        Args:
            tokenizer: the tokenizer of the ids.
            prompt_ids: the prompt, whose text is in no piece; may be empty.
        """
        self._tokenizer = tokenizer
        self._window: list[int] = self._with_text(prompt_ids)
        self._seen = tokenizer.decode(self._window)  # Text of the window that is known to the reader.
        self._settled = 0  # Ids of the window before the last piece that ended complete.

    def push(self, ids: Sequence[int] | np.ndarray) -> str:
        """Take the next ids and return the text that is now certain; may be empty."""
        self._window += self._with_text(ids)
        text = self._tokenizer.decode(self._window)
        unfinished = self._tokenizer.unfinished(self._window)
        piece = self._piece(text[: len(text) - unfinished])
        if piece and not unfinished:
            self._window = self._window[self._settled :]
            self._settled = len(self._window)
            self._seen = self._tokenizer.decode(self._window)
        return piece

    def finish(self) -> str:
        """Return what was held back: an unfinished character comes out as U+FFFD."""
        return self._piece(self._tokenizer.decode(self._window))

    def _piece(self, text: str) -> str:
        """Return what ``text``, of the whole window, has beyond the text already seen, and remember it."""
        piece = text[_agreement(self._seen, text) :]
        if piece:
            self._seen = text
        return piece

    def _with_text(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        """Return the ids that stand for text: decoding skips the others, so a run of bytes goes on across them."""
        return [int(i) for i in ids if int(i) not in self._tokenizer.special_ids]


def _agreement(first: str, second: str) -> int:
    """Return in how many characters two strings agree from the start."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
