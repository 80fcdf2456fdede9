"""Text to token ids and back, by the checkpoint's own tokenizer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kangaroo_jax.files import first_line
from kangaroo_jax.gguf import is_gguf
from kangaroo_jax.text.characters import Characters
from kangaroo_jax.text.gguf_tokenizer import read_gguf
from kangaroo_jax.text.tokenizer_config import add_ends, add_tokens, named_tokens, strings, templates_by_name
from kangaroo_jax.text.tokenizer_files import has_files, import_transformers, read_config, read_core


class Tokenizer:
    """Text to token ids and back, exactly as the checkpoint's own tokenizer does it.

    Attributes:
        special_tokens: the tokens that stand for no text (BOS, EOS, ...), and their ids.
        special_ids: these ids; ``decode`` leaves them out.
        chat_template: the checkpoint's own template of conversations (Jinja), or None.
        named_templates: all of its templates by name, where they have names; the one above is "default".
    """

    def __init__(self, core: Any, config: Mapping[str, Any], vocab_size: int | None = None) -> None:
        """Wrap a tokenizer.

        Args:
            core: a ``tokenizers.Tokenizer``; changed in place.
            config: what ``tokenizer_config.json`` says.
            vocab_size: of the model; ids from there on are refused. None: whatever comes.
        """
        self._core, self._vocab_size = core, vocab_size
        core.no_truncation()  # Whoever allocates the cache refuses what is too long.
        core.no_padding()
        core.encode_special_tokens = bool(config.get("split_special_tokens"))
        self._named = named_tokens(config)
        self.special_tokens = add_tokens(core, config, self._named)
        self.special_ids = frozenset(self.special_tokens.values())
        self._characters = Characters(core)
        add_ends(core, config, self._named)
        self.named_templates = templates_by_name(config.get("chat_template"))
        self.chat_template = self.named_templates.get("default")

    @functools.cached_property
    def bos(self) -> list[int]:
        """The BOS token that ``encode`` puts in front of every text, or nothing, as a list."""
        first = self._core.encode("").ids[:1]
        bos, eos = ([self._core.token_to_id(self._named.get(name, ""))] for name in ("bos_token", "eos_token"))
        return first if first == bos or (bos == [None] and first != eos) else []

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, with BOS in front if the checkpoint's tokenizer puts one there.

        Raises:
            ValueError: if an id is beyond the model's vocabulary.
        """
        return self._checked(self._core.encode(text).ids)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        chat_template: str,
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Return the ids of a conversation, as transformers renders it.

        One thing differs: BOS is in front if ``encode`` puts one there, also where the template leaves it out.

        Special tokens in the template are tokens; those in the messages (``"</s>"``) are plain text. Added tokens that
        are text as well, such as ``"<think>"``, are tokens wherever they stand.

        Args:
            messages: ``{"role", "content"}`` each.
            chat_template: Jinja.
            variables: what else the template reads; ``tools`` and ``documents`` as transformers takes them.
            add_generation_prompt: end with the start of the assistant's reply.
            continue_final_message: end within the last message, without what the template puts after it.

        Raises:
            ValueError: if the template is wrong or refuses the messages, or an id is beyond the model's vocabulary.
        """
        variables = dict(variables or {})
        # Names of what is said here, and of what transformers does with the text.
        taken = {*inspect.signature(self._backend.apply_chat_template).parameters, "messages"} - {"tools", "documents"}
        if wrong := sorted(taken & {*variables}):
            raise ValueError(f"chat_template_kwargs has {wrong[0]!r}, which is no variable of templates; leave it out")
        special = self.special_tokens
        options = {name: token for name, token in self._named.items() if token not in special} | variables
        plain = self._core.encode_special_tokens
        if not plain and any(token in text for text in strings([messages, variables]) for token in special):
            # Only where it is needed: it cuts the text at these tokens, and drops two private characters.
            options["sanitize_control_tokens"] = True
        try:
            ids = self._backend.apply_chat_template(
                # Older versions print a None.
                [{name: value for name, value in message.items() if value is not None} for message in messages],
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                return_dict=False,
                tokenizer_kwargs={"verbose": False},  # What is too long is refused by whoever allocates the cache.
                **options,
            )
        except Exception as error:  # A template is a program of its own: it may raise anything.
            raise ValueError(
                f"the chat template fails ({first_line(error)}); change messages or chat_template"
            ) from error
        return self._checked(ids if ids[:1] == self.bos else self.bos + ids)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ``ids`` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        # numpy and JAX scalars are no ints to the backend.
        return self._characters.text([int(i) for i in ids if int(i) not in self.special_ids])

    def unfinished(self, ids: Sequence[int]) -> int:
        """Return how many characters at the end of ``decode(ids)`` may yet become another one, of ids with text."""
        return self._characters.unfinished(ids)

    @functools.cached_property
    def _backend(self) -> Any:
        """What renders conversations, of transformers."""
        return import_transformers().PreTrainedTokenizerFast(
            tokenizer_object=self._core,  # It takes a copy, with settings of its own.
            split_special_tokens=self._core.encode_special_tokens,
            chat_control_tokens=[*self.special_tokens],
            # Others it would add.
            **{name: token for name, token in self._named.items() if token in self.special_tokens},
        )

    def _checked(self, ids: list[int]) -> list[int]:
        """Return ids; raise ValueError if the model has no embedding for one: XLA would take another's."""
        size = self._vocab_size
        if size is not None and (beyond := [i for i in ids if i >= size]):
            token = self._core.id_to_token(beyond[0])
            raise ValueError(
                f"{token!r:.60} has token id {beyond[0]}, and ids of this model go from 0 to {size - 1}; leave it out "
                "of text and chat template, or use the model's own tokenizer"
            )
        return ids


