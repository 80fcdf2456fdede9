"""What the commands share: options that mean the same everywhere, and what is made of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import kangaroo_jax


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


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model is meant; ``load`` reads them."""
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME",
        default="joey",
        help="embedded name, converted directory or alias (default: %(default)s)",
    )
    add("--adapter", type=Path, metavar="DIR", help="adapter directory (default: the model's own)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32 on a CPU, else bfloat16)")


def load(args: argparse.Namespace) -> kangaroo_jax.Params:
    """Load the model that the options name.

    Raises:
        ValueError: as ``kangaroo_jax.load``.
    """
    return kangaroo_jax.load(args.model, adapter=args.adapter, dtype=args.dtype)


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add the options that every way of decoding has; ``decoding`` reads them."""
    add = parser.add_argument
    add("--max-new-tokens", type=int, metavar="N", default=128, help="token budget (default: %(default)s)")
    add("--gamma", type=int, metavar="N", help="most tokens drafted in a round (default: the adapter's)")
    add("--eta", type=float, metavar="P", help="confidence below which drafting stops (default: the adapter's)")


def decoding(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``kangaroo_jax.generate`` that the options of ``add_decoding`` stand for."""
    return {"max_new_tokens": args.max_new_tokens, "gamma": args.gamma, "eta": args.eta}
