"""The tokenizer of a GGUF file, as ``tokenizer.json`` and ``tokenizer_config.json`` would hold it.

Its ids are llama.cpp's, which names the ways to cut text into words and keeps their patterns in its own source. Where
llama.cpp does less than the model's first tokenizer did (Qwen2's composes characters before), this does what llama.cpp
does.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from kangaroo_jax.files import first_line
from kangaroo_jax.gguf import (
    AGAIN,
    BYTE,
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Gguf,
    Vocabulary,
    read_merges,
    read_vocabulary,
)
from kangaroo_jax.text.tokenizer_config import add_ends, named_tokens
from kangaroo_jax.text.tokenizer_files import escape_spaces, merges_by_score

_SHORT = r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"  # 's, 're, ...
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHER = r" ?[^\s\p{L}\p{N}]+"
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"  # Letters of scripts without case are both.

_GPT2 = r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS = (r"\p{N}", _GPT2)
_LLAMA3 = (rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}[\r\n]*|{_REST}",)
_QWEN2 = (rf"{_SHORT}|{_WORD}|\p{{N}}|{_OTHER}[\r\n]*|{_REST}",)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"|{_OTHER}[\r\n/]*|{_REST}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u0800-\u9fa5\uac00-\ud7ff&&\\S]+", r"\p{N}")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

# By llama.cpp's names: the patterns that cut text, one after the other.
_CUTS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "trillion", "mellum", "gigachat", "a.x-4.0"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), _LLAMA3),
    **dict.fromkeys(("smaug-bpe", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2"), _QWEN2),
    "tekken": _TEKKEN,
    "deepseek-coder": _DEEPSEEK_CODER,
}
# With these a word that is a token is that token, whatever the merges make of it.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "tekken")


def read_gguf(file: Path) -> tuple[Any, dict[str, Any]] | None:
    """Return the tokenizer of a GGUF file and what ``tokenizer_config.json`` would say, or None where there is none.

    Returns:
        A ``tokenizers.Tokenizer``, and the config.

    Raises:
        ValueError: if it is no GGUF file, or its tokenizer is damaged or of a kind that is not read.
    """
    gguf = Gguf(file)
    if (vocabulary := read_vocabulary(gguf)) is None:
        return None
    config = _config(vocabulary)
    try:
        core = _byte_level(gguf, vocabulary) if vocabulary.model == "gpt2" else _sentencepiece(vocabulary)
        _add_tokens(core, vocabulary)
        add_ends(core, config, named_tokens(config))
    except ValueError:
        raise
    except Exception as error:  # The library raises bare Exception.
        raise ValueError(f"the tokenizer in {file} cannot be read ({first_line(error)}); {AGAIN}") from error
    return core, config


def gguf_tokenizer_files(file: Path) -> dict[str, str]:
    """Return what the tokenizer's files of a Hugging Face directory would hold for a GGUF file, by their names.

    Raises:
        ValueError: as ``read_gguf``.
    """
    if (found := read_gguf(file)) is None:
        return {}
    core, config = found
    return {"tokenizer.json": core.to_str(), "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False)}


def _byte_level(gguf: Gguf, vocabulary: Vocabulary) -> Any:
    """Return a byte-level BPE."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if not vocabulary.pre:
        warnings.warn(
            f"{gguf.file} does not say how its tokenizer cuts text into words (tokenizer.ggml.pre), so it is cut by "
            "llama.cpp's default, which is hardly the model's: convert the model again with a newer llama.cpp",
            stacklevel=2,
        )
    if (cuts := _CUTS.get(vocabulary.pre or "default")) is None:
        raise ValueError(
            f"{gguf.file} cuts text into words as {vocabulary.pre!r:.60} (tokenizer.ggml.pre); "
            f"known are {', '.join(_CUTS)}"
        )
    merges = read_merges(gguf)
    merged = {piece for pair in merges for piece in (*pair, "".join(pair))}
    ids = {
        token: i
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind != UNUSED or token in merged  # Padding, such as "[PAD151936]", stands for no text.
    }
    core = Tokenizer(models.BPE(ids, merges, ignore_merges=vocabulary.pre in _WHOLE_WORDS))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cuts),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece(vocabulary: Vocabulary) -> Any:
    """Return a BPE with byte fallback that merges what scores highest, as SentencePiece does."""
    from tokenizers import Tokenizer, models

    listed = list(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    ids = {token: i for i, (token, _) in enumerate(listed)}
    scores = {token: vocabulary.scores[ids[token]] for token, kind in listed if kind not in (BYTE, CONTROL, UNKNOWN)}
    unknown = next((token for token, kind in listed if kind == UNKNOWN), None)
    core = Tokenizer(models.BPE(ids, merges_by_score(scores), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    escape_spaces(core, vocabulary.add_space)
    return core


def _add_tokens(core: Any, vocabulary: Vocabulary) -> None:
    """Make tokens of what is one wherever it stands in a text."""
    from tokenizers import AddedToken

    listed = list(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    special = [AddedToken(token, normalized=False) for token, kind in listed if kind in (CONTROL, UNKNOWN)]
    core.add_special_tokens(special)
    core.add_tokens([AddedToken(token, normalized=False) for token, kind in listed if kind == USER_DEFINED])


def _config(vocabulary: Vocabulary) -> dict[str, Any]:
    ends = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        **{name: vocabulary.tokens[i] for name, i in ends.items() if i is not None},
        **({} if vocabulary.chat_template is None else {"chat_template": vocabulary.chat_template}),
    }
