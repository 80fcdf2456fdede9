"""Tokenizers of Hugging Face directories: ``tokenizer.json``, or what came before it."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kangaroo_jax.text.tokenizer_config import strings, templates_by_name

# Cases, digits, punctuation, runs of spaces, line ends, compatibility characters and combining marks.
_PROBE = (
    "The user  said:\n\tfor i in range(1234567):    x = '\u00e9' + "
    '"e\u0301 \u6f22\u5b57 \uff21\ufb01\u3000\U0001f998"  # ...\r\n end '
)
# transformers' advice to install torch does not concern us: only its tokenizers are used.
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())
_KINDS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


def has_files(directory: Path) -> bool:
    """Return whether there are the files of a tokenizer."""
    return any(all((directory / name).is_file() for name in kind) for kind in _KINDS)


def read_config(directory: Path) -> dict[str, Any]:
    """Return ``tokenizer_config.json`` with what other files add to it, as transformers has it from them all."""
    config = {name: value for name, value in _json(directory, "tokenizer_config.json").items() if value is not None}
    if "added_tokens_decoder" not in config:  # Older files.
        config |= _json(directory, "special_tokens_map.json")
        named = set(strings(config))
        config["added_tokens_decoder"] = {
            index: {"content": token, "special": token in named, "normalized": False}
            for token, index in _json(directory, "added_tokens.json").items()
        }
    else:
        config = _json(directory, "special_tokens_map.json") | config
    config["chat_template"] = templates_by_name(config.get("chat_template")) | _template_files(directory)
    return config


def _template_files(directory: Path) -> dict[str, str]:
    """Return the templates that have files of their own; they come before those in ``tokenizer_config.json``."""
    files = {path.stem: path for path in sorted(directory.glob("additional_chat_templates/*.jinja"))}
    if (file := directory / "chat_template.jinja").is_file():
        files["default"] = file
    older = templates_by_name(_json(directory, "chat_template.json").get("chat_template"))
    return older | {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def _json(directory: Path, name: str) -> dict[str, Any]:
    """Return what a JSON file says; without the file, nothing."""
    file = directory / name
    given = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(given, dict):
        raise ValueError(f"{name} holds no JSON object")
    return given


def read_core(directory: Path, config: dict[str, Any]) -> Any:
    """Return a ``tokenizers.Tokenizer``; what the kind of tokenizer says goes into the config where that is silent."""
    from tokenizers import Tokenizer as Core

    if (file := directory / "tokenizer.json").is_file():
        return Core.from_str(file.read_text(encoding="utf-8"))
    if (file := directory / "tokenizer.model").is_file():
        return _sentencepiece(file, config)
    return _vocabulary_and_merges(directory, config)


def _sentencepiece(file: Path, config: dict[str, Any]) -> Any:
    """Read a ``tokenizer.model`` so that text is split as SentencePiece does it.

    Pieces are merged by their scores; in the order of their ids, as transformers merges them, text with runs of spaces
    comes out otherwise, since Llama's have low ids and the lowest scores::

        "I  enjoyed"    SentencePiece "▁I" "▁" "▁enjoyed"    by ids "▁I" "▁▁" "en" "jo" "yed"

    With ``legacy`` (the default) a space goes before every piece of text, also after a special token and before another
    space, as Llama 1 and Vicuna learnt it; without, only at the start.

    Raises:
        ValueError: if it is no BPE model, or normalises text: what is made of it splits text differently.
    """
    import sentencepiece
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    marks = [piece for piece, i in vocab.items() if model.is_control(i) or model.is_unknown(i)]
    scores = {
        piece: model.get_score(i)
        for piece, i in vocab.items()
        if piece not in marks and not (model.is_byte(i) or model.is_unused(i))
    }
    merges = merges_by_score(scores)
    unk, fallback = model.id_to_piece(model.unk_id()), any(map(model.is_byte, range(len(vocab))))
    # Symbols that the trainer was given are not merged from anything: text is cut at them.
    given = sorted((piece for piece in {*scores} - {left + right for left, right in merges} if piece[1:]), key=len)
    core = Tokenizer(
        models.BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=fallback, ignore_merges=bool(given))
    )
    normal = model.normalize("a b")
    escape_spaces(core, prefix := normal.startswith("▁"), normal.endswith("▁b"))
    cut: list[Any] = []
    if prefix and config.get("legacy") is False:
        core.normalizer, cut = normalizers.Sequence([]), [pre_tokenizers.Metaspace(prepend_scheme="first", split=False)]
    if given:
        cut.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, reversed(given)))), "isolated"))
    core.pre_tokenizer = pre_tokenizers.Sequence(cut)
    probe = _PROBE + "".join(scores).replace("▁", " ")[:20_000]
    if core.encode(probe).ids != model.encode(probe):
        raise ValueError("tokenizer.model is no BPE that takes text as it is: tokenizer.json is needed")
    core.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    for name, i in (("bos_token", model.bos_id()), ("eos_token", model.eos_id())):
        if i >= 0:
            config.setdefault(name, model.id_to_piece(i))
    config.setdefault("add_bos_token", True)
    return core


def escape_spaces(core: Any, prefix: bool, escaped: bool = True) -> None:
    """Let a tokenizer write spaces as SentencePiece does, one in front of each text if ``prefix``, and read bytes."""
    from tokenizers import decoders, normalizers

    first = [normalizers.Prepend("▁")] if prefix else []
    escape, unescape = [normalizers.Replace(" ", "▁")], [decoders.Replace("▁", " ")]
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.normalizer = normalizers.Sequence([*first, *escape * escaped])
    core.decoder = decoders.Sequence([*unescape * escaped, decoders.ByteFallback(), decoders.Fuse(), *strip])


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the merges of a BPE that joins pieces as SentencePiece does: the highest score first."""
    lengths = {len(piece) for piece in scores}  # A piece of 100,000 characters is not cut everywhere.
    cuts = ((piece, cut) for piece in scores for cut in range(1, len(piece)))
    pairs = ((piece[:cut], piece[cut:]) for piece, cut in cuts if cut in lengths and len(piece) - cut in lengths)
    merges = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
    # Of equal scores SentencePiece takes the leftmost: a run of spaces grows from the left, so the longer come first.
    return sorted(merges, key=lambda pair: (scores["".join(pair)], len(pair[0])), reverse=True)


