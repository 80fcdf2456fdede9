"""The options of ``python -m train.adapter``: the parser, their checks, and the optimiser they describe."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import jax
import optax

from kangaroo_jax.checks import INT32
from kangaroo_jax.model import ADAPTER_KINDS, LlamaConfig
from kangaroo_jax.store import EMBEDDED
from train.optimizer import OPTIMIZERS, SCHEDULES, adapter_optimizer
from train.recipe import KIND
from workshop.command import check_numbers

_SUMMARY = "Train the adapter of a target model; the target stays frozen."
_DETAILS = "Stopped or killed, the same command goes on from the newest checkpoint. docs/training.md has recipes."


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(prog="python -m train.adapter", description=_SUMMARY, epilog=_DETAILS)
    add = parser.add_argument
    add("--model", required=True, help="target: joey, an alias, a Hugging Face or converted directory, or a GGUF file")
    data = "folders (.py .txt .md .jsonl .parquet), files (.json, too) or hub ids OWNER/NAME[:SPLIT]; tables have text"
    add("--data", nargs="+", metavar="PATH", help=f"{data} or conversations (default: for joey, the standard library)")
    add("--data-rows", type=int, metavar="N", help="read no more rows of each table (default: all)")
    add("--chat-template", type=Path, metavar="FILE", help="Jinja, for conversations (default: the model's own)")
    masks = "predictions of conversations that count: of replies, or as the authors' code has it, two positions late"
    add("--mask", choices=("reply", "upstream"), default="reply", help=f"{masks} (default: %(default)s)")
    show = "print N rows of each kind with the tokens marked whose predictions count, and train nothing"
    add("--show-mask", type=int, default=0, metavar="N", help=f"{show} (default: %(default)s)")
    out = "folder of the adapter, or of one folder for each of several"
    where = "adapter or adapters in the model's folder; for joey and files in runs"
    add("--out", type=Path, help=f"{out} (default: {where})")
    add("--init-adapter", type=Path, metavar="DIR", help="start from this adapter (default: random)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the target (default: float32 on a CPU, else bfloat16)")
    layer = "target layers the draft model shares; several, as in 1,2,3, train an adapter each in one run"
    sixteenth = "a sixteenth of the target's, rounded up: 2 of 32, 3 of 40; joey 2"
    add("--exit-layer", "--exit-layers", type=_layers, metavar="L[,L...]", help=f"{layer} (default: {sixteenth})")
    kinds = f"what the adapter is made of: {', '.join(ADAPTER_KINDS)}; several, with commas, are trained in one run"
    add("--adapter", type=_kinds, default=(KIND,), metavar="KIND[,KIND...]", help=f"{kinds} (default: {KIND})")
    add("--kv-heads", type=int, metavar="N", help="key/value heads of the adapter (default: as many as the target)")
    add("--mlp-width", type=int, metavar="N", help="width of the adapter's MLP, if it has one (default: the target's)")
    only = "draft none but the N tokens that are trained most often, and EOS: the head then costs less"
    add("--draft-vocabulary", type=int, metavar="N", help=f"{only} (default: the whole vocabulary)")
    finals = "let the adapter read the target's final state of the token before, too (default: the exit layer's alone)"
    add("--final-states", action="store_true", help=finals)
    add("--gamma", type=int, help="draft length stored in the adapter's config (default: 6; joey 7)")
    add("--eta", type=float, help="confidence stored in the adapter's config (default: 0.6; joey 0.2)")
    epochs = "passes over the data; over plain text, as many random windows as have its number of tokens"
    add("--epochs", type=float, help=f"{epochs} (default: 10; joey: see --steps)")
    add("--steps", type=int, help="optimiser steps, instead of --epochs (default: what the epochs take; joey 1500)")
    add("--batch-size", type=int, help="rows per step, over all devices (default: 32; joey 8)")
    parts = "parts that a device computes its windows in, one after the other, before an update: less memory"
    add("--accumulate", type=int, help=f"{parts} (default: as few as leave 8192 tokens at a time)")
    shard = "devices that share one copy of the target, when it does not fit one; a divisor of all devices"
    add("--shard-target", type=int, default=1, metavar="DEVICES", help=f"{shard} (default: %(default)s)")
    store = "run the target once over all conversations, keep there what training reads of it, and train on that"
    add("--store-features", type=Path, metavar="DIR", help=f"{store} (default: run it in every step)")
    length = "longest window or conversation, in tokens"
    add("--length", type=int, help=f"{length} (default: 2048, or the positions that the target has; joey 512)")
    kinds = "AdamW as the paper, or Muon, in which AdamW keeps the norms"
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help=f"{kinds} (default: %(default)s)")
    add("--learning-rate", type=float, help="peak of the schedule (default: 5e-5; joey 3e-3)")
    add("--schedule", choices=SCHEDULES, default="linear", help="of the rate after the warm-up (default: %(default)s)")
    add("--warmup", type=int, help="steps of linear warm-up (default: 2000, or a tenth of --steps if that is less)")
    add("--weight-decay", type=float, default=0.01, help="of every param, of Muon of matrices (default: %(default)s)")
    clip = "each gradient is clipped to +-this; 0: not"
    add("--clip-value", type=float, default=0.5, help=f"{clip} (default: %(default)s)")
    clip = "gradients are scaled together to this global norm, before --clip-value; 0: not"
    add("--clip-norm", type=float, default=0.0, help=f"{clip} (default: %(default)s)")
    add("--betas", type=float, nargs=2, default=(0.9, 0.95), help="of AdamW (default: 0.9 0.95)")
    add("--seed", type=int, default=0, help="of initialisation and windows (default: %(default)s)")
    skip = "stop after so many batches in a row without a token that counts or with gradients that are not finite"
    add("--max-skipped", type=int, default=20, help=f"{skip} (default: %(default)s)")
    add("--keep", type=int, default=2, help="checkpoints that are kept (default: %(default)s)")
    add("--save-every", type=int, default=200, help="steps between checkpoints (default: %(default)s)")
    add("--eval-every", type=int, default=200, help="steps between validations (default: %(default)s)")
    decode = "steps between decoding a few held-out prompts; the adapter that does it best is kept; 0: never"
    add("--decode-every", type=int, default=500, help=f"{decode} (default: %(default)s)")
    add("--decode-prompts", type=int, default=8, help="held-out prompts decoded for that (default: %(default)s)")
    add(
        "--wandb",
        metavar="PROJECT",
        help="log to Weights & Biases, too (default: log.jsonl and, if installed, TensorBoard only)",
    )
    hosts = "HOST:PORT of the first of several processes, or 'auto' where the cluster says it"
    add("--coordinator", metavar="ADDRESS", help=f"{hosts} (default: this process alone)")
    add("--processes", type=int, help="how many there are (default: the cluster's)")
    add("--process", type=int, help="which of them this is, from 0 (default: the cluster's)")
    return parser


def _layers(text: str) -> tuple[int, ...]:
    """Read "1,2,3"; the order does not matter."""
    try:
        return tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers such as 2 or 1,2,3") from None


def _kinds(text: str) -> tuple[str, ...]:
    """Read "kangaroo,linear"; each once."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in ADAPTER_KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ADAPTER_KINDS)}")
    return names


