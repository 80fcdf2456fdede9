"""What an adapter is worth while it is trained: real decoding with it, on a few held-out prompts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import kangaroo_jax

NEW_TOKENS = 64
BATCH = 8
LONGEST_PROMPT = 512


def decoding_figures(
    params: kangaroo_jax.Params, prompts: Sequence[Sequence[int]], new_tokens: int = NEW_TOKENS
) -> dict[str, float]:
    """Decode all prompts, some at a time, greedily, and return the figures of all rounds together.

    Args:
        params: target, adapter and how to draft.
        prompts: token ids.
        new_tokens: for each; EOS ends a text earlier.

    Returns:
        ``compression_rate``, ``acceptance_rate``, ``ctar_1`` ... ``ctar_gamma`` (share of rounds that committed more
        than w tokens) and ``accepted_1`` ... (share of w-th drafts that were accepted).
    """
    outs = []
    for first in range(0, len(prompts), BATCH):
        some = [list(ids) for ids in prompts[first : first + BATCH]]
        outs += kangaroo_jax.generate(params, some, method="kangaroo", max_new_tokens=new_tokens)
    stats = pooled([out.stats for out in outs])
    figures = {"compression_rate": stats.compression_rate, "acceptance_rate": stats.acceptance_rate}
    figures |= {f"ctar_{w}": share for w, share in enumerate(stats.ctar, 1)}
    return figures | {f"accepted_{w}": share for w, share in enumerate(stats.acceptance_by_position, 1)}


def pooled(several: Sequence[kangaroo_jax.Stats]) -> kangaroo_jax.Stats:
    """Return the rounds of several generations as those of one; times are the first one's."""
    names = ("accept_lengths", "draft_lengths", "accepted_drafts", "confidence")
    joined: dict[str, Any] = {
        name: tuple(itertools.chain.from_iterable(getattr(stats, name) for stats in several)) for name in names
    }
    return dataclasses.replace(several[0], new_tokens=sum(stats.new_tokens for stats in several), **joined)


def held_out_prompts(rows: Iterable[tuple[np.ndarray, np.ndarray]], longest: int = LONGEST_PROMPT) -> list[list[int]]:
    """Return a prompt of each held-out row: a conversation up to its first reply, else a quarter of a window.

    Args:
        rows: tokens, and a mask, True where the next token counts; rows without any are left out.
        longest: tokens of a prompt; of longer ones the beginning.
    """
    prompts = []
    for tokens, mask in rows:
        if mask.any():
            first = int(mask.argmax())  # The first token that counts follows it.
            prompts.append(tokens[: min(first + 1 if first else max(len(tokens) // 4, 1), longest)].tolist())
    return prompts
