"""What ``tokenizer_config.json`` says, put into effect on a tokenizer of the ``tokenizers`` library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the tokens that a config names: ``{"bos_token": "<s>", ...}``."""
    given = {name: token for name, token in config.items() if name.endswith("_token")}
    return {name: _content(token) for name, token in given.items() if isinstance(token, str | Mapping)}


def add_tokens(core: Any, config: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, int]:
    """Add the tokens that the config has beyond the tokenizer's own; return all that are special, with their ids.

    What the tokenizer knows stays as it is there, but for one thing: a piece of its vocabulary becomes a token of its
    own if the config calls it special. Where a normalizer puts a space in front, ``core.id_to_token`` has it before
    tokens that are "normalized" (``"▁</s>"``); here they are as they are written.
    """
    from tokenizers import AddedToken

    known = {token.content for token in core.get_added_tokens_decoder().values()}
    special = {named[name] for name in ("bos_token", "eos_token") if name in named}
    listed = [config.get(name) or [] for name in ("additional_special_tokens", "extra_special_tokens")]
    special |= {_content(token) for tokens in listed if isinstance(tokens, list) for token in tokens}
    tokens = {int(index): dict(token) for index, token in (config.get("added_tokens_decoder") or {}).items()}
    for index, token in sorted(tokens.items()):
        token.pop("__type", None)
        if token["content"] not in known:
            core.add_tokens([AddedToken(**token)])
            known.add(token["content"])
            if (got := core.token_to_id(token["content"])) != index:
                raise ValueError(f"added token {token['content']!r:.60} is to have id {index}, and {got} is the next")
        if token.get("special"):
            special.add(token["content"])
    pieces = sorted(token for token in special - known if core.token_to_id(token) is not None)
    core.add_special_tokens([AddedToken(token, normalized=False) for token in pieces])
    added = sorted(core.get_added_tokens_decoder().items())
    return {token.content: i for i, token in added if token.special or token.content in special}


def add_ends(core: Any, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Put BOS and EOS around text as the config asks for, unless the tokenizer's own post-processor has a say in it.

    Where the two disagree, the post-processor is what the ``tokenizers`` library and transformers 5 go by.
    """
    from tokenizers import processors

    own = core.post_processor
    if own is not None and set(_types(json.loads(own.__getstate__()))) - {"ByteLevel", "Sequence"}:
        return
    wanted = [named.get(f"{end}_token") if config.get(f"add_{end}_token") is True else None for end in ("bos", "eos")]
    bos, eos = ([token] if token and core.token_to_id(token) is not None else [] for token in wanted)
    if bos or eos:
        ids = [(token, core.token_to_id(token)) for token in {*bos, *eos}]
        core.post_processor = processors.TemplateProcessing(single=[*bos, "$A", *eos], special_tokens=ids)


def templates_by_name(given: Any) -> dict[str, str]:
    """Return templates by name, as the config has them: one, a list of them with names, or an object."""
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, list):
        return {each["name"]: each["template"] for each in given}
    return dict(given or {})


def strings(value: Any) -> Iterator[str]:
    """Yield all strings in nested lists and objects, names of fields excepted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from strings(item)


def _content(token: Any) -> str:
    """Return the text of a token, as ``tokenizer_config.json`` writes it: a string, or an object."""
    return token["content"] if isinstance(token, Mapping) else token


def _types(state: Any) -> Iterator[str]:
    """Yield the types of a post-processor and of those in it."""
    yield state["type"]
    for part in state.get("processors", []):
        yield from _types(part)
