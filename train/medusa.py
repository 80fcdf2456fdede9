"""Train Medusa's heads for a target that stays frozen (Medusa-1): what ``bench`` compares Kangaroo with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kangaroo_jax
from kangaroo_jax.baselines import MEDUSA_CONFIG, MEDUSA_HEADS, init_medusa, medusa_states, one_head, save_medusa
from kangaroo_jax.model import LlamaConfig, embed, final_norm, line, run_layers
from kangaroo_jax.store import load_target
from train.companion import ahead_sums, build_parser, counted, prepare, run, train
from train.loss import Sums
from train.optimizer import adapter_optimizer
from workshop.provenance import weights_digest

DECAY = 0.8
"""Weight of head k's loss is ``DECAY ** k`` (Cai et al. 2024, section 3.2.1)."""

# The authors' script for Vicuna-7B (scripts/train_vicuna_7b.sh): AdamW as PyTorch has it, 1e-3 falling along a cosine
# after a warm-up of a tenth, no weight decay.
PEAK, BETAS, WARMUP = 1e-3, (0.9, 0.999), 0.1


def medusa_loss(
    config: LlamaConfig, heads: int, places: np.ndarray | None = None
) -> Callable[[Any, Any, Any], tuple[jax.Array, Sums]]:
    """Build the loss of all heads: ``sum_k 0.8^k * CE(logits_k at t, token t + k + 1)``, k from 1.

    A position counts if the next K + 1 tokens are there, all of one text: the same positions for every head.

    Args:
        config: the target's shape.
        heads: K.
        places: as for ``ahead_sums``.

    Returns:
        ``loss(heads' params, target's params, batch)`` for ``train.step``; ``sums`` has ``loss``, and of each head
        ``headK_loss`` in nats and ``headK_top1``, the share of right first choices.
    """

    def loss(params: Any, target: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Sums]:
        target, tokens = jax.lax.stop_gradient(target), batch["tokens"]
        context = line(jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), None)
        x, _ = run_layers(config, target, embed(target, tokens), context, None, 0, config.num_hidden_layers)
        x = final_norm(config, target, x)
        # They compute in the target's dtype, as they do when they draft.
        rounded = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params)
        counts = counted(batch["mask"], heads + 1)
        sums: Sums = {"loss": jnp.zeros(()), "tokens": counts.sum().astype(jnp.float32)}
        for index, state in enumerate(medusa_states(rounded, x)):
            # The logits of one head exist at a time, in the backward pass too.
            one = jax.checkpoint(partial(_head_sums, index=index, places=places))
            entropy, hits = one(rounded, state, tokens, counts)
            sums |= {f"head{index + 1}_loss": entropy, f"head{index + 1}_top1": hits}
            sums["loss"] += DECAY ** (index + 1) * entropy
        return sums["loss"], sums

    return loss


def _head_sums(
    params: Any, state: Any, tokens: Any, counts: Any, index: int, places: np.ndarray | None
) -> tuple[jax.Array, jax.Array]:
    return ahead_sums(one_head(params, index, state), tokens, counts, index + 2, places)


def work(argv: Sequence[str]) -> None:
    """Train (or resume) the heads that the options describe."""
    parser = build_parser("train.medusa", __doc__, "medusa", steps=300, batch_size=8, length=512, learning_rate=PEAK)
    heads = "tokens beyond the next one that are drafted, a head each"
    parser.add_argument("--heads", type=int, default=MEDUSA_HEADS, help=f"{heads} (default: %(default)s)")
    kinds = "of the target's weights, as for bench.spec_bench (default: float32 on a CPU, else bfloat16)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=kinds)
    args = parser.parse_args(argv)
    if not 1 <= args.heads < args.length - 1:
        raise ValueError(f"--heads is {args.heads}; it must be at least 1, and well below --length ({args.length})")
    job = prepare(args, argv, MEDUSA_CONFIG)
    _, target, _ = load_target(args.model, args.dtype)
    warmup = round(WARMUP * args.steps)
    optimizer = adapter_optimizer(
        args.learning_rate, args.steps, warmup, schedule="cosine", betas=BETAS, weight_decay=0.0, clip_value=0.0
    )
    settings = {"heads": args.heads, "target_weights": weights_digest(target)}

    def write(params: Any, record: dict[str, Any]) -> None:
        save_medusa(job.out, job.config, params, record, job.vocabulary)
        shares = ", ".join(f"head {k} {record[f'held_out_head{k}_top1']:.3f}" for k in range(1, args.heads + 1))
        print(f"held-out loss {record['held_out_loss']:.4f}; first choice right: {shares}")

    params = init_medusa(job.config, args.heads, target, job.vocabulary)
    target = kangaroo_jax.load(args.model, dtype=args.dtype).target  # By native kernels, where there are any.
    train(job, medusa_loss(job.config, args.heads, job.places), params, target, optimizer, settings, write)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(work, argv)


if __name__ == "__main__":
    sys.exit(main())
