"""Train joey, the embedded model: a small byte-level Llama on the Python standard library's sources.

The plain next-token loss and nothing else: the base model knows nothing of drafting. ``docs/joey.md`` has the
candidates, the figures and the commands that made the shipped checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kangaroo_jax.model import LlamaConfig, forward, init_params
from train.checkpoints import GOES_ON
from train.corpus import BOS, EOS, VOCAB_SIZE, sample_windows
from train.export import export_joey
from train.step import init_state, make_eval_step, make_train_step, split_devices
from train.training_loop import Evaluation, fit
from workshop.command import exit_status
from workshop.held_out import SourceFile, split_sources, standard_library


def joey_config(
    hidden: int = 320, layers: int = 10, heads: int = 4, intermediate: int = 1024, kv_heads: int = 1
) -> LlamaConfig:
    """Return joey's shape, chosen by its cost model (docs/joey.md): one token per byte."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        rms_norm_eps=1e-5,
        max_position_embeddings=1024,
        bos_token_id=BOS,
        eos_token_id=(EOS,),
    )


def next_token_loss(config: LlamaConfig) -> Any:
    """Build the loss of a batch of windows: cross-entropy of every next token, in nats."""

    def loss(params: Any, frozen: Any, windows: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = forward(config, params, windows[:, :-1])
        total = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).sum()
        return total, {"loss": total, "tokens": jnp.float32(windows[:, 1:].size)}

    return loss


def make_optimizer(steps: int, peak: float, warmup: int) -> optax.GradientTransformation:
    """Muon for the layers' matrices, AdamW for embedding, head and norms; linear warm-up, then linear to zero."""
    schedule = optax.schedules.warmup_constant_schedule(0.0, 1.0, warmup)
    scale = optax.join_schedules([schedule, optax.linear_schedule(1.0, 0.0, steps - warmup)], [warmup])

    def matrices(params: Any) -> Any:
        def spec(path: Any, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
            name = jax.tree_util.keystr(path)
            inside = leaf.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
            return optax.contrib.MuonDimensionNumbers(0, 1) if inside else None

        return jax.tree_util.tree_map_with_path(spec, params)

    muon = optax.contrib.muon(
        lambda step: peak * scale(step),
        consistent_rms=0.2,
        weight_decay=0.05,
        adam_b2=0.95,
        adam_learning_rate=lambda step: 0.6 * peak * scale(step),
        muon_weight_dimension_numbers=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def held_out_windows(files: list[SourceFile], rows: int, length: int) -> np.ndarray:
    """Return a fixed batch of windows of held-out text."""
    return next(sample_windows(files, rows, length, seed=1))


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(prog="python -m train.joey", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/joey"), help="folder for checkpoints and log (default: %(default)s)")
    add("--export", type=Path, metavar="DIR", help="write the trained model there in Hugging Face's format")
    add("--text", type=Path, nargs="*", default=[], help="more folders of Python sources beside the standard library")
    add("--steps", type=int, default=970, help="optimiser steps (default: %(default)s)")
    add("--long-steps", type=int, default=60, help="last steps, on windows of full length (default: %(default)s)")
    add("--batch-tokens", type=int, default=4096, help="tokens per step (default: %(default)s)")
    add("--window", type=int, default=256, help="tokens per window before the long steps (default: %(default)s)")
    add("--learning-rate", type=float, default=5e-3, help="peak learning rate of Muon (default: %(default)s)")
    add("--warmup", type=int, default=50, help="steps of linear warm-up (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of initialisation and sampling (default: %(default)s)")
    for name, value in (("hidden", 320), ("layers", 10), ("heads", 4), ("intermediate", 1024), ("kv-heads", 1)):
        add(f"--{name}", type=int, default=value, help=f"{name} of the network (default: %(default)s)")
    return parser


def train(args: argparse.Namespace) -> None:
    """Train (or resume), report the loss on held-out files, and export when asked."""
    config = joey_config(args.hidden, args.layers, args.heads, args.intermediate, args.kv_heads)
    train_files, held_files = split_sources([standard_library(), *args.text])
    optimizer = make_optimizer(args.steps, args.learning_rate, args.warmup)
    loss = next_token_loss(config)
    step, evaluate_batch = make_train_step(loss, optimizer), make_eval_step(loss)

    def batches(window: int) -> Any:
        def stream(first: int) -> Iterator[np.ndarray]:
            rows = max(1, args.batch_tokens // window)
            return sample_windows(train_files, rows, window + 1, seed=args.seed * 1_000_003 + first)

        return stream

    held = held_out_windows(held_files, 64, args.window + 1)

    def evaluate(step: int, params: Any) -> dict[str, float]:
        sums = [evaluate_batch(params, {}, split_devices(part, jax.local_device_count())) for part in np.split(held, 4)]
        return {"held_out_loss": float(sum(s["loss"] for s in sums) / sum(s["tokens"] for s in sums))}

    params = init_params(config, jax.random.key(args.seed))
    print(f"joey: {sum(x.size for x in jax.tree.leaves(params)):,} parameters, {len(train_files)} training files")
    state = init_state(params, optimizer)
    long_from = args.steps - args.long_steps
    for window, until in ((args.window, long_from), (config.max_position_embeddings, args.steps)):
        held_out = Evaluation(200, evaluate)
        state = fit(step, state, {}, batches(window), until, args.out, evaluations=[held_out], name=f"joey {window}")
    if args.export:
        done = export_joey(config, args.out / "checkpoints", args.export)
        print(f"joey of step {done} written to {args.export}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: train(args), afterwards=GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
