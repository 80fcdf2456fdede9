"""Conversations as prompts: messages, rendered by a chat template, which has the say in roles and their order."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kangaroo_jax.checks import text
from kangaroo_jax.text.tokenizer import Tokenizer
from kangaroo_jax.text.tokenizer_config import strings

# Vicuna's checkpoints come without a template. BOS is the tokenizer's; there is no space around </s>.
VICUNA_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% endif %}{{ ' ' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}ASSISTANT: {{ message['content'] }}</s>"
    "{% elif message['role'] != 'system' or not loop.first %}"
    "{{ raise_exception('Vicuna knows a system message first, then messages of user and assistant') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

_MESSAGE = '{"role": "user", "content": "..."}'
_PART = '{"type": "text", "text": "..."}'

# A template that takes content in parts goes through them, by a loop, a filter or an index.
_TAKES_PARTS = re.compile(
    r"\bfor\s+\w+\s+in\s+[^%}]*\bcontent\b|\bcontent\b['\"\]]*\s*(\|\s*(select|reject|map)|\[\s*-?\d+\s*\])"
)


def chat_ids(
    tokenizer: Tokenizer,
    name: str,
    messages: Sequence[Mapping[str, Any]],
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the ids of a conversation, up to where the assistant's next reply starts, or its last message goes on.

    The template is the one passed; else the tokenizer's own; else, for a model with "vicuna" in its name, Vicuna
    v1.1's: ``{system} USER: {q1} ASSISTANT: {a1}</s>USER: {q2} ASSISTANT:``. BOS comes once, if ``encode`` puts it in
    front. A special token's text within a message (``"</s>"``) stays text; see ``Tokenizer.encode_chat``.

    Args:
        tokenizer: the model's.
        name: the model's name, for Vicuna's template and for messages.
        messages: ``{"role", "content"}`` each, and what else the template reads. Content is text or a list of parts,
            ``{"type": "text", "text": ...}``; a template that takes text only gets its parts as lines. If the last
            message is the assistant's, it is continued.
        chat_template: Jinja, with the variables and functions that transformers offers; or the name of one of several
            that the tokenizer has.
        chat_template_kwargs: variables for the template, such as ``enable_thinking``; also ``tools``, ``documents``.

    Raises:
        ValueError: if the messages are not such a list, the model has no template, the template fails, or an id is
            beyond the model's vocabulary.
    """
    _check(messages)
    variables = _variables(chat_template_kwargs)
    template = _template(tokenizer, name, chat_template, variables)
    if not _TAKES_PARTS.search(template):
        messages = [{**message, "content": _as_text(i, message.get("content"))} for i, message in enumerate(messages)]
    goes_on = messages[-1]["role"] == "assistant"
    ids = tokenizer.encode_chat(
        messages, template, variables, add_generation_prompt=not goes_on, continue_final_message=goes_on
    )
    if unread := [variable for variable in variables if variable not in template]:
        warnings.warn(f"the chat template does not read {', '.join(unread)} of chat_template_kwargs", stacklevel=2)
    return ids


def own_template(tokenizer: Tokenizer, name: str) -> str | None:
    """Return the template of a model: its tokenizer's, or Vicuna's for models named so, or None."""
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    return VICUNA_TEMPLATE if "vicuna" in name.lower() else None


def answers(tokenizer: Tokenizer, name: str, ends: Collection[int]) -> bool:
    """Tell whether a model answers messages: whether its template ends an answer with a token that ends its texts.

    joey's and those of base models do not: who only goes on with a text never ends a message.

    Args:
        tokenizer: the model's.
        name: the model's name, for Vicuna's template.
        ends: ids of the tokens that end its texts.
    """
    template = own_template(tokenizer, name)
    tokens = [token for token, number in tokenizer.special_tokens.items() if number in ends]
    return template is not None and any(token in template for token in (*tokens, "eos_token"))


def joined(content: Any) -> str:
    """Return content as text: each of its parts is a line."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content or ())


def _template(tokenizer: Tokenizer, name: str, chat_template: str | None, variables: Mapping[str, Any]) -> str:
    named = tokenizer.named_templates
    if chat_template is not None:
        if not isinstance(chat_template, str) or not chat_template:
            raise ValueError(f"chat_template is {chat_template!r:.60}; pass a Jinja template as a string")
        return named.get(chat_template, chat_template)
    if variables.get("tools") and "tool_use" in named:
        return named["tool_use"]
    template = own_template(tokenizer, name)
    if template is None and (others := [repr(other) for other in named if other != "default"]):
        raise ValueError(f"{name} has no chat template for all uses; pass chat_template={' or '.join(others)}")
    if template is None:
        raise ValueError(
            f"{name} has no chat template; pass chat_template=JINJA, as transformers takes it, or plain text"
        )
    return template


def _variables(given: Any) -> dict[str, Any]:
    """Return the variables for a template; raise ValueError unless they are an object."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValueError(f'chat_template_kwargs is {given!r:.60}; pass an object like {{"enable_thinking": False}}')
    for value in strings(given):
        text("chat_template_kwargs", value)
    return dict(given)


def _check(messages: Any) -> None:
    """Raise ValueError unless the messages are objects with a role and content; the rest is the template's affair."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ValueError(f"messages is {messages!r:.60}; pass a list of {_MESSAGE}")
    if not messages:
        raise ValueError(f"messages is empty; pass at least one {_MESSAGE}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"messages[{index}] is {message!r:.60}; pass objects like {_MESSAGE}")
        if "role" not in message:
            raise ValueError(f"messages[{index}] is {dict(message)!r:.60} without a role; pass objects like {_MESSAGE}")
        if not isinstance(message["role"], str) or not message["role"]:
            raise ValueError(f"messages[{index}] has role {message['role']!r:.60}; pass 'user', 'assistant', ...")
        _check_content(f"messages[{index}] content", message)
        for value in strings(message):
            text(f"messages[{index}] content", value)


def _check_content(label: str, message: Mapping[str, Any]) -> None:
    """Raise ValueError if a message's content is neither text nor parts; None may stand beside calls of tools."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        for part in content:
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                raise ValueError(f"{label} has the part {part!r:.60}; pass objects like {_PART}")
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise ValueError(f"{label} has the part {dict(part)!r:.60}; pass objects like {_PART}")
    elif (content is not None or len(message) < 2) and not isinstance(content, str):
        raise ValueError(f"{label} is {content!r:.60}; pass a string, or a list of {_PART}")


def _as_text(index: int, content: Any) -> str | None:
    """Return content as text, for a template that takes nothing else."""
    if not isinstance(content, list | tuple):
        return content
    if other := [part["type"] for part in content if part["type"] != "text"]:
        raise ValueError(f"messages[{index}] content has a part of type {other[0]!r:.60}; the chat template takes text")
    return joined(content)