class NoTokenizer(Tokenizer):
    """Stands in where a checkpoint has no tokenizer files: ids go in and ids come out, all text is empty."""

    def __init__(self, directory: Path | str) -> None:
        self._directory = directory
        self.special_ids, self.special_tokens = frozenset(), {}
        self.chat_template, self.named_templates = None, {}

    def encode(self, text: str) -> list[int]:
        """Raise ValueError: there is nothing to encode with."""
        raise ValueError(f"{_lacking(self._directory)}, or pass token ids")

    def encode_chat(self, *args: Any, **options: Any) -> list[int]:
        """Raise ValueError, as ``encode``."""
        return self.encode("")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return no text."""
        return ""

    def unfinished(self, ids: Sequence[int]) -> int:
        """Return 0: no text is no part of a character."""
        return 0


def load_tokenizer(directory: Path | str, vocab_size: int | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint directory; nothing is downloaded.

    ``tokenizer.json`` itself encodes and decodes, whatever class ``tokenizer_config.json`` names. Without it, a lone
    ``tokenizer.model`` is read as SentencePiece reads it, and ``vocab.json`` with ``merges.txt`` as GPT-2's or Qwen2's.

    Args:
        directory: a GGUF file; or holds these files, and ``tokenizer_config.json``, ``special_tokens_map.json``,
            ``added_tokens.json``, ``chat_template.jinja``, ``additional_chat_templates/`` and ``chat_template.json``
            where there are such.
        vocab_size: of the model; ids from there on are refused. None: whatever comes.

    Raises:
        ValueError: if the directory or its tokenizer files are missing, or cannot be read.
    """
    if not Path(directory).exists():
        raise ValueError(f"no directory {directory} to load a tokenizer from; pass the folder of a checkpoint")
    if isinstance(tokenizer := find_tokenizer(directory, vocab_size), NoTokenizer):
        raise ValueError(_lacking(directory))
    return tokenizer


def find_tokenizer(directory: Path | str, vocab_size: int | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint directory; without tokenizer files, return a ``NoTokenizer``.

    Args:
        directory: as for ``load_tokenizer``.
        vocab_size: as for ``load_tokenizer``.

    Raises:
        ValueError: if the files cannot be read.
    """
    directory = Path(directory)
    if is_gguf(directory):
        found = read_gguf(directory)
        return Tokenizer(*found, vocab_size) if found else NoTokenizer(directory)
    if not has_files(directory):
        return NoTokenizer(directory)
    try:
        config = read_config(directory)
        return Tokenizer(read_core(directory, config), config, vocab_size)
    except Exception as error:  # The libraries raise bare Exception, ValueError, KeyError, ... for a broken file.
        raise ValueError(
            f"the tokenizer files in {directory} cannot be read ({first_line(error)}); copy them again"
        ) from error


def _lacking(directory: Path | str) -> str:
    """Return what to say of a directory without tokenizer files."""
    if is_gguf(Path(directory)):
        return f"{directory} has no tokenizer; give a GGUF file that has one"
    return f"{directory} has neither tokenizer.json nor tokenizer.model; copy the checkpoint's tokenizer files there"