def make_optimizer(args: argparse.Namespace) -> optax.GradientTransformation:
    """Return the optimiser of one adapter that the options describe; their numbers of steps are known."""
    return adapter_optimizer(
        args.learning_rate,
        args.steps,
        args.warmup,
        kind=args.optimizer,
        schedule=args.schedule,
        betas=tuple(args.betas),
        weight_decay=args.weight_decay,
        clip_value=args.clip_value,
        clip_norm=args.clip_norm,
    )


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError naming the first option whose number makes no sense, what it must be and its value."""
    if min(args.exit_layer) < 1:
        raise ValueError(f"--exit-layer is {','.join(map(str, args.exit_layer))}; it must be at least 1")
    if args.final_states and args.mask == "upstream":
        raise ValueError("--mask upstream is two tokens late, where --final-states expects none; leave one of them out")
    devices = jax.device_count()
    sharers = args.shard_target
    groups = max(devices // max(sharers, 1), 1)
    check_numbers(
        args,
        ("gamma", args.gamma >= 1, "at least 1"),
        ("eta", args.eta >= 0, "at least 0"),
        ("steps", args.steps is None or 1 <= args.steps <= INT32, f"from 1 to {INT32}"),
        ("epochs", args.epochs is None or 0 < args.epochs < math.inf, "above 0 and finite"),
        ("batch_size", args.batch_size >= 1, "at least 1"),
        ("shard_target", sharers >= 1 and devices % sharers == 0, f"a divisor of the {devices} devices"),
        ("batch_size", args.batch_size % groups == 0, f"a multiple of {groups}, the copies of the target on devices"),
        ("accumulate", args.accumulate >= 1, "at least 1"),
        (
            "accumulate",
            args.batch_size // groups % max(args.accumulate, 1) == 0,
            f"a divisor of the {args.batch_size // groups} windows of a copy of the target",
        ),
        ("length", args.length >= 2, "at least 2"),
        ("learning_rate", args.learning_rate > 0, "above 0"),
        ("weight_decay", args.weight_decay >= 0, "at least 0"),
        ("clip_value", args.clip_value >= 0, "at least 0"),
        ("clip_norm", args.clip_norm >= 0, "at least 0"),
        ("betas", all(0 <= beta < 1 for beta in args.betas), "two numbers from 0 to below 1"),
        (
            "store_features",
            args.store_features is None or sharers * jax.process_count() == 1,
            "for one process, and no --shard-target",
        ),
        ("seed", 0 <= args.seed <= INT32, f"from 0 to {INT32}"),
        ("max_skipped", args.max_skipped >= 1, "at least 1"),
        ("save_every", args.save_every >= 1, "at least 1"),
        ("eval_every", args.eval_every >= 1, "at least 1"),
        ("decode_every", args.decode_every >= 0, "at least 0"),
        ("decode_prompts", args.decode_prompts >= 1, "at least 1"),
        ("keep", args.keep >= 1, "at least 1"),
        ("data_rows", args.data_rows is None or args.data_rows >= 1, "at least 1"),
        ("show_mask", args.show_mask >= 0, "at least 0"),
    )


def check_data(args: argparse.Namespace) -> None:
    """Raise ValueError if no data is named for a model that brings none."""
    if not args.data and args.model not in EMBEDDED:
        raise ValueError(f"--data is missing; pass text or conversations for {args.model}: folders, files or hub ids")


def check_against_target(args: argparse.Namespace, config: LlamaConfig) -> None:
    """Raise ValueError if the target has no such exit layer, or no positions for such windows."""
    if (last := max(args.exit_layer)) >= config.num_hidden_layers:
        raise ValueError(
            f"--exit-layer is {last}; the target has {config.num_hidden_layers} layers, so it must be "
            f"from 1 to {config.num_hidden_layers - 1}"
        )
    least = max(len(config.eos_token_id or ()), 1)
    if args.draft_vocabulary is not None and not least <= args.draft_vocabulary <= config.vocab_size:
        raise ValueError(
            f"--draft-vocabulary is {args.draft_vocabulary}; it must be from {least} to {config.vocab_size}"
        )
    if args.length > config.max_position_embeddings:
        raise ValueError(
            f"--length is {args.length}; the target has {config.max_position_embeddings} positions at most"
        )
