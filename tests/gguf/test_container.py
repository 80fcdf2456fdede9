"""GGUF files as containers: every kind of tensor, parts, and files that lie: one line each, nothing else."""

from __future__ import annotations

import os
import random
import struct
import sys

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from kangaroo_jax.gguf import Gguf
from kangaroo_jax.store import open_hf, read_config
from kangaroo_jax.text import find_tokenizer

READ = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0"),
    *("MXFP4",),
)


def text(value):
    encoded = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def entry(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def tensor(name, extents, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, offset)


def whole(entries=(), tensors=(), data=b"", version=3, counts=None):
    counts = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


ARCHITECTURE = entry("general.architecture", 8, text("llama"))
LIES = {
    "is not a GGUF file": b"GGML" + bytes(60),
    "ends too early": whole(counts=(0, 7))[:24],
    "is of version 1 of GGUF; 2 and 3 are read": whole(version=1),
    "is big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    f"has {1 << 40} tensors; at most": whole(counts=(1 << 40, 0)),
    f"has {1 << 63} keys; at most": whole(counts=(0, 1 << 63)),
    "has the key 'a' twice": whole([entry("a", 4, bytes(4))] * 2),
    "has a key with the name ''": whole([entry("", 4, bytes(4))]),
    r"has a key with the name 'a\nb'": whole([entry("a\nb", 4, bytes(4))]),
    "has a value of kind 13 for 'a'": whole([entry("a", 13, bytes(4))]),
    "has a value of kind 9 for 'a'": whole([entry("a", 9, struct.pack("<IQ", 9, 1))]),
    f"says that 'a' is an array of {1 << 60}; at most": whole([entry("a", 9, struct.pack("<IQ", 0, 1 << 60))]),
    "early; get": whole([entry("a", 9, struct.pack("<IQ", 10, 1 << 20))]),
    "early; get it": whole([entry("a", 9, struct.pack("<IQ", 8, 1 << 20))], data=b"\xff" * 99),
    "early; get it from": whole([entry("a", 8, struct.pack("<Q", (1 << 64) - 1))]),
    "general.alignment that is no power of two": whole([entry("general.alignment", 4, struct.pack("<I", 24))]),
    "alignment that is no power": whole([entry("general.alignment", 8, text("x"))]),
    "has the tensor 'a' twice": whole(tensors=[tensor("a", (8,)), tensor("a", (8,), 0, 32)], data=bytes(64)),
    "'a' of 0 dimensions": whole(tensors=[tensor("a", ())]),
    "'a' of 5 dimensions": whole(tensors=[tensor("a", (1,) * 5)]),
    "'a' of [8, 0]": whole(tensors=[tensor("a", (8, 0))]),
    f"'a' of [{1 << 40}, {1 << 40}]": whole(tensors=[tensor("a", (1 << 40, 1 << 40))]),
    "'a' of [33], whose rows are no blocks of 32": whole(tensors=[tensor("a", (33,), Kind.Q8_0)], data=bytes(99)),
    "'a' is of kind 99": whole(tensors=[tensor("a", (8,), 99)]),
    "says that 'a' is at 64 of its data, where 0 is due": whole(tensors=[tensor("a", (8,), 0, 64)], data=bytes(96)),
    "ends before its tensor 'a' of 32 bytes does": whole(tensors=[tensor("a", (8,))], data=bytes(31)),
    "is of architecture 'clip'": whole([entry("general.architecture", 8, text("clip"))]),
    "is of architecture None": whole(),
    "general.architecture is 7; it must be text": whole([entry("general.architecture", 4, struct.pack("<I", 7))]),
    "general.architecture is an array of 2; it must": whole(
        [entry("general.architecture", 9, struct.pack("<IQ", 8, 2) + text("llama") * 2)]
    ),
    "has a text that is not UTF-8": whole([entry("general.architecture", 8, text(b"\xff"))]),
    "is of type 'adapter'": whole([ARCHITECTURE, entry("general.type", 8, text("adapter"))]),
    "mixtures of experts are": whole([ARCHITECTURE, entry("llama.expert_count", 4, struct.pack("<I", 8))]),
    "lacks the table token_embd.weight": whole([ARCHITECTURE]),
    "has 1048576 tokens, and token_embd.weight 1 rows": whole(
        [
            ARCHITECTURE,
            entry("tokenizer.ggml.model", 8, text("gpt2")),
            entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1 << 20) + bytes(8 << 20)),
        ],
        [tensor("token_embd.weight", (8, 1))],
        bytes(32),
    ),
}


@pytest.mark.parametrize("line", LIES)
def test_a_lie_is_one_line(tmp_path, line):
    (tmp_path / "m.gguf").write_bytes(LIES[line])
    with pytest.raises(ValueError) as error:
        open_hf(tmp_path / "m.gguf")
    said = str(error.value)
    assert line in said and said.startswith(str(tmp_path / "m.gguf")) and "\n" not in said and len(said) < 500