def _vocabulary_and_merges(directory: Path, config: dict[str, Any]) -> Any:
    """Read ``vocab.json`` and ``merges.txt``; the class that the config names says how text is split before."""
    from tokenizers import Tokenizer, models

    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if name in ("", "PreTrainedTokenizer", "TokenizersBackend"):
        model_type = str(_json(directory, "config.json").get("model_type"))
        name = "Qwen2Tokenizer" if model_type.startswith("qwen") else "GPT2Tokenizer"
    if name not in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        raise ValueError(
            f"vocab.json and merges.txt of a {name!r:.60}; only GPT2Tokenizer and Qwen2Tokenizer have those"
        )
    of_class = getattr(import_transformers(), name)
    like = of_class(add_prefix_space=config.get("add_prefix_space", False)).backend_tokenizer
    core = Tokenizer(models.BPE.from_file(*(str(directory / part) for part in ("vocab.json", "merges.txt"))))
    core.pre_tokenizer, core.decoder = like.pre_tokenizer, like.decoder
    if like.normalizer is not None:
        core.normalizer = like.normalizer
    config.setdefault("eos_token", "<|endoftext|>")
    return core


def import_transformers() -> Any:
    """Return the module; it takes seconds, so it is imported only where it is needed."""
    with warnings.catch_warnings():
        # In a notebook without ipywidgets it complains of a progress bar that nothing here shows.
        warnings.filterwarnings("ignore", message="IProgress not found")
        import transformers
    return transformers
