"""What callers pass as a prompt, as lists of token ids: text, ids, a conversation, or a list of one of these."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from kangaroo_jax.checks import plain, text, token_ids
from kangaroo_jax.params import Params
from kangaroo_jax.text import chat_ids

_EXPECTED = "a string, a list of token ids, a list of messages, or a list of several of one of these"
_KINDS = ((str, "text"), (Mapping, "message"), (numbers.Integral, "token id"))


def prompt_ids(
    params: Params,
    prompt: Any,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[list[int]], bool]:
    """Return the ids of every prompt, checked against vocabulary and context, and whether a list of prompts was given.

    Args:
        params: from ``load``.
        prompt: as for ``generate``.
        chat_template: as for ``generate``.
        chat_template_kwargs: as for ``generate``.

    Raises:
        ValueError: if it is nothing of this kind, empty, mixed, too long, or has ids beyond the vocabulary.
    """
    prompts, many = _several(prompt)
    chat = {"chat_template": chat_template, "chat_template_kwargs": chat_template_kwargs}
    ids = [_one(params, f"prompt {index}" if many else "prompt", each, chat) for index, each in enumerate(prompts)]
    if given := [name for name, value in chat.items() if value is not None and not any(map(_is_chat, prompts))]:
        warnings.warn(f"{', '.join(given)} has no effect: pass messages to have them rendered", stacklevel=4)
    bos = next((params.tokenizer.bos for each in prompts if isinstance(each, str)), [])
    if bos and any(isinstance(each, str) and row[:2] == bos * 2 for each, row in zip(prompts, ids, strict=True)):
        warnings.warn(
            "a prompt begins with BOS twice: its text has one, and the tokenizer puts one in front; leave it out of "
            "the text, or pass token ids",
            stacklevel=4,
        )
    return ids, many


def asked(params: Params, text: str) -> Any:
    """Return a text as a prompt: what a user says, for a model that answers messages; for another one as it is."""
    return [{"role": "user", "content": text}] if params.chats else text


def _several(prompt: Any) -> tuple[list[Any], bool]:
    """Return the prompts that are given, and whether as a list of them; raise ValueError if it is neither."""
    prompt = plain(prompt)
    kind = _kind(prompt)
    if kind == "text":
        return [prompt], False
    if kind != "list":
        raise ValueError(f"prompt is {prompt!r:.60}; pass {_EXPECTED}")
    if not prompt:
        raise ValueError("prompt is an empty list; pass at least one token, or at least one prompt")
    prompt = [plain(item) for item in prompt]
    kinds = list(dict.fromkeys(map(_kind, prompt)))
    if kinds == ["list"]:  # Of conversations, or of ids?
        kinds = list(dict.fromkeys(f"list of {_kind(plain(item[0]))}s" if item else "list" for item in prompt))
        kinds = [kind for kind in kinds if kind != "list"] or ["list"]
    if None in kinds:
        raise ValueError(f"prompt is {prompt!r:.60}; pass {_EXPECTED}")
    if len(kinds) > 1:
        raise ValueError(f"prompt mixes {' and '.join(map(str, kinds))} in one list; pass {_EXPECTED}")
    return ([prompt], False) if kinds[0] in ("token id", "message") else (prompt, True)


def _is_chat(prompt: Any) -> bool:
    return not isinstance(prompt, str) and bool(prompt) and all(isinstance(item, Mapping) for item in prompt)


def _kind(value: Any) -> str | None:
    if isinstance(value, bool):  # Would be 0 or 1, and was hardly meant.
        return None
    for kind, name in _KINDS:
        if isinstance(value, kind):
            return name
    return "list" if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray) else None


def _one(params: Params, label: str, prompt: Any, chat: Mapping[str, Any]) -> list[int]:
    """Return the ids of one prompt."""
    config = params.config
    if isinstance(prompt, str):
        ids = params.tokenizer.encode(text(label, prompt))
    elif _is_chat(prompt):
        ids = chat_ids(params.tokenizer, params.name, prompt, **chat)
    else:
        ids = token_ids(label, prompt, config.vocab_size, "a string, a list of token ids, or a list of messages")
    if not ids:
        raise ValueError(f"{label} is empty; pass at least one token (text gets a BOS token if the tokenizer has one)")
    if len(ids) >= config.max_position_embeddings:
        raise ValueError(
            f"{label} has {len(ids)} tokens; {params.name} takes at most {config.max_position_embeddings - 1} "
            f"(max_position_embeddings less one): shorten the prompt"
        )
    return ids
