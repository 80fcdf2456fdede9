"""Conversations in the rows of tables: the forms they come in, and what is repaired."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from train.rows import BadRow

COLUMNS = ("conversations", "messages", "conversation")
TEXT_COLUMN = "text"
EXPECTED = "'conversations' of {from, value} (ShareGPT), 'messages' of {role, content}, or 'text' of strings"
ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
}

Messages = list[dict[str, str]]


def messages_of(row: Mapping[str, Any]) -> Messages | None:
    """Return the conversation in a row as ``{"role", "content"}`` messages, or None if it has no such column.

    Columns are ``conversations``, ``messages`` and ``conversation``; messages are ``{"from", "value"}`` or ``{"role",
    "content"}``. Repaired as the paper's authors do: replies before the first question are dropped. An empty system
    message and questions after the last reply are dropped as well; no prediction depends on those.

    Returns:
        A system message or none, then user and assistant in turn, ending with the assistant.

    Raises:
        BadRow: if it is no conversation with a reply.
    """
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None:
        return None
    messages = [_message(_parsed(item)) for item in _items(column, _parsed(row[column]))]
    system = []
    if messages and messages[0]["role"] == "system":
        system = [message for message in messages[:1] if message["content"].strip()]
        messages = messages[1:]
    roles = [message["role"] for message in messages]
    if "system" in roles:
        raise BadRow("a system message that is not the first")
    if "assistant" not in roles:
        raise BadRow("no reply")
    if "user" not in roles:
        raise BadRow("no question")
    # From the first question to the last reply.
    turns = messages[roles.index("user") : len(roles) - roles[::-1].index("assistant")]
    if not turns:
        raise BadRow("no reply")
    if any(message["role"] != ("user", "assistant")[index % 2] for index, message in enumerate(turns)):
        raise BadRow("roles that do not alternate")
    if not all(message["content"].strip() for message in turns):
        raise BadRow("an empty message")
    return system + turns


def is_unicode(text: str) -> bool:
    """Tell whether a text can be encoded: lone surrogates are what became of bytes or escapes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(value: Any) -> Any:
    """Return a value, parsed if it is JSON in a string, as tables store what their columns cannot."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _items(column: str, value: Any) -> list[Any]:
    if isinstance(value, Mapping):  # How older data sets store a list of structs.
        lists = [item for item in value.values() if isinstance(item, list)]
        if lists and len(lists) == len(value) and len({len(item) for item in lists}) == 1:
            return [dict(zip(value, items, strict=True)) for items in zip(*lists, strict=True)]
    if not isinstance(value, list):
        raise BadRow(f"{column} is no list")
    if not value:
        raise BadRow(f"{column} is empty")
    return value


def _message(item: Any) -> dict[str, str]:
    """Return a message in one form; missing keys may be there as None, as tables fill them in."""
    if not isinstance(item, Mapping):
        raise BadRow("a message that is no object")
    role, content = (item.get(one) if item.get(one) is not None else item.get(other) for one, other in _KEYS)
    if not isinstance(role, str):
        raise BadRow("a message without a role (from or role)")
    if role.lower() not in ROLES:
        raise BadRow(f"the unknown role {role!r:.40}")
    if not isinstance(content, str):
        raise BadRow("a message without text (value or content)")
    if not is_unicode(content):
        raise BadRow("a message that is no Unicode")
    return {"role": ROLES[role.lower()], "content": content}


_KEYS = (("from", "role"), ("value", "content"))
