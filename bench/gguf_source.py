"""Write a copy of a checkpoint that llama.cpp's convert_hf_to_gguf.py accepts, where it does not know the tokenizer.

    python -m bench.gguf_source --model joey --out DIR

Weights, config and adapter are those of the checkpoint, byte for byte. In the tokenizer's place is a SentencePiece
model of 259 pieces: ``<unk>``, ``<s>``, ``</s>`` and the 256 bytes, which are joey's tokens, id by id. The converter
fills a larger vocabulary up with pieces that are never used. Models whose tokenizer it knows need no copy. A random
model of ``bench.shapes`` gets the tokenizer that it lacks, so that the copy can be given prompts here, too.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import sys
from pathlib import Path

from kangaroo_jax.files import check_vacant, whole_directory
from kangaroo_jax.store import INDEX, TORCH_INDEX, read_config, resolve, weight_files
from kangaroo_jax.text import load_tokenizer
from workshop.command import exit_status

_SPECIAL = ("<unk>", "<s>", "</s>")
PIECES = (*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)))
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # SentencePiece's own numbers for kinds of pieces.
_BPE = 2  # Llama's kind of model.


def byte_tokenizer() -> bytes:
    """Return a ``tokenizer.model`` of ``PIECES``: every byte of a text is one token.

    It is a ModelProto of sentencepiece_model.proto; the numbers below are those of its fields.
    """
    kinds = (_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256)
    pieces = [
        _message(1, _message(1, piece.encode()) + _float(2, 0.0) + _number(3, kind))
        for piece, kind in zip(PIECES, kinds, strict=True)
    ]
    trainer = _number(3, _BPE) + _number(4, len(PIECES)) + _number(35, 1)  # Model type, vocabulary, byte_fallback.
    # No space in front, all spaces kept, and kept as spaces.
    normalizer = _message(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 0)
    return b"".join(pieces) + _message(2, trainer) + _message(3, normalizer)


def write_source(directory: Path, out: Path) -> None:
    """Copy a checkpoint in Hugging Face's layout, with ``byte_tokenizer`` for its tokenizer.

    Args:
        directory: holds ``config.json`` and the weights, perhaps an adapter.
        out: the directory to write; appears when all is written.

    Raises:
        ValueError: if ``out`` exists, files are absent or damaged, or the vocabulary has no room for the bytes.
    """
    if (size := read_config(directory).vocab_size) < len(PIECES):
        raise ValueError(f"{directory} has a vocabulary of {size}; the stand-in tokenizer needs {len(PIECES)}")
    indices = [directory / name for name in (INDEX, TORCH_INDEX, "generation_config.json")]
    with whole_directory(out) as staged:
        for file in (directory / "config.json", *weight_files(directory), *filter(Path.is_file, indices)):
            shutil.copyfile(file, staged / file.name)
        if (directory / "adapter").is_dir():
            shutil.copytree(directory / "adapter", staged / "adapter")
        (staged / "tokenizer.model").write_bytes(byte_tokenizer())
        load_tokenizer(staged)


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def main(argv: list[str] | None = None) -> int:
    """Write the copy; the exit status: 0, 2 on bad input, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bench.gguf_source", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="joey", help="a directory in Hugging Face's layout (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; it must not exist")
    args = parser.parse_args(argv)

    def write() -> None:
        check_vacant(args.out)
        write_source(resolve(args.model), args.out)

    return exit_status(write)


if __name__ == "__main__":
    sys.exit(main())
