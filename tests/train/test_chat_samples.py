"""Rendering as decoding renders, the mask, what is cut, and what ``--show-mask`` prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from kangaroo_jax.text import Tokenizer, load_tokenizer
from kangaroo_jax.text.chat_template import chat_ids
from train.byte_tokenizer import write_byte_tokenizer
from train.conversation import Messages
from train.corpus import BOS, BYTE_OFFSET, EOS
from train.render import Renderer, Sample, mask_of, show_mask
from train.rows import BadRow

# A turn ends with a line after the end token, and thoughts are shown in the last reply alone.
THINKING = (
    "{% for m in messages %}[{{ m['role'] }}]"
    "{% if m['role'] == 'assistant' and loop.last %}(thought){% endif %}{{ m['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
PLAIN = THINKING.replace("(thought)", "")


def turns(*contents: str) -> Messages:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes, with end tokens: what a template writes as </s> is one."""
    directory = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(directory)
    changes = {"split_special_tokens": False, "chat_template": None}
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | changes))
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small SentencePiece model with Llama's settings: spaces in front of words, bytes for what is unknown."""
    directory = tmp_path_factory.mktemp("pieces")
    lines = ["USER: what is it ASSISTANT: it is a word", "A chat between a curious user", "   spaces  \t and more: yes"]
    (directory / "corpus.txt").write_text("\n".join(lines * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return load_tokenizer(directory)


def kept(sample: Sample) -> list[list[int]]:
    """Return the tokens that kept predictions are about, by runs."""
    runs: list[list[int]] = []
    for t in np.flatnonzero(sample.mask).tolist():
        if t and sample.mask[t - 1]:
            runs[-1].append(int(sample.tokens[t + 1]))
        else:
            runs.append([int(sample.tokens[t + 1])])
    return runs


def as_bytes(text: str) -> list[int]:
    return [BYTE_OFFSET + byte for byte in text.encode()]


def test_the_masks_are_those_drawn() -> None:
    """tokens <s> Q : a b </s> Q : c </s>: a reply predicts from the token before it; upstream is two late."""

    def drawn(mask: np.ndarray) -> str:
        return "".join(".x"[int(kept)] for kept in mask)

    spans = [(3, 6), (8, 10)]
    assert drawn(mask_of(10, spans)) == "..xxx..xx."
    assert drawn(mask_of(10, spans, upstream=True)) == "....xxx..x"
    assert (mask_of(10, spans, upstream=True)[2:] == mask_of(10, spans)[:-2]).all()


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_vicuna_replies_and_their_ends_count(tokenizer: Tokenizer, system: str | None) -> None:
    messages = turns("one?", "First </s> reply", "two?", " second\n")
    messages = ([{"role": "system", "content": system}] if system else []) + messages
    sample = Renderer(tokenizer, "my-vicuna", [EOS], 600).sample(messages)
    assert kept(sample) == [[*as_bytes(" First </s> reply"), EOS], [*as_bytes("  second\n"), EOS]]
    prompt = chat_ids(tokenizer, "my-vicuna", messages[:-1])
    assert sample.tokens[: len(prompt)].tolist() == prompt  # BOS and all: what decoding starts from.
    assert sample.tokens.dtype == np.int32 and sample.mask.dtype == bool
    assert sample.tokens.tolist() == [*prompt, *kept(sample)[1]]


SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml(directory: Path) -> Tokenizer:
    """Bytes with SmolLM2's special tokens, its template, and no BOS but what the template writes."""
    write_byte_tokenizer(directory)
    renamed = {"<unk>": "<|endoftext|>", "<s>": "<|im_start|>", "</s>": "<|im_end|>"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (directory / name).read_text(encoding="utf-8")
        for old, new in renamed.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        content = json.loads(text)
        if name == "tokenizer.json":
            content["post_processor"] = None
        else:
            content |= {"split_special_tokens": False, "chat_template": SMOLLM2}
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return load_tokenizer(directory)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chatml_replies_and_their_ends_count(tmp_path: Path, system: str | None) -> None:
    """SmolLM2: ``<|im_start|>`` is BOS and begins every turn; the line end behind ``<|im_end|>`` does not count."""
    tokenizer = chatml(tmp_path)
    said = [{"role": "system", "content": system}] if system else []
    messages = [*said, *turns("one?", "A <|im_end|> b", "two?", "\u00dc\n")]
    sample = Renderer(tokenizer, "smol", (EOS,), 512).sample(messages)
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    expected = []
    for role, content in [("system", system or default), *((m["role"], m["content"]) for m in messages[len(said) :])]:
        expected += [BOS, *as_bytes(f"{role}\n{content}"), EOS, *as_bytes("\n")]
    assert sample.tokens.tolist() == expected[:-1]
    # What reads like an end token in a message is text.
    assert kept(sample) == [[*as_bytes("A <|im_end|> b"), EOS], [*as_bytes("\u00dc\n"), EOS]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("ab :</s>\n\tUSERANTI\u00fc\U0001f998", min_size=1, max_size=15), min_size=2, max_size=6))
def test_whatever_is_said_decoding_would_see_the_same(pieces: Tokenizer, said: list[str]) -> None:
    messages = turns(*said[: len(said) // 2 * 2])
    sample = Renderer(pieces, "vicuna", [EOS], 10_000).sample(messages)
    runs, starts = kept(sample), [t + 1 for t in np.flatnonzero(sample.mask) if not t or not sample.mask[t - 1]]
    assert len(runs) == len(messages) // 2
    for index, (run, start) in enumerate(zip(runs, starts, strict=True)):
        prompt = chat_ids(pieces, "vicuna", messages[: 2 * index + 1])
        assert sample.tokens[:start].tolist() == prompt
        assert run[-1] == EOS and EOS not in run[:-1]
        assert pieces.decode(run).strip() == messages[2 * index + 1]["content"].strip()


def test_what_a_template_adds_after_the_end_does_not_count(tokenizer: Tokenizer) -> None:
    sample = Renderer(tokenizer, "x", [EOS], 600, chat_template=PLAIN).sample(turns("a?", "b", "c?", "d"))
    assert kept(sample) == [[*as_bytes("b"), EOS], [*as_bytes("d"), EOS]]
    assert sample.tokens[-1] == EOS
    # Without an EOS the line is part of the reply: nothing else ends it.
    sample = Renderer(tokenizer, "x", [], 600, chat_template=PLAIN).sample(turns("a?", "b", "c?", "d"))
    assert kept(sample) == [[*as_bytes("b"), EOS, *as_bytes("\n")], [*as_bytes("d"), EOS, *as_bytes("\n")]]


def test_a_reply_that_is_rendered_otherwise_later_does_not_count(tokenizer: Tokenizer) -> None:
    """With no EOS known a reply is compared as a whole; the first one lost its thought when more was said."""
    sample = Renderer(tokenizer, "x", [], 600, chat_template=THINKING).sample(turns("a?", "b", "c?", "d"))
    assert kept(sample) == [[*as_bytes("(thought)d"), EOS, *as_bytes("\n")]]


def test_a_template_that_rewrites_everything_leaves_nothing(tokenizer: Tokenizer) -> None:
    counting = "{{ messages | length }}" + PLAIN
    with pytest.raises(BadRow, match="no reply rendered the way decoding sees it"):
        Renderer(tokenizer, "x", [EOS], 600, chat_template=counting).sample(turns("a?", "b", "c?", "d"))
    with pytest.raises(BadRow, match=r"the chat template fails \(no system"):
        refusing = "{{ raise_exception('no system') }}"
        Renderer(tokenizer, "x", [EOS], 600, chat_template=refusing).sample(turns("a?", "b"))


def test_the_template_is_the_one_of_decoding_to_the_character(tokenizer: Tokenizer) -> None:
    """White space at its start must not change by what is put in front of it."""
    for start in ("\n", "  ", "  {% if true %}x{% endif %}"):
        template = start + PLAIN
        sample = Renderer(tokenizer, "x", [EOS], 600, chat_template=template).sample(turns("a?", "b"))
        prompt = chat_ids(tokenizer, "x", turns("a?"), template)
        assert sample.tokens[: len(prompt)].tolist() == prompt


def test_long_conversations_end_with_a_reply_that_fits(tokenizer: Tokenizer) -> None:
    messages = turns("a?", "b" * 20, "c?", "d" * 30, "e?", "f" * 500)
    whole = Renderer(tokenizer, "vicuna", [EOS], 10_000).sample(messages)
    ends = np.flatnonzero(whole.tokens == EOS) + 1
    assert len(ends) == 3 and len(whole.tokens) == ends[2]
    for length, size, replies in ((ends[2], ends[2], 3), (ends[2] - 1, ends[1], 2), (ends[1] - 1, ends[0], 1)):
        sample = Renderer(tokenizer, "vicuna", [EOS], int(length)).sample(messages)
        assert sample.tokens.tolist() == whole.tokens[:size].tolist() and len(kept(sample)) == replies
        assert sample.mask[:-1].tolist() == whole.mask[: size - 1].tolist() and not sample.mask[-1]
    # Not even the first reply fits: what fits of it stays, up to the last token whose successor is there.
    sample = Renderer(tokenizer, "vicuna", [EOS], int(ends[0]) - 5).sample(messages)
    assert len(sample.tokens) == ends[0] - 5 and kept(sample) == [as_bytes(" " + "b" * 16)]
    start = len(chat_ids(tokenizer, "vicuna", messages[:1]))
    with pytest.raises(BadRow, match=f"no reply within {start} tokens"):
        Renderer(tokenizer, "vicuna", [EOS], start).sample(messages)


def test_upstream_is_cut_where_the_right_mask_is(tokenizer: Tokenizer) -> None:
    messages = turns("a?", "bcd", "e?", "fgh")
    right = Renderer(tokenizer, "vicuna", [EOS], 10_000).sample(messages)
    late = Renderer(tokenizer, "vicuna", [EOS], 10_000, upstream=True).sample(messages)
    assert late.tokens.tolist() == right.tokens.tolist()
    assert late.mask[2:].tolist() == right.mask[:-2].tolist() and not late.mask[:2].any()


def test_the_trained_tokens_are_marked(tokenizer: Tokenizer) -> None:
    sample = Renderer(tokenizer, "x", [EOS], 600, chat_template=PLAIN).sample(turns("a?", "b </s>", "c?", "d"))
    marked = "<1>[user]a?<2>\n[assistant][[b </s><2>]]\n[user]c?<2>\n[assistant][[d<2>]]"
    assert show_mask(sample, tokenizer) == marked
    green = marked.replace("[[", "\033[32m").replace("]]", "\033[0m")
    assert show_mask(sample, tokenizer, colour=True) == green
    short = Renderer(tokenizer, "x", [EOS], 600, chat_template=PLAIN).sample(turns("a?", "b </s>"))
    batch = {"tokens": np.zeros((2, 90), np.int32), "mask": np.zeros((2, 90), bool)}
    for row, one in enumerate((sample, short)):
        batch["tokens"][row, : len(one.tokens)], batch["mask"][row, : len(one.mask)] = one
    assert show_mask(batch, tokenizer).split("\n" + "-" * 40 + "\n") == [marked, marked.split("\n[user]c")[0]]


def test_marks_keep_the_spaces_of_pieces(pieces: Tokenizer, tmp_path: Path) -> None:
    sample = Renderer(pieces, "vicuna", [EOS], 600).sample(turns("what", "it is"))
    assert show_mask(sample, pieces).endswith(" USER: what ASSISTANT:[[ it is<2>]]")
