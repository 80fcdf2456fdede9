"""Stop strings: a text ends before the first of them, however the text arrives."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_FIRST_MARK = 0xD800  # Half a surrogate pair: no text has one.


class StopScanner:
    """Looks for stop strings in a text that is still growing.

    The stop string whose end comes first counts; of several that end together, the one that starts first. The text is
    cut before its start. This depends on the text alone, not on how it is cut into pieces::

        stops "abc", "b!"       push      "xa"   "b"    "y"     "ab"   "c.."
                                returns   "x"    ""     "aby"   ""     ""      (stopped)

    Text is held back as long as it may be the beginning of a stop string: the longest suffix that is a proper prefix
    of one.

    Special tokens are no text, and yet ``"b</s>"`` has one in it. For that token the text that is pushed holds a mark,
    a character that is not given out again, and that only stop strings with this token see. ``"</s>"`` alone is for
    whoever ends texts at ids to look for; here it stands for the characters only.

    Attributes:
        marks: character for each special token that a stop string has beside other text.
        stopped: whether a stop string has come.
    """

    def __init__(self, stop_strings: Sequence[str], special: Collection[str] = ()) -> None:
        """Start with an empty text.

        Args:
            stop_strings: may be empty; then nothing is ever held back.
            special: texts of the special tokens.

        Raises:
            ValueError: if it is no list of strings, or a string is empty.
        """
        wrong_type = isinstance(stop_strings, str) or not isinstance(stop_strings, Sequence)
        if wrong_type or not all(isinstance(stop, str) for stop in stop_strings):
            raise ValueError(f"stop_strings is {stop_strings!r:.60}; pass a list of strings")
        if "" in stop_strings:
            raise ValueError("stop_strings has an empty string, which every text contains; leave it out")
        mixed = [stop for stop in stop_strings if stop not in special]
        # Of those that begin alike, the longest is meant.
        inside = sorted((token for token in special if any(token in stop for stop in mixed)), key=len, reverse=True)
        self.marks = {token: chr(_FIRST_MARK + place) for place, token in enumerate(inside)}
        self._hidden = str.maketrans(dict.fromkeys(self.marks.values(), ""))
        for token, mark in self.marks.items():
            mixed = [stop.replace(token, mark) for stop in mixed]
        self._stops = tuple(dict.fromkeys([*stop_strings, *mixed]))
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take the next piece of text and return what is now certain to be shown; nothing after a stop."""
        if self.stopped:
            return ""
        text = self._held + text
        starts = []
        for stop in self._stops:
            seen, at = self._seen(text, stop)
            # A stop string's first place is also where it ends first.
            if (start := seen.find(stop)) >= 0:
                starts.append((at[start + len(stop) - 1], at[start]))
        if starts:
            self.stopped = True
            self._held = ""
            return text[: min(starts)[1]].translate(self._hidden)
        shown = len(text) - self._begun(text)
        self._held = text[shown:]
        return text[:shown].translate(self._hidden)

    def finish(self) -> str:
        """Return what was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held.translate(self._hidden)

    def _begun(self, text: str) -> int:
        """Return the length of the longest suffix of a text without stop strings that begins one."""
        longest = 0
        for stop in self._stops:
            seen, at = self._seen(text, stop)
            begun = next((n for n in range(len(stop) - 1, 0, -1) if seen.endswith(stop[:n])), 0)
            longest = max(longest, len(text) - at[-begun] if begun else 0)
        return longest

    def _seen(self, text: str, stop: str) -> tuple[str, Sequence[int]]:
        """Return a text without the marks that a stop string lacks, and where in it each character is."""
        lacking = {*self.marks.values()} - {*stop}
        if lacking.isdisjoint(text):
            return text, range(len(text))
        at = [place for place, character in enumerate(text) if character not in lacking]
        return "".join(text[place] for place in at), at
