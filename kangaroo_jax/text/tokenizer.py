"""Tokenizers of Hugging Face directories: ``tokenizer.json``, or a Llama's ``tokenizer.model`` alone."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


class Tokenizer:
    """Text to token ids and back, exactly as the checkpoint's own tokenizer does it.

    Attributes:
        special_ids: ids that stand for no text (BOS, EOS, ...); ``decode`` leaves them out.
        byte_ids: ids of SentencePiece's byte-fallback pieces; empty for byte-level tokenizers. What such a piece
            decodes to depends on the bytes around it.
        chat_template: the checkpoint's own template of conversations (Jinja), or None.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.special_ids = frozenset(i for i, token in backend.added_tokens_decoder.items() if token.special)
        self.byte_ids = frozenset(i for token, i in backend.get_vocab().items() if token in _BYTE_TOKENS)
        template = backend.chat_template
        # Several templates have names; the others are for tools.
        self.chat_template: str | None = template.get("default") if isinstance(template, dict) else template

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, with BOS in front if the checkpoint's tokenizer puts one there."""
        # verbose=False: text longer than model_max_length is refused, with its reason, by whoever allocates the cache.
        return list(self._backend(text, verbose=False)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, str]], chat_template: str) -> list[int]:
        """Return the ids of a conversation with the start of the assistant's reply, as transformers renders it.

        One thing differs: BOS is in front if ``encode`` puts one there, also where the template leaves it out.

        Special tokens in the template are tokens; those in the messages (``"</s>"``) are plain text, with
        transformers 5.20 or newer; older ones still make them tokens.

        Args:
            messages: ``{"role", "content"}`` each.
            chat_template: Jinja.

        Raises:
            ValueError: if the template is wrong or refuses the messages.
        """
        conversation = [dict(message) for message in messages]
        options: dict[str, Any] = {"return_dict": False, "tokenizer_kwargs": {"verbose": False}}  # As in encode().
        tokens = [] if self._backend.split_special_tokens else list(self._backend.added_tokens_encoder)
        if any(token in message["content"] for message in conversation for token in tokens):
            # Only where it is needed: it cuts the text at these tokens, and drops two private characters.
            options["sanitize_control_tokens"] = True
        try:
            ids = self._backend.apply_chat_template(
                conversation, chat_template=chat_template, add_generation_prompt=True, **options
            )
        except Exception as error:  # A template is a program of its own: it may raise anything.
            raise ValueError(f"the chat template fails ({_reason(error)}); change messages or chat_template") from error
        bos = [self._backend.bos_token_id]
        return bos + ids if self.encode("")[:1] == bos != ids[:1] else ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ``ids`` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        plain = [int(i) for i in ids]  # numpy and JAX scalars are no ints to the backend.
        return self._backend.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class NoTokenizer(Tokenizer):
    """Stands in where a checkpoint has no tokenizer files: ids go in and ids come out, all text is empty."""

    def __init__(self, directory: Path | str) -> None:
        self._directory = directory
        self.special_ids = self.byte_ids = frozenset()
        self.chat_template = None

    def encode(self, text: str) -> list[int]:
        """Raise ValueError: there is nothing to encode with."""
        raise ValueError(f"{_lacking(self._directory)}, or pass token ids")

    def encode_chat(self, messages: Sequence[Mapping[str, str]], chat_template: str) -> list[int]:
        """Raise ValueError, as ``encode``."""
        return self.encode("")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return no text."""
        return ""


def find_tokenizer(directory: Path | str) -> Tokenizer:
    """Load the tokenizer of a checkpoint directory; without tokenizer files, return a ``NoTokenizer``.

    Raises:
        ValueError: if the files cannot be read.
    """
    directory = Path(directory)
    return load_tokenizer(directory) if _has_files(directory) else NoTokenizer(directory)


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """Load the tokenizer of a checkpoint directory; nothing is downloaded.

    Args:
        directory: holds ``tokenizer.json`` or ``tokenizer.model``, and ``tokenizer_config.json`` where there is one.

    Raises:
        ValueError: if the directory or its tokenizer files are missing, or cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"no directory {directory} to load a tokenizer from; pass the folder of a checkpoint")
    if not _has_files(directory):
        raise ValueError(_lacking(directory))
    try:
        return Tokenizer(_load_backend(directory))
    except Exception as error:  # The backend raises bare Exception, ValueError, KeyError, ... for a broken file.
        raise ValueError(
            f"the tokenizer files in {directory} cannot be read ({_reason(error)}); copy them again"
        ) from error


def _has_files(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def _lacking(directory: Path | str) -> str:
    return f"{directory} has neither tokenizer.json nor tokenizer.model; copy the checkpoint's tokenizer files there"


def _reason(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load_backend(directory: Path) -> Any:
    """Let transformers read the directory; imported here, because the import alone takes seconds."""
    # Its advice to install torch does not concern us: only its tokenizers are used.
    logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())
    with warnings.catch_warnings():
        # In a notebook without ipywidgets it complains of a progress bar that nothing here shows.
        warnings.filterwarnings("ignore", message="IProgress not found")
        import transformers

    config_file = directory / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    is_llama = config.get("tokenizer_class", "LlamaTokenizer") in ("LlamaTokenizer", "LlamaTokenizerFast")
    if (directory / "tokenizer.json").is_file() or not is_llama:
        return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    # Left to guess what a tokenizer.model is for, transformers drops BOS.
    unsaid = {} if "add_bos_token" in config else {"add_bos_token": True}
    backend = transformers.LlamaTokenizer.from_pretrained(directory, local_files_only=True, **unsaid)
    _as_sentencepiece(backend.backend_tokenizer, directory / "tokenizer.model", config.get("legacy") is not False)
    return backend


def _as_sentencepiece(backend: Any, model_file: Path, legacy: bool) -> None:
    """Make a Llama tokenizer split text as SentencePiece does.

    transformers merges pieces in the order of their ids; SentencePiece goes by scores, and Llama's runs of spaces have
    low ids and the lowest scores::

        "I  enjoyed"    SentencePiece "▁I" "▁" "▁enjoyed"    by ids "▁I" "▁▁" "en" "jo" "yed"

    Args:
        backend: of the ``tokenizers`` library; changed in place.
        model_file: ``tokenizer.model``.
        legacy: whether a space goes before every piece of text, also after a special token and before another space,
            as Llama 1 and Vicuna learnt it; transformers' name for it.
    """
    import sentencepiece
    from tokenizers import models, normalizers

    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    scores = {
        piece: model.get_score(i)
        for piece, i in vocab.items()
        if not (model.is_byte(i) or model.is_control(i) or model.is_unknown(i) or model.is_unused(i))
    }
    pairs = [(piece[:cut], piece[cut:]) for piece in scores for cut in range(1, len(piece))]
    merges = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
    # Of equal scores SentencePiece takes the leftmost: a run of spaces grows from the left, so the longer come first.
    merges.sort(key=lambda pair: (scores["".join(pair)], len(pair[0])), reverse=True)
    backend.model = models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True)
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        backend.pre_tokenizer = None
