"""From the ids of one sequence to its text, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kangaroo_jax.text.detokenizer import Detokenizer
from kangaroo_jax.text.stop import StopScanner
from kangaroo_jax.text.tokenizer import Tokenizer


class Reader:
    """Turns the growing ids of one sequence into the text that may be shown, and ends it at a stop string.

    The ids are taken one at a time: text, ``count`` and ``token_texts`` are the same however the ids are cut into
    rounds. Only text after the prompt is searched for stop strings.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int] | np.ndarray, stop_strings: Sequence[str] = ()
    ) -> None:
        """Start after a prompt.

        Args:
            tokenizer: the tokenizer of the ids.
            prompt_ids: the prompt, whose text is in no piece; may be empty.
            stop_strings: the text ends before the first of them, in which special tokens may be, too, but for one
                alone; see ``StopScanner``.

        Raises:
            ValueError: if ``stop_strings`` is no list of strings, or a string is empty.
        """
        self._detokenizer = Detokenizer(tokenizer, prompt_ids)
        special = tokenizer.special_tokens
        self._scanner = StopScanner(stop_strings, special)
        self._marks = {special[token]: mark for token, mark in self._scanner.marks.items()}
        self._token_texts: list[str] = []
        self._pieces: list[str] = []

    def push(self, ids: Sequence[int] | np.ndarray) -> str:
        """Take the next ids and return the text that may now be shown; ids after the stop are ignored.

        A piece never ends in half a character, nor with the beginning of a stop string.
        """
        before = len(self._pieces)
        for token in ids:
            if self.stopped:
                break
            added = self._detokenizer.push([token])
            self._token_texts.append(added)
            self._show(self._scanner.push(self._marks.get(int(token), "") + added))
        return "".join(self._pieces[before:])

    def finish(self) -> str:
        """Return the rest of the text; the last call. A stop string may end even here, in what was held back."""
        if self.stopped:
            return ""
        before = len(self._pieces)
        if added := self._detokenizer.finish():
            self._token_texts[-1] += added  # Without ids there is nothing to add.
            self._show(self._scanner.push(added))
        if not self.stopped:
            self._show(self._scanner.finish())
        return "".join(self._pieces[before:])

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._scanner.stopped

    @property
    def count(self) -> int:
        """Number of ids taken, up to and including the one that completed the stop string."""
        return len(self._token_texts)

    @property
    def text(self) -> str:
        """All text given out so far."""
        return "".join(self._pieces)

    @property
    def token_texts(self) -> tuple[str, ...]:
        """The text that each id taken has added, cut at the stop.

        A character of several ids belongs to the last of them. After the stop or ``finish`` they add up to ``text``;
        before, they also hold what may yet be the beginning of a stop string.
        """
        return tuple(self._token_texts)

    def _show(self, piece: str) -> None:
        self._pieces.append(piece)
        if not self.stopped:
            return
        surplus = sum(map(len, self._token_texts)) - len(self.text)
        for index in reversed(range(self.count)):
            kept = max(len(self._token_texts[index]) - surplus, 0)
            surplus -= len(self._token_texts[index]) - kept
            self._token_texts[index] = self._token_texts[index][:kept]
