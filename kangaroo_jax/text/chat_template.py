"""Conversations as prompts: messages, checked and rendered by a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kangaroo_jax.checks import text
from kangaroo_jax.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")

# Vicuna's checkpoints come without a template. BOS is the tokenizer's; there is no space around </s>.
VICUNA_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% endif %}{{ ' ' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}ASSISTANT: {{ message['content'] }}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

_MESSAGE = '{"role": "user", "content": "..."}'


def chat_ids(
    tokenizer: Tokenizer, name: str, messages: Sequence[Mapping[str, str]], chat_template: str | None = None
) -> list[int]:
    """Return the ids of a conversation, up to where the assistant's next reply starts.

    The template is the one passed; else the tokenizer's own; else, for a model with "vicuna" in its name, Vicuna
    v1.1's: ``{system} USER: {q1} ASSISTANT: {a1}</s>USER: {q2} ASSISTANT:``. BOS comes once, if ``encode`` puts it in
    front. A special token's text within a message (``"</s>"``) stays text; see ``Tokenizer.encode_chat``.

    Args:
        tokenizer: the model's.
        name: the model's name, for Vicuna's template and for messages.
        messages: ``{"role", "content"}`` each: a system message or none, then user and assistant in turn; the user's
            comes last.
        chat_template: Jinja, with the variables and functions that transformers offers.

    Raises:
        ValueError: if the messages are not such a list, the model has no template, or the template fails.
    """
    _check(messages)
    template = _template(tokenizer, name, chat_template)
    return tokenizer.encode_chat(messages, template)


def own_template(tokenizer: Tokenizer, name: str) -> str | None:
    """Return the template of a model: its tokenizer's, or Vicuna's for models named so, or None."""
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    return VICUNA_TEMPLATE if "vicuna" in name.lower() else None


def _template(tokenizer: Tokenizer, name: str, chat_template: str | None) -> str:
    if chat_template is not None:
        if not isinstance(chat_template, str) or not chat_template:
            raise ValueError(f"chat_template is {chat_template!r:.60}; pass a Jinja template as a string")
        return chat_template
    template = own_template(tokenizer, name)
    if template is None:
        raise ValueError(
            f"{name} has no chat template; pass chat_template=JINJA, as transformers takes it, or plain text"
        )
    return template


def _check(messages: Any) -> None:
    """Raise ValueError unless the messages are objects with text, in the order of a conversation."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ValueError(f"messages is {messages!r:.60}; pass a list of {_MESSAGE}")
    if not messages:
        raise ValueError(f"messages is empty; pass at least one {_MESSAGE}")
    due = "user"
    for index, message in enumerate(messages):
        role = _checked_role(index, message)
        text(f"messages[{index}] content", message.get("content"))
        if role == "system":
            if index:
                raise ValueError(f"messages[{index}] has role 'system'; only the first message may have it")
            continue
        if role != due:
            raise ValueError(
                f"messages[{index}] has role {role!r} where {due!r} is due; user and assistant take turns, user first"
            )
        due = "assistant" if role == "user" else "user"
    if role != "user":
        raise ValueError(f"messages[{index}], the last, has role {role!r}; end with the user's, which awaits a reply")


def _checked_role(index: int, message: Any) -> str:
    if not isinstance(message, Mapping):
        raise ValueError(f"messages[{index}] is {message!r:.60}; pass objects like {_MESSAGE}")
    if "role" not in message:
        raise ValueError(f"messages[{index}] is {dict(message)!r:.60} without a role; pass objects like {_MESSAGE}")
    role = message["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"messages[{index}] has role {role!r:.60}; choose one of {', '.join(ROLES)}")
    return role
