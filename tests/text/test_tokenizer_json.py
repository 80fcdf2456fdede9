"""tokenizer.json itself encodes and decodes: ids are those of the tokenizers library, whatever its class is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Core

from kangaroo_jax.text import Tokenizer, chat_ids, load_tokenizer

TEXTS = [
    "in 2024 it was 12345",
    "    return x\n\n\n\tpass  ",
    "don't  we'll I'M\r\n",
    "e\u0301 é \u212b \ufb01 \uff21",
    "漢字かな 한국어 🦘👨\u200d👩\u200d👧",
    "<s>a</s> b<unk>",
    " <s> ",
    "x",
    "",
]
CORPUS = ["in 2024 it was 12345 of 2024", "    return x", "don't we'll é 漢"] * 50 + Path(os.__file__).read_text(
    "utf-8"
).splitlines()
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPACES = normalizers.Replace(" ", "\u2581")
OUT = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)


def trained(model: Any, alphabet: list[str], pre: Any, decoder: Any, normalizer: Any = None) -> Core:
    core = Core(model)
    if normalizer is not None:
        core.normalizer = normalizer
    if pre is not None:
        core.pre_tokenizer = pre
    core.decoder = decoder
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=800, show_progress=False, special_tokens=special, initial_alphabet=alphabet
    )
    core.train_from_iterator(CORPUS, trainer)
    return core


def byte_level(pre: Any = BYTE_LEVEL, normalizer: Any = None) -> Core:
    return trained(models.BPE(), pre_tokenizers.ByteLevel.alphabet(), pre, decoders.ByteLevel(), normalizer)


def made_of(core: Core, config: dict[str, Any]) -> Tokenizer:
    """Return what a copy of it becomes: the original stays for comparison."""
    return Tokenizer(Core.from_str(core.to_str()), config)


def with_bos(core: Core) -> Core:
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return core


def unigram() -> Core:
    core = Core(
        models.Unigram(
            [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("\u2581in", -2.0), ("\u2581", -3.0), ("x", -4.0)], 0, False
        )
    )
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core


KINDS: dict[str, tuple[Any, str]] = {
    "SmolLM2: single digits": (
        lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])),
        "GPT2Tokenizer",
    ),
    "Llama 2: a space in front": (
        lambda: with_bos(
            trained(
                models.BPE(unk_token="<unk>"),
                ["\u2581"],
                None,
                decoders.Sequence([*OUT, decoders.Strip(" ", 1, 0)]),
                normalizers.Sequence([normalizers.Prepend("\u2581"), SPACES]),
            )
        ),
        "LlamaTokenizer",
    ),
    "byte-level, labelled Llama": (lambda: with_bos(byte_level()), "LlamaTokenizer"),
    "byte-level, labelled LlamaFast": (lambda: byte_level(), "LlamaTokenizerFast"),
    "Qwen 2": (
        lambda: byte_level(
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(QWEN), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            normalizers.NFC(),
        ),
        "Qwen2Tokenizer",
    ),
    "three digits, labelled Qwen 2": (
        lambda: byte_level(
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        ),
        "Qwen2Tokenizer",
    ),
    "lower case, labelled GPT-2": (lambda: byte_level(normalizer=normalizers.Lowercase()), "GPT2TokenizerFast"),
    "pieces with probabilities": (unigram, "T5Tokenizer"),
    "a class that nobody has": (lambda: with_bos(byte_level()), "MyTokenizer"),
}


def write(directory: Path, core: Core, config: dict[str, Any] | None = None) -> Path:
    core.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_file(kind: str, tmp_path: Path) -> None:
    make, label = KINDS[kind]
    config = {"tokenizer_class": label, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write(tmp_path, make(), config)
    reference = Core.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text).ids, text
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_nothing_is_cut_or_filled_up(tmp_path: Path) -> None:
    core = byte_level()
    core.enable_truncation(3)
    core.enable_padding(length=50, pad_token="</s>", pad_id=2)
    tokenizer = load_tokenizer(write(tmp_path, core))
    core.no_truncation()
    core.no_padding()
    assert tokenizer.encode(TEXTS[0]) == core.encode(TEXTS[0]).ids


@pytest.mark.parametrize("post", [None, processors.ByteLevel(trim_offsets=False)])
@pytest.mark.parametrize(
    ("asked", "bos", "eos"),
    [
        ({}, 0, 0),
        ({"add_bos_token": True}, 1, 0),
        ({"add_bos_token": True, "add_eos_token": True}, 1, 1),
        ({"add_bos_token": False}, 0, 0),
    ],
)
def test_add_bos_token_counts_where_the_file_is_silent(post: Any, asked: dict[str, bool], bos: int, eos: int) -> None:
    core = byte_level()
    plain = core.encode("hop").ids
    if post is not None:
        core.post_processor = post
    tokenizer = made_of(core, {"bos_token": "<s>", "eos_token": "</s>", **asked})
    assert tokenizer.encode("hop") == [1] * bos + plain + [2] * eos
    assert tokenizer.bos == [1] * bos


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("single", ["$A", "<s> $A"])
def test_the_files_post_processor_decides(single: str, asked: bool) -> None:
    core = byte_level()
    core.post_processor = processors.Sequence(
        [processors.ByteLevel(), processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1)])]
    )
    tokenizer = made_of(core, {"bos_token": "<s>", "add_bos_token": asked})
    assert tokenizer.encode("hop") == core.encode("hop").ids
    assert tokenizer.bos == [1] * ("<s>" in single)


def test_bos_is_known_without_a_config() -> None:
    assert made_of(with_bos(byte_level()), {}).bos == [1]


END = {"content": "<end>", "special": True, "normalized": False}
NOTE = {
    "content": "<note>",
    "special": False,
    "normalized": False,
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
}


def test_tokens_that_the_config_adds() -> None:
    core = byte_level()
    size = core.get_vocab_size()
    config = {"added_tokens_decoder": {str(size + 1): NOTE, str(size): END, "2": {"content": "</s>", "special": True}}}
    tokenizer = made_of(core, config)
    assert tokenizer.encode("<note><end></s>") == [size + 1, size, 2]
    assert tokenizer.decode([size + 1, size, 2]) == "<note>"
    with pytest.raises(ValueError, match=f"added token '<note>' is to have id {size + 7}, and {size} is the next"):
        made_of(core, {"added_tokens_decoder": {str(size + 7): NOTE}})


def test_older_files_add_and_name_tokens(tmp_path: Path) -> None:
    core = byte_level()
    size = core.get_vocab_size()
    write(tmp_path, core, {"eos_token": None, "add_bos_token": True})
    named = {"bos_token": {"content": "<s>", "lstrip": False}, "additional_special_tokens": ["<end>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<note>": size + 1, "<end>": size}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<note><end>") == [1, size + 1, size]
    assert tokenizer.special_ids == {0, 1, 2, size}


def test_special_tokens_are_called_as_they_are_written() -> None:
    """Those of Llama 2's and Vicuna's older files are "normalized": the library then calls them "▁</s>"."""
    core = byte_level(normalizer=normalizers.Prepend("\u2581"))
    state = json.loads(core.to_str())
    state["added_tokens"] = [token | {"normalized": True} for token in state["added_tokens"]]
    tokenizer = Tokenizer(Core.from_str(json.dumps(state)), {"eos_token": "</s>"})
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}


def test_a_named_token_that_is_not_there_stays_text() -> None:
    core = byte_level()
    tokenizer = made_of(core, {"pad_token": "[PAD]", "eos_token": "<eot>"})
    assert tokenizer.encode("[PAD]<eot>") == core.encode("[PAD]<eot>").ids
    hop = [{"role": "user", "content": "hop"}]
    assert tokenizer.decode(chat_ids(tokenizer, "x", hop, "{{ pad_token }}{{ eos_token }}")) == "[PAD]<eot>"


def test_ids_beyond_the_vocabulary_are_refused_by_name(tmp_path: Path) -> None:
    core = byte_level()
    size = core.get_vocab_size()
    core.add_special_tokens([AddedToken("<|im_start|>")])
    config = {"chat_template": "<|im_start|>{{ messages[0].content }}"}
    tokenizer = load_tokenizer(write(tmp_path, core, config), size)
    assert tokenizer.encode("hop") == core.encode("hop").ids
    message = rf"^'<\|im_start\|>' has token id {size}, and ids of this model go from 0 to {size - 1}; leave it out"
    with pytest.raises(ValueError, match=message):
        tokenizer.encode("a<|im_start|>")
    with pytest.raises(ValueError, match=message):
        chat_ids(tokenizer, "x", [{"role": "user", "content": "hop"}])
    # Where the model has room to spare nothing is wrong.
    assert load_tokenizer(tmp_path, size + 9).encode("<|im_start|>") == [size]


def test_templates_come_from_their_files(tmp_path: Path) -> None:
    hop = [{"role": "user", "content": "hop"}]

    def rendered(**options: Any) -> str:
        tokenizer = load_tokenizer(tmp_path)
        return tokenizer.decode(chat_ids(tokenizer, "x", hop, **options))

    write(tmp_path, byte_level(), {"chat_template": [{"name": "tool_use", "template": "tools {{ tools }}"}]})
    with pytest.raises(ValueError, match=r"^x has no chat template for all uses; pass chat_template='tool_use'$"):
        rendered()
    assert rendered(chat_template="tool_use") == "tools None"
    assert rendered(chat_template_kwargs={"tools": [{"name": "f"}]}) == "tools [{'name': 'f'}]"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert rendered() == "from json"
    (tmp_path / "chat_template.jinja").write_text("from jinja\n")
    assert rendered() == "from jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("from the folder")
    assert (rendered(), rendered(chat_template="tool_use")) == ("from jinja", "from the folder")


IN_ASCII = """
import locale, sys
assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"), locale.getpreferredencoding(False)
from kangaroo_jax.text import chat_ids, load_tokenizer
for directory in sys.argv[1:]:
    tokenizer = load_tokenizer(directory)
    ids = chat_ids(tokenizer, "x", [{"role": "user", "content": "hop"}])
    print(ascii([tokenizer.bos, tokenizer.decode(ids)]))
