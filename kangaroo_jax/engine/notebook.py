"""A generated text as HTML, for notebooks: what was drafted and accepted is tinted."""

from __future__ import annotations

import html
from collections.abc import Sequence

# Only the background has a colour, and a thin one: the text keeps the one of the theme, be it light or dark.
_TINT = "background-color: rgba(46, 160, 67, 0.3); border-radius: 3px"
_LEGEND = ("drafted and accepted", "the target's own")


def tinted_html(spans: Sequence[tuple[str, bool]], counts: tuple[int, int] | None, notes: Sequence[str]) -> str:
    """Return a text as a fragment of HTML that needs nothing else: no script, no style sheet, no id.

    Args:
        spans: pieces of the text and whether each is tinted.
        counts: tokens that are tinted and tokens that are not, for the legend; None for no legend.
        notes: lines of plain text below the text.
    """
    text = "".join(_mark(piece) if tinted else html.escape(piece) for piece, tinted in spans)
    below = [html.escape(note) for note in notes]
    if counts is not None:
        tinted, own = (f"{name}: {count}" for name, count in zip(_LEGEND, counts, strict=True))
        below.insert(0, f"{_mark(tinted)} &middot; {html.escape(own)}")
    lines = "".join(f"<div>{line}</div>" for line in below)
    return (
        # A browser drops a line break that follows <pre>: this one, so that none of the text's own is lost.
        f'<div><pre style="white-space: pre-wrap; overflow-wrap: anywhere">\n{text}</pre>'
        f'<div style="font-size: 90%; opacity: 0.8">{lines}</div></div>'
    )


def _mark(text: str) -> str:
    return f'<span style="{_TINT}">{html.escape(text)}</span>'
