"""Conversations as training samples: rendered as decoding renders them, with the predictions that count."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kangaroo_jax.text import Tokenizer, chat_ids, own_template
from train.conversation import Messages
from train.rows import BadRow

BETWEEN = "\n" + "-" * 40 + "\n"
"""Stands between the rows that are shown."""


class Sample(NamedTuple):
    """One conversation: ``tokens [n]`` int32 and ``mask [n]`` bool, True where the prediction at that token counts."""

    tokens: np.ndarray
    mask: np.ndarray


def find_template(tokenizer: Tokenizer, name: str, chat_template: str | None = None) -> str:
    """Return the template that ``chat_ids`` renders with.

    Raises:
        ValueError: if the model has none.
    """
    template = chat_template or own_template(tokenizer, name)
    if template is None:
        raise ValueError(f"{name} has no chat template for conversations; pass --chat-template FILE, or plain text")
    return template


@dataclasses.dataclass(frozen=True)
class Renderer:
    """Makes samples of conversations.

    Attributes:
        tokenizer: the target's.
        name: the target's name, which may tell its template.
        eos_ids: tokens that end a reply.
        length: longest sample, in tokens.
        upstream: make the mask of the authors' code; see ``mask_of``.
        chat_template: instead of the target's own.
    """

    tokenizer: Tokenizer
    name: str
    eos_ids: Sequence[int]
    length: int
    upstream: bool = False
    chat_template: str | None = None

    def sample(self, messages: Messages) -> Sample:
        """Render a conversation; the mask counts the tokens of its replies and the EOS that ends each.

        A conversation longer than ``length`` ends with the last reply that fits. If none does, it is cut at ``length``.

        Args:
            messages: as ``train.conversation.messages_of`` returns them.

        Raises:
            BadRow: if the template refuses the messages, or no reply is left.
        """
        try:
            ids, spans = self._render(messages)
        except ValueError as error:
            raise BadRow(str(error).partition(";")[0]) from error
        if not spans:
            raise BadRow("no reply rendered the way decoding sees it")
        size = max((stop for _, stop in spans if stop <= self.length), default=self.length)
        mask = mask_of(len(ids), spans, upstream=self.upstream)[:size]
        if not self.upstream:
            mask[-1] = False  # What it predicts was cut off.
        if not mask.any():
            raise BadRow(f"no reply within {self.length} tokens")
        return Sample(np.array(ids[:size], np.int32), mask)

    def _render(self, messages: Messages) -> tuple[list[int], list[tuple[int, int]]]:
        """Return ids, and (start, stop) of the replies in them.

        A reply starts where the prompt ends that decoding would have been given for it, and ends with the first EOS,
        as in decoding; without EOS, with the conversation up to it. A template may render a reply otherwise once more
        has been said (it leaves out thoughts, say): such a reply does not count.
        """
        prompts: list[list[int]] = []
        ends = [index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"]
        for end in ends:
            prompt = chat_ids(self.tokenizer, self.name, messages[: end - 1], self.chat_template)
            if prompts and len(prompt) >= self.length:
                break  # A long conversation takes no longer than what is kept of it.
            prompts.append(prompt)
        ends = ends[: len(prompts)]
        ids = self._complete(messages[: ends[-1]])
        spans = []
        for prompt, end, after in itertools.zip_longest(prompts, ends, prompts[1:]):
            start = len(prompt)
            if ids[:start] != prompt:
                continue
            stop = next((i + 1 for i in range(start, len(after or ids)) if ids[i] in self.eos_ids), None)
            if stop is None:
                spoken = ids if after is None else self._complete(messages[:end])
                stop = len(spoken) if ids[: len(spoken)] == spoken else start
            if stop > start:
                spans.append((start, stop))
        return ids, spans

    def _complete(self, messages: Messages) -> list[int]:
        template = find_template(self.tokenizer, self.name, self.chat_template)
        return self.tokenizer.encode_chat(messages, template, add_generation_prompt=False)


def mask_of(size: int, spans: Sequence[tuple[int, int]], *, upstream: bool = False) -> np.ndarray:
    """Return ``[size]`` bool, True where a prediction counts.

    Position t predicts token t+1, so it counts if that is a token of a reply::

        tokens      <s> Q  :  a  b  </s> Q  :  c  </s>
        replies     .   .  .  x  x  x    .  .  x  x
        mask        .   .  x  x  x  .    .  x  x  .
        upstream    .   .  .  .  x  x    x  .  .  x

    The authors' code marks the tokens of the replies, drops the first hidden state but not the first mark, and takes
    the loss of what remains. A position then counts if the token before it is of a reply: two positions late, without
    the two predictions that start a reply.

    Args:
        size: number of tokens.
        spans: (start, stop) of the replies.
        upstream: as the authors' code.
    """
    reply = np.zeros(size + 2, bool)  # reply[t + 1] is about token t: there is one before the first and one after.
    for start, stop in spans:
        reply[start + 1 : stop + 1] = True
    return reply[:-2].copy() if upstream else reply[2:].copy()


def show_mask(batch: Sample | Mapping[str, np.ndarray], tokenizer: Tokenizer, *, colour: bool = False) -> str:
    """Return a sample or a batch as text, one row after the other, with the predicted tokens that count marked.

    They are in ``[[`` and ``]]``, or green; special tokens are shown as ``<id>``.

    Args:
        batch: one sample, or ``tokens`` and ``mask`` of ``[rows, length]``.
        tokenizer: the target's.
        colour: mark by the colours of a terminal.
    """
    tokens, mask = (batch.tokens, batch.mask) if isinstance(batch, Sample) else (batch["tokens"], batch["mask"])
    rows = [
        _marked(row, kept, tokenizer, colour) for row, kept in zip(*map(np.atleast_2d, (tokens, mask)), strict=True)
    ]
    return BETWEEN.join(rows)


def _marked(tokens: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer, colour: bool) -> str:
    used = np.flatnonzero((tokens != 0) | mask)  # Zeros at the end are padding.
    ids = tokens[: used[-1] + 1 if len(used) else 0].tolist()
    counted = [False, *mask[: max(len(ids) - 1, 0)].tolist()]
    opened, closed = ("\033[32m", "\033[0m") if colour else ("[[", "]]")
    text, at = "", 0
    for (marked, special), run in itertools.groupby(
        range(len(ids)), key=lambda i: (counted[i], ids[i] if ids[i] in tokenizer.special_ids else None)
    ):
        stop = at + len(list(run))
        # A piece on its own may lose the space in front of it: decode all, and take what came last.
        piece = tokenizer.decode(ids[:stop])[len(tokenizer.decode(ids[:at])) :]
        piece = f"<{special}>" * (stop - at) if special is not None else piece
        text += f"{opened}{piece}{closed}" if marked else piece
        at = stop
    return text.replace(closed + opened, "")
