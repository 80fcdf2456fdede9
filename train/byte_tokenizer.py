"""joey's tokenizer: one token per UTF-8 byte, in the files that transformers reads. Ids as in ``train.corpus``."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from train.corpus import BOS, BYTE_OFFSET, EOS, UNK

SPECIAL_TOKENS = {"<unk>": UNK, "<s>": BOS, "</s>": EOS}

# joey never saw a conversation: the template is there so that chat can be tried. The text is bytes all through, so it
# has no special token, and it may end with a space, which no token of the reply contains.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)


def byte_characters() -> list[str]:
    """Return the printable character that byte-level tokenizers write for each of the 256 bytes (GPT-2's table).

    Printable Latin-1 stands for itself; the other bytes, in order, are the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def write_byte_tokenizer(directory: Path, model_max_length: int = 1024) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` of the byte-level tokenizer.

    ``encode(text) == [BOS] + [BYTE_OFFSET + b for b in text.encode()]`` for every text, and decoding inverts it. Text
    that reads like a special token (``"<s>"``) is bytes as well. A conversation is lines of ``User: ...`` and
    ``Assistant: ...``.

    Args:
        directory: where to write; made when missing.
        model_max_length: longest sequence of the model, in tokens.
    """
    vocab = SPECIAL_TOKENS | {text: BYTE_OFFSET + byte for byte, text in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "chat_template": CHAT_TEMPLATE,
    }
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