@pytest.mark.parametrize("kind", ["I8", "I32", "F64", "Q8_1", "Q8_K"])
def test_what_the_package_does_not_dequantise_is_refused(tmp_path, kind):
    block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    (tmp_path / "m.gguf").write_bytes(whole(tensors=[tensor("a", (block,), Kind[kind])], data=bytes(size)))
    with pytest.raises(ValueError, match=f"'a' is {kind}, which the gguf package does not dequantise"):
        Gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", READ)
def test_every_kind_of_weights_is_read_as_the_package_reads_it(tmp_path, kind):
    block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    rows = np.random.default_rng(0).integers(0x30, 0x40, (5, 3 * size), dtype=np.uint8)  # Scales of about 1.
    data = whole(tensors=[tensor("a", (3 * block, 5), Kind[kind])], data=rows.tobytes())
    (tmp_path / "m.gguf").write_bytes(data)
    found = Gguf(tmp_path / "m.gguf").tensors["a"]
    values = found.read()
    expected = gguf.quants.dequantize(rows, Kind[kind])
    assert (found.kind, found.shape, values.dtype, values.shape) == (kind, (5, 3 * block), found.dtype, (5, 3 * block))
    np.testing.assert_array_equal(values.astype(np.float32), expected)


def test_changed_bytes_are_refused_or_read(tmp_path, ggufs, byte_level, sentencepiece):
    """Whatever is changed in a header: a line, or a model."""
    config, file = ggufs.config_of("llama3"), tmp_path / "m.gguf"
    sources = []
    for tokenizer in (byte_level([("a", "b"), ("ab", "c")], users=("<u>",)), sentencepiece(["a", "b", "ab"])):
        ggufs.write(file, config, ggufs.random_tensors(config), "Q8_0", tokenizer=tokenizer)
        sources.append(file.read_bytes())
    draw, read = random.Random(0), 0
    for count in range(150):
        data = bytearray(sources[count % 2])
        at = draw.randrange(9000)
        extreme = draw.choice([bytes(8), b"\xff" * 8, struct.pack("<Q", 1 << 40), draw.randbytes(1), draw.randbytes(3)])
        data[at : at + draw.choice([0, len(extreme), len(extreme)])] = extreme
        file.write_bytes(data[: draw.choice([len(data)] * 9 + [draw.randrange(len(data))])])
        try:
            [leaf.read() for leaf in open_hf(file)[1]]
            find_tokenizer(file).encode("abc")
            read += 1
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 800
    assert 10 < read < 100


def test_a_file_that_becomes_shorter_is_a_line(tmp_path, ggufs, byte_level):
    """A mapped one would end the process. What the header said is known by then."""
    config, file = ggufs.config_of(), tmp_path / "m.gguf"
    ggufs.write(file, config, ggufs.random_tensors(config), "Q8_0", tokenizer=byte_level())
    leaf, opened = open_hf(file)[1][0], Gguf(file)
    for size in (len(file.read_bytes()) // 2, 4):  # Within the data, and within the header.
        os.truncate(file, size)
        with pytest.raises(ValueError, match=r"m\.gguf changed while it was read"):
            [tensor.read() for tensor in opened.tensors.values()]
    with pytest.raises(ValueError, match=r"m\.gguf changed while it was read"):
        leaf.read()
    assert len(opened.texts("tokenizer.ggml.tokens")) == 259
    file.unlink()
    with pytest.raises(ValueError, match=r"m\.gguf cannot be read \(.*No such file"):
        leaf.read()


def test_a_model_in_parts_is_read_from_any_of_them(tmp_path, ggufs):
    config = ggufs.config_of("tied")
    tensors = ggufs.random_tensors(config)
    names = [*tensors]
    cuts = {"00001": names[:9], "00002": names[9:20], "00003": names[20:]}
    for number, own in cuts.items():
        writer = gguf.GGUFWriter(tmp_path / f"m-{number}-of-00003.gguf", "llama")
        if number == "00001":
            ggufs.describe(writer, config)
            writer.add_uint16("split.count", 3)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for name in own:
            order = next((heads[part] for part in heads if part in name), None)
            values = tensors[name] if order is None else ggufs.their_order(tensors[name], order)
            writer.add_tensor(ggufs.their_name(name), values)
        ggufs.finish(writer)
    for number in cuts:
        found, leaves = open_hf(tmp_path / f"m-{number}-of-00003.gguf")
        assert found == config
        np.testing.assert_array_equal(leaves[0].read(), tensors["model.embed_tokens.weight"])
    (tmp_path / "m-00001-of-00003.gguf").rename(tmp_path / "first.gguf")
    with pytest.raises(ValueError, match=r"is one of 3 parts; name them .* NAME-00001-of-00003\.gguf"):
        read_config(tmp_path / "first.gguf")
    with pytest.raises(ValueError, match=r"lacks its part m-00001-of-00003\.gguf"):
        read_config(tmp_path / "m-00002-of-00003.gguf")


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(whole())
    monkeypatch.setitem(sys.modules, "gguf", None)  # As if it were not there.
    with pytest.raises(ValueError, match="for which the package gguf is missing: pip install gguf"):
        read_config(tmp_path / "m.gguf")
