"""What the commands share: options that mean the same everywhere, and what is made of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kangaroo_jax
from kangaroo_jax.engine import Options, asked
from kangaroo_jax.kernels import CHOICES, DRAFT_WEIGHTS
from kangaroo_jax.model import METHODS
from kangaroo_jax.proof import beginning, built_in, read_prompts

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
"""Arguments of ``kangaroo_jax.generate`` that have an effect only if tokens are drawn."""


def new_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return an empty parser whose help shows the description, its line breaks kept.

    Args:
        command: the command's first word; "" for the one that has none.
        description: the module's docstring.
    """
    return argparse.ArgumentParser(
        prog=f"python -m kangaroo_jax {command}".rstrip(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model(parser: argparse.ArgumentParser, *, adapters: bool = False) -> None:
    """Add the options that say which model is meant; ``load`` reads them.

    Args:
        parser: the command's.
        adapters: whether several adapters may be named; ``args.adapter`` is a list or None then.
    """
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME",
        default="joey",
        help="embedded name, directory, GGUF file or alias, such as smollm2 (default: %(default)s)",
    )
    own = "adapter directory (default: the model's own)"
    if adapters:
        add("--adapter", type=Path, metavar="DIR", action="append", help=f"{own}; may be repeated")
    else:
        add("--adapter", type=Path, metavar="DIR", help=own)
    add("--exit-layer", type=int, metavar="N", help="layer the adapter was trained after, where it does not say it")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32 on a CPU, else bfloat16)")
    add("--kernels", choices=CHOICES, default="auto", help="native needs a CPU (default: native where it can be used)")
    stored = "how native kernels read what only drafts (default: int8 for a model in bfloat16)"
    add("--draft-weights", choices=DRAFT_WEIGHTS, default="auto", help=stored)


def load(args: argparse.Namespace) -> kangaroo_jax.Params:
    """Load the model that the options name.

    Raises:
        ValueError: as ``kangaroo_jax.load``.
    """
    adapter = args.adapter[0] if isinstance(args.adapter, list) else args.adapter
    return kangaroo_jax.load(
        args.model,
        adapter=adapter,
        exit_layer=args.exit_layer,
        dtype=args.dtype,
        kernels=args.kernels,
        draft_weights=args.draft_weights,
    )


def add_prompts(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Add ``--prompts`` and ``--raw``; ``read`` and then ``prompts`` read them.

    Args:
        parser: the command's.
        when: what comes before the help of the first.
    """
    add = parser.add_argument
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=f"{when}JSON lines with a 'prompt' each (default: built-in ones: questions for a chat model, else code)",
    )
    add("--raw", action="store_true", help="go on with a prompt as it is, where a chat model would answer it")


def read(args: argparse.Namespace) -> None:
    """Read the file of ``--prompts``: before a model is loaded, and once, since it may be a pipe.

    Raises:
        ValueError: if it is missing or wrong.
    """
    args.rows = args.prompts and read_prompts(args.prompts)


def prompts(params: kangaroo_jax.Params, args: argparse.Namespace, texts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return names and prompts: of these texts, else of ``--prompts``, else the built-in ones.

    A chat model is asked them, each as a user's message in its chat template, unless ``--raw`` is given.
    """
    if not texts and args.rows is None and not args.raw:
        return built_in(params)
    rows = [{"name": beginning(text), "prompt": text} for text in texts] or args.rows or read_prompts()
    return rows if args.raw else [{**row, "prompt": asked(params, row["prompt"])} for row in rows]


def add_decoding(parser: argparse.ArgumentParser, max_new_tokens: int = Options.max_new_tokens) -> None:
    """Add the options that every way of decoding has; ``decoding`` reads them.

    Args:
        parser: the command's.
        max_new_tokens: default of the token budget.
    """
    add = parser.add_argument
    add("--max-new-tokens", type=int, metavar="N", default=max_new_tokens, help="token budget (default: %(default)s)")
    add("--gamma", type=int, metavar="N", help="most tokens drafted in a round (default: the adapter's)")
    siblings = "next choices verified beside the first drafted token"
    add("--siblings", type=int, metavar="N", help=f"{siblings} (default: the adapter's)")
    lookup = "look the newest N tokens up in the text, and draft what followed them there"
    add("--lookup", type=int, metavar="N", help=f"{lookup} (default: the adapter's)")
    add("--eta", type=float, metavar="P", help="confidence below which drafting stops (default: the adapter's)")


def decoding(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``kangaroo_jax.generate`` that the options of ``add_decoding`` stand for."""
    return {name: getattr(args, name) for name in ("max_new_tokens", "gamma", "eta", "siblings", "lookup")}


def add_writing(parser: argparse.ArgumentParser) -> None:
    """Add the options of a text that is written once: method, stop strings, sampling; ``writing`` reads them."""
    add = parser.add_argument
    add("--method", choices=METHODS, help="how to decode (default: the adapter's; kangaroo unless tuned otherwise)")
    add(
        "--stop",
        type=_unescaped,
        action="append",
        metavar="TEXT",
        help=r"end the text before TEXT, in which \n is a line break, \t a tab, \\ a backslash; may be repeated",
    )
    group = parser.add_argument_group("sampling", "Tokens are drawn at random if any of these is given.")
    add = group.add_argument
    add("--do-sample", action="store_true", help="with the defaults of the others")
    add("--temperature", type=float, metavar="T", help=f"divides the logits (default: {Options.temperature:g})")
    add("--top-k", type=int, metavar="N", help=f"only the N likeliest tokens, 0 for all (default: {Options.top_k})")
    add(
        "--top-p", type=float, metavar="P", help=f"only the likeliest tokens that sum to P (default: {Options.top_p:g})"
    )
    add("--min-p", type=float, metavar="P", help="only tokens at least P times as likely as the likeliest (default: 0)")
    add("--seed", type=int, metavar="N", help="the same seed gives the same text again (default: another each time)")


def writing(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``kangaroo_jax.generate`` that ``add_decoding`` and ``add_writing`` stand for."""
    given = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    drawn = {"do_sample": True, **given} if args.do_sample or given else {}
    return decoding(args) | {"method": args.method, "stop_strings": args.stop} | drawn


def refuse_writing(args: argparse.Namespace, why: str) -> None:
    """Raise ValueError if stop strings or sampling are asked for.

    Args:
        args: of a parser with ``add_writing``.
        why: what cannot be had with them, and why.
    """
    values = {name: getattr(args, name) for name in ("stop", "do_sample", *SAMPLING)}
    given = [name for name, value in values.items() if value is not None and value is not False]  # 0 is a value.
    if given:
        raise ValueError(f"{why}: leave out {', '.join('--' + name.replace('_', '-') for name in given)}")


def _unescaped(text: str) -> str:
    """Return a text with the characters that are hard to type on a command line; other backslashes stay."""
    characters = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: characters[match[1]], text)