"""


def test_files_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    core = byte_level()
    core.add_special_tokens(["<début>"])
    config = {"bos_token": "<début>", "add_bos_token": True, "chat_template": "{{ bos_token }}é漢"}
    directories = [tmp_path / "config", tmp_path / "jinja"]
    for directory in directories:
        directory.mkdir()
        write(directory, core)
    (directories[0] / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    template = config.pop("chat_template")
    (directories[1] / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    (directories[1] / "chat_template.jinja").write_text(str(template), "utf-8")
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", IN_ASCII, *map(str, directories)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == (ascii([[core.token_to_id("<début>")], "é漢"]) + "\n") * 2


@pytest.mark.parametrize("given", ["[]", "{", '{"added_tokens_decoder": {"5": 7}}', '{"chat_template": 5}'])
def test_a_config_that_is_none_is_one_line(given: str, tmp_path: Path) -> None:
    write(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").write_text(given)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("named", "model_type", "pre", "normalizer"),
    [
        ({"tokenizer_class": "GPT2Tokenizer"}, "llama", BYTE_LEVEL, None),
        ({}, "llama", BYTE_LEVEL, None),
        ({"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}, "llama", pre_tokenizers.ByteLevel(), None),
        ({"tokenizer_class": "Qwen2Tokenizer"}, "llama", None, normalizers.NFC()),
        ({}, "qwen3", None, normalizers.NFC()),
    ],
)
def test_vocabulary_and_merges_alone(
    named: dict[str, Any], model_type: str, pre: Any, normalizer: Any, tmp_path: Path
) -> None:
    core = KINDS["Qwen 2"][0]() if normalizer is not None else byte_level(pre)
    core.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    size = core.get_vocab_size()
    extra = {"added_tokens_decoder": {str(size): END, str(size + 1): NOTE}, "bos_token": "<s>", "add_bos_token": True}
    extra |= {"eos_token": "</s>", "additional_special_tokens": ["<unk>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named | extra))
    core.add_special_tokens([AddedToken("<end>", normalized=False)])
    core.add_tokens([AddedToken("<note>", normalized=False)])
    tokenizer = load_tokenizer(tmp_path)
    for text in [*TEXTS, "a<end> <note>b"]:
        ids = core.encode(text).ids
        assert tokenizer.encode(text) == [1, *ids], text
        assert tokenizer.decode(ids) == core.decode(ids, skip_special_tokens=True)


def test_vocabulary_and_merges_of_another_class(tmp_path: Path) -> None:
    byte_level().model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ValueError, match="of a 'BertTokenizer'; only GPT2Tokenizer and Qwen2Tokenizer"):
        load_tokenizer(tmp_path)
