"""Stop strings: a text ends before the first of them, however the text arrives."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Looks for stop strings in a text that is still growing.

    The stop string whose end comes first counts; of several that end together, the one that starts first. The text is
    cut before its start. This depends on the text alone, not on how it is cut into pieces::

        stops "abc", "b!"       push      "xa"   "b"    "y"     "ab"   "c.."
                                returns   "x"    ""     "aby"   ""     ""      (stopped)

    Text is held back as long as it may be the beginning of a stop string: the longest suffix that is a proper prefix
    of one.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        """Start with an empty text.

        Args:
            stop_strings: may be empty; then nothing is ever held back.

        Raises:
            ValueError: if it is no list of strings, or a string is empty.
        """
        wrong_type = isinstance(stop_strings, str) or not isinstance(stop_strings, Sequence)
        if wrong_type or not all(isinstance(stop, str) for stop in stop_strings):
            raise ValueError(f"stop_strings is {stop_strings!r:.60}; pass a list of strings")
        if "" in stop_strings:
            raise ValueError("stop_strings has an empty string, which every text contains; leave it out")
        self._stops = tuple(dict.fromkeys(stop_strings))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take the next piece of text and return what is now certain to be shown; nothing after a stop."""
        if self.stopped:
            return ""
        text = self._held + text
        # A stop string's first place is also where it ends first.
        starts = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.stopped = True
            self._held = ""
            return text[: min(starts)[1]]
        shown = len(text) - self._begun(text)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """Return what was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Return the length of the longest suffix of a text without stop strings that begins one."""
        lengths = range(min(len(text), self._longest - 1), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
