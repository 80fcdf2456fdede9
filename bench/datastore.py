"""Make the datastore that the method "rest" looks up what follows in: training text as tokens, and its suffix array.

It lies in the home folder, beside what other methods need for the model. Held-out files are left out: without --data
those of the standard library that joey was not trained on, with --data those that the same rule holds out of a folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kangaroo_jax import Params
from kangaroo_jax.files import first_line, read_json, whole_directory, write_json
from kangaroo_jax.progress import progress
from kangaroo_jax.store import companion, read_config, resolve
from kangaroo_jax.text import Tokenizer, load_tokenizer
from workshop.command import exit_status
from workshop.held_out import cut_at_lines, split_sources, standard_library

COMMAND = "python -m bench.datastore --model MODEL"
SUFFIXES = (".py", ".txt", ".md")
CHATS = ".jsonl"
_RECORD, _TOKENS, _ORDER = "datastore.json", "tokens.npy", "suffixes.npy"
_PROBE = 'def f(x):\n    return {"key": [1, 2.5, None]}  # Größe, naïve 東京\n'
_EXAMPLES = """\
examples:
  python -m bench.datastore --model joey                       # the standard library, 95 % of its files
  python -m bench.datastore --model vicuna-7b --data texts/    # .py .txt .md below texts/, 95 % of them
  python -m bench.datastore --model joey --data one.txt --force
"""


def load_datastore(params: Params) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return the tokens, the suffix array and the record of a model's datastore.

    Raises:
        ValueError: if there is none, it is damaged, or another tokenizer made it.
    """
    folder, make = companion(params.name, "rest"), COMMAND.replace("MODEL", params.name)
    if not folder.is_dir():
        raise ValueError(f"rest needs a datastore, and {folder} is not there; make it: {make}")
    again = f"make it again: {make} --force"
    record = read_json(folder / _RECORD, again)
    try:
        tokens, suffixes = (np.load(folder / name) for name in (_TOKENS, _ORDER))
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"the datastore {folder} cannot be read ({first_line(error)}); {again}") from error
    if tokens.ndim != 1 or not len(tokens) or tokens.shape != suffixes.shape or len(tokens) != record.get("tokens"):
        raise ValueError(f"the datastore {folder} is damaged: its files differ in length; {again}")
    same = record.get("vocab_size") == params.config.vocab_size and record.get("probe") == _probe(params.tokenizer)
    if not same:
        raise ValueError(f"the datastore {folder} was made with another tokenizer than that of {params.name}; {again}")
    return tokens, suffixes, record


def make_datastore(
    folder: Path, texts: Sequence[str], tokenizer: Tokenizer, vocab_size: int, data: str, replace: bool = False
) -> int:
    """Tokenise texts, sort their suffixes, and write both, whole or not at all.

    Each text begins with BOS, where the tokenizer has one; nothing else is between two of them, as in the published
    code.

    Args:
        folder: what to write.
        texts: the texts.
        tokenizer: the model's.
        vocab_size: the model's.
        data: where the texts are from, for the record.
        replace: whether an existing folder is replaced.

    Returns:
        The number of tokens.

    Raises:
        ValueError: if the library that sorts is missing, or the texts hold no token, or too many.
    """
    try:
        import pydivsufsort
    except ImportError as error:
        raise ValueError("the datastore needs pydivsufsort: pip install 'kangaroo-jax[bench]'") from error
    probe, prefix = _probe(tokenizer), tokenizer.encode("")
    kind = np.min_scalar_type(vocab_size - 1)
    pieces: list[np.ndarray] = []
    with progress(total=sum(map(len, texts)), desc="tokenise", unit="char", unit_scale=True) as bar:
        for text in texts:
            pieces.append(np.array(prefix, kind))
            for piece in cut_at_lines(text):
                pieces.append(np.array(tokenizer.encode(piece)[len(prefix) :], kind))
                bar.update(len(piece))
    tokens = np.concatenate([np.empty(0, kind), *pieces])
    if not len(tokens):
        raise ValueError(f"no token in {data}; pass other text")
    if len(tokens) > np.iinfo(np.int32).max:
        raise ValueError(f"{data} has {len(tokens):,} tokens; a datastore holds 2^31 - 1: pass less text")
    with whole_directory(folder, replace=replace) as staged:
        print(f"sorting {len(tokens):,} suffixes", file=sys.stderr)
        suffixes = pydivsufsort.divsufsort(tokens)
        np.save(staged / _TOKENS, tokens)
        np.save(staged / _ORDER, suffixes.astype(np.int32))
        write_json(
            staged / _RECORD,
            {"data": data, "texts": len(texts), "tokens": len(tokens), "vocab_size": vocab_size, "probe": probe},
        )
    return len(tokens)


def read_texts(paths: Sequence[Path]) -> tuple[list[str], str]:
    """Return the texts that paths stand for, and a line on them; without any, the standard library.

    Of a folder the held-out files are left out; a file is taken whole, and of one of conversations, as
    ``train.regenerate`` writes it, each message is a text, as in the published code.

    Raises:
        ValueError: if a path is absent or no text.
    """
    if not paths:
        files = split_sources([standard_library()])[0]
        return [file.data.decode() for file in files], f"standard library of Python {sys.version.split()[0]}"
    texts = []
    for path in paths:
        if path.is_dir():
            texts += [file.data.decode() for file in split_sources([path], SUFFIXES)[0]]
            continue
        try:
            text = path.read_bytes().decode()
            rows = [json.loads(line)["messages"] for line in text.splitlines()] if path.suffix == CHATS else []
            texts += [message["content"] for messages in rows for message in messages] if rows else [text]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f'--data {path} has a line that is not {{"messages": [...]}} ({error!r})') from error
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--data {path} cannot be read ({first_line(error)}); pass UTF-8 text") from error
    return texts, ", ".join(path.absolute().name for path in paths)


def _probe(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a text, by which tokenizers are told apart."""
    return tokenizer.encode(_PROBE)


def run(args: argparse.Namespace) -> None:
    """Make the datastore that the options describe."""
    directory, folder = resolve(args.model), companion(args.model, "rest")
    if folder.exists() and not args.force:
        raise ValueError(f"{folder} exists; replace it with --force")
    texts, data = read_texts(args.data)
    vocab_size = read_config(directory).vocab_size
    tokens = make_datastore(folder, texts, load_tokenizer(directory, vocab_size), vocab_size, data, args.force)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{tokens:,} tokens of {len(texts):,} texts ({data}), {size / 2**20:.1f} MiB, in {folder}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 2 on bad input, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.datastore",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="joey", help="what kangaroo_jax.load takes (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="text files, .jsonl files of conversations, and folders of .py .txt .md files",
    )
    parser.add_argument("--force", action="store_true", help="replace the datastore that is there")
    args = parser.parse_args(argv)
    return exit_status(lambda: run(args), afterwards="nothing was changed")


if __name__ == "__main__":
    sys.exit(main())
