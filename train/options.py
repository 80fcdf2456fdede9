"""The options of ``python -m train.adapter``: the parser, their checks, and the optimiser they describe."""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from kangaroo_jax.model import LlamaConfig

_SUMMARY = "Train the adapter of a target model; the target stays frozen."
_DETAILS = "Stopped or killed, the same command goes on from the newest checkpoint. docs/training.md has recipes."


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(prog="python -m train.adapter", description=_SUMMARY, epilog=_DETAILS)
    add = parser.add_argument
    add("--model", required=True, help="target: joey, an alias, or a Hugging Face or converted directory")
    data = "folders (.py .txt .md .jsonl .parquet), files (.json, too) or hub ids OWNER/NAME[:SPLIT]; tables have text"
    add("--data", nargs="+", metavar="PATH", help=f"{data} or conversations (default: for joey, the standard library)")
    add("--data-rows", type=int, metavar="N", help="read no more rows of each table (default: all)")
    add("--chat-template", type=Path, metavar="FILE", help="Jinja, for conversations (default: the model's own)")
    masks = "predictions of conversations that count: of replies, or as the authors' code has it, two positions late"
    add("--mask", choices=("reply", "upstream"), default="reply", help=f"{masks} (default: %(default)s)")
    show = "print N rows with the tokens marked whose predictions count, and train nothing"
    add("--show-mask", type=int, default=0, metavar="N", help=f"{show} (default: %(default)s)")
    add("--out", type=Path, help="folder of the adapter (default: DIRECTORY OF THE MODEL/adapter; runs/joey-adapter)")
    add("--init-adapter", type=Path, metavar="DIR", help="start from this adapter (default: random)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the target (default: float32 on a CPU, else bfloat16)")
    add("--exit-layer", type=int, default=2, help="target layers the draft model shares (default: %(default)s)")
    add("--gamma", type=int, default=6, help="draft length stored in the adapter's config (default: %(default)s)")
    add("--eta", type=float, default=0.6, help="confidence stored in the adapter's config (default: %(default)s)")
    add("--steps", type=int, default=2000, help="optimiser steps (default: %(default)s)")
    add("--batch-size", type=int, default=16, help="rows per step, over all devices (default: %(default)s)")
    add("--length", type=int, default=512, help="tokens of a window or conversation (default: %(default)s)")
    add("--learning-rate", type=float, default=5e-5, help="peak, then linear to zero (default: %(default)s)")
    add("--warmup", type=int, default=100, help="steps of linear warm-up (default: %(default)s)")
    add("--weight-decay", type=float, default=0.01, help="of AdamW (default: %(default)s)")
    add("--clip-value", type=float, default=0.5, help="each gradient is clipped to +-this (default: %(default)s)")
    add("--betas", type=float, nargs=2, default=(0.9, 0.95), help="of AdamW (default: 0.9 0.95)")
    add("--seed", type=int, default=0, help="of initialisation and windows (default: %(default)s)")
    add("--save-every", type=int, default=200, help="steps between checkpoints (default: %(default)s)")
    add("--eval-every", type=int, default=200, help="steps between validations (default: %(default)s)")
    return parser


def make_optimizer(args: argparse.Namespace) -> optax.GradientTransformation:
    """AdamW on gradients clipped by value; linear warm-up to the peak, then linear decay to zero at the last step."""

    def rate(step: jax.Array) -> jax.Array:
        rising = (step + 1) / max(args.warmup, 1)
        return args.learning_rate * jnp.minimum(rising, (args.steps - step) / max(args.steps - args.warmup, 1)).clip(
            0, 1
        )

    b1, b2 = args.betas
    return optax.chain(optax.clip(args.clip_value), optax.adamw(rate, b1, b2, weight_decay=args.weight_decay))


def check_numbers(args: argparse.Namespace) -> None:
    """Raise ValueError naming the first option whose number makes no sense, what it must be and its value."""
    devices = jax.local_device_count()
    rules = (
        ("exit_layer", args.exit_layer >= 1, "at least 1"),
        ("gamma", args.gamma >= 1, "at least 1"),
        ("eta", args.eta >= 0, "at least 0"),
        ("steps", args.steps >= 1, "at least 1"),
        ("batch_size", args.batch_size >= 1, "at least 1"),
        ("batch_size", args.batch_size % devices == 0, f"a multiple of the {devices} devices"),
        ("length", args.length >= 2, "at least 2"),
        ("learning_rate", args.learning_rate > 0, "above 0"),
        ("warmup", 0 <= args.warmup < args.steps, f"from 0 to below --steps ({args.steps})"),
        ("weight_decay", args.weight_decay >= 0, "at least 0"),
        ("clip_value", args.clip_value > 0, "above 0"),
        ("betas", all(0 <= beta < 1 for beta in args.betas), "two numbers from 0 to below 1"),
        ("seed", args.seed >= 0, "at least 0"),
        ("data_rows", args.data_rows is None or args.data_rows >= 1, "at least 1"),
        ("show_mask", args.show_mask >= 0, "at least 0"),
        ("save_every", args.save_every >= 1, "at least 1"),
        ("eval_every", args.eval_every >= 1, "at least 1"),
    )
    for name, holds, expected in rules:
        if not holds:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be {expected}")


def check_against_target(args: argparse.Namespace, config: LlamaConfig) -> None:
    """Raise ValueError if the target has no such exit layer, or no positions for such windows."""
    if args.exit_layer >= config.num_hidden_layers:
        raise ValueError(
            f"--exit-layer is {args.exit_layer}; the target has {config.num_hidden_layers} layers, so it must be "
            f"from 1 to {config.num_hidden_layers - 1}"
        )
    if args.length > config.max_position_embeddings:
        raise ValueError(
            f"--length is {args.length}; the target has {config.max_position_embeddings} positions at most"
        )
