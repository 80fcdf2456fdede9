"""The vocabulary in a GGUF file: tokens, what kind each is, and which of them end a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kangaroo_jax.checks import brief
from kangaroo_jax.gguf.container import AGAIN, Gguf

# Kinds of tokens, SentencePiece's numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# What llama.cpp takes for the end of a text wherever it is in a vocabulary.
_ENDS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>"),
        *("<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[", "</s>"),
    )
)
# So does it with padding, the name of a repository and the start of a file, of models that fill in the middle of code.
_FILL_IN = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_PRE_WITH_BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "tekken")
_UNSET = (1 << 32) - 1  # What -1 is as an unsigned number.


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of text.

    Attributes:
        model: ``"gpt2"`` (byte-level BPE) or ``"llama"`` (SentencePiece).
        pre: name of the way that BPE cuts text into words; empty where the file has none.
        tokens: by id.
        kinds: by id; the well-known ends of a text are ``CONTROL``.
        scores: by id; empty for BPE.
        bos: the token a text starts with, or None.
        eos: the token a text ends with, or None.
        ends: all tokens that end a text.
        add_bos: whether a text gets ``bos`` in front.
        add_eos: whether it gets ``eos`` behind.
        add_space: whether a text gets a space in front.
        chat_template: the model's own template of conversations (Jinja), or None.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...]
    bos: int | None
    eos: int | None
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    add_space: bool
    chat_template: str | None


def read_vocabulary(gguf: Gguf) -> Vocabulary | None:
    """Return the vocabulary of a file, or None where it has none.

    Raises:
        ValueError: if a value is of another type than it must be, lists differ in length, or it is for a tokenizer of
            another model than BPE and SentencePiece.
    """
    model = gguf.text("tokenizer.ggml.model")
    if model in (None, "none", "no_vocab"):
        return None
    if model not in ("gpt2", "llama"):
        raise ValueError(
            f"{gguf.file} has a tokenizer {brief(model)}; 'gpt2' (byte-level BPE) and 'llama' (SentencePiece) are read"
        )
    tokens = _tokens(gguf)
    kinds = _by_id(gguf, "tokenizer.ggml.token_type", tokens, NORMAL).tolist()
    named = {text: i for i, text in enumerate(tokens)}
    special: dict[str, int | None] = {
        name: _special(gguf, name, named, texts)
        for name, texts in {"bos": (), "eos": (), "eot": (), "eom": (), **_FILL_IN}.items()
    }
    if model == "llama" and len(tokens) > 2:
        special |= {name: i for name, i in (("bos", 1), ("eos", 2)) if special[name] is None}
    ends = {i for name, i in special.items() if i is not None and name != "bos"}
    ends |= {named[text] for text in _ENDS & named.keys()}
    if {"<|return|>", "<|call|>", "<|end|>"} <= named.keys():
        ends.discard(named["<|end|>"])
    for text in _ENDS.union(*_FILL_IN.values()) & named.keys():
        kinds[named[text]] = CONTROL
    eos, pre = special.get("eos"), gguf.text("tokenizer.ggml.pre") or ""
    flags = {name: gguf.flag(f"tokenizer.ggml.{name}") for name in ("add_bos_token", "add_eos_token")}
    add_bos, add_space = flags["add_bos_token"], gguf.flag("tokenizer.ggml.add_space_prefix")
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        scores=tuple(_by_id(gguf, "tokenizer.ggml.scores", tokens, 0.0).tolist()) if model == "llama" else (),
        bos=special.get("bos"),
        eos=eos,
        ends=tuple(sorted(ends, key=lambda i: (i != eos, i))),
        add_bos=(model == "llama" or pre in _PRE_WITH_BOS) if add_bos is None else add_bos,
        add_eos=bool(flags["add_eos_token"]),
        add_space=model == "llama" and add_space is not False,
        chat_template=gguf.text("tokenizer.chat_template"),
    )


def read_merges(gguf: Gguf) -> list[tuple[str, str]]:
    """Return the merges of a byte-level BPE in order of their rank, each once.

    Raises:
        ValueError: if there are none, or one is not of two tokens.
    """
    merges = gguf.texts("tokenizer.ggml.merges")
    if merges is None:
        raise ValueError(f"{gguf.file} lacks tokenizer.ggml.merges; {AGAIN}")
    found: dict[tuple[str, str], None] = {}
    for merge in merges:
        cut = merge.find(" ", 1)
        if cut < 0 or cut + 1 == len(merge):
            raise ValueError(f"{gguf.file} has a merge {brief(merge)} that is not of two tokens; {AGAIN}")
        found.setdefault((merge[:cut], merge[cut + 1 :]))
    return list(found)


def _tokens(gguf: Gguf) -> list[str]:
    table, count = gguf.tensors.get("token_embd.weight"), gguf.count("tokenizer.ggml.tokens")
    if table is not None and count > table.shape[0]:  # The shortest text takes more memory than bytes in the file.
        raise ValueError(f"{gguf.file} has {count} tokens, and token_embd.weight {table.shape[0]} rows; {AGAIN}")
    tokens = gguf.texts("tokenizer.ggml.tokens")
    if not tokens:
        raise ValueError(f"{gguf.file} lacks tokenizer.ggml.tokens; {AGAIN}")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise ValueError(f"{gguf.file} has the token {brief(token)} twice; {AGAIN}")
        seen.add(token)
    return tokens


def _by_id(gguf: Gguf, key: str, tokens: Sequence[str], default: float) -> np.ndarray:
    """Return a number for each token; those of an absent list are ``default``."""
    found = gguf.numbers(key)
    if found is None:
        return np.full(len(tokens), default)
    if len(found) < len(tokens):
        raise ValueError(f"{gguf.file} has {len(tokens)} tokens and {len(found)} values of {key}; {AGAIN}")
    return found[: len(tokens)]


def _special(gguf: Gguf, name: str, named: dict[str, int], texts: Sequence[str]) -> int | None:
    """Return the id of a token by the key that says it, else by one of its texts, or None."""
    found = gguf.integer(f"tokenizer.ggml.{name}_token_id")
    if found in (-1, _UNSET):
        return None
    if found is not None and not 0 <= found < len(named):
        raise ValueError(
            f"{gguf.file}: tokenizer.ggml.{name}_token_id is {brief(found)}, and ids go from 0 to {len(named) - 1}; "
            f"{AGAIN}"
        )
    return next((named[text] for text in texts if text in named), None) if found is None else found
