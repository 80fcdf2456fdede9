"""Train a small Llama with a target's vocabulary, to draft for it: what ``bench`` compares Kangaroo with."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kangaroo_jax.files import whole_directory, write_json
from kangaroo_jax.model import LlamaConfig, forward, init_params
from kangaroo_jax.store import EMBEDDED, write_hf
from train.companion import ahead_sums, build_parser, counted, prepare, run, train
from train.joey import make_optimizer
from train.loss import Sums

RECORD = "training.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
VICUNA_68M = {"hidden": 768, "layers": 2, "heads": 12, "kv_heads": 12, "intermediate": 3072}
"""Shape of double7/vicuna-68m, Spec-Bench's draft model of Vicuna."""

FOR_JOEY = {"hidden": 192, "layers": 2, "heads": 3, "kv_heads": 1, "intermediate": 512}
"""Two layers as well, 7 % of joey's parameters: a byte-level model of 1 % would know hardly more than letters."""


def draft_config(
    target: LlamaConfig, *, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int
) -> LlamaConfig:
    """Return the shape of a plain Llama with the target's vocabulary, special tokens and context."""
    return LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=target.max_position_embeddings,
        bos_token_id=target.bos_token_id,
        eos_token_id=target.eos_token_id,
    )


def next_token_sums(
    config: LlamaConfig, places: np.ndarray | None = None
) -> Callable[[Any, Any, Any], tuple[jax.Array, Sums]]:
    """Build the plain next-token loss, where the mask says that a prediction counts; for ``train.step``.

    ``places`` is as for ``ahead_sums``.
    """

    def loss(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Sums]:
        counts = counted(batch["mask"], 1)
        entropy, hits = ahead_sums(forward(config, params, batch["tokens"]), batch["tokens"], counts, 1, places)
        return entropy, {"loss": entropy, "top1": hits, "tokens": counts.sum().astype(jnp.float32)}

    return loss


def work(argv: Sequence[str]) -> None:
    """Train (or resume) the model that the options describe."""
    parser = build_parser(
        "train.draft_model", __doc__, "draft_model", steps=1000, batch_size=8, length=512, learning_rate=1e-2
    )
    for name in FOR_JOEY:
        small, large = FOR_JOEY[name], VICUNA_68M[name]
        help_text = f"{name.replace('_', ' ')} of the network (default: {large}; for joey {small})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=help_text)
    args = parser.parse_args(argv)
    usual = FOR_JOEY if args.model in EMBEDDED else VICUNA_68M
    shape = {name: usual[name] if (given := getattr(args, name)) is None else given for name in usual}
    if shape["heads"] < 1 or shape["hidden"] % shape["heads"]:
        raise ValueError(f"--heads is {shape['heads']}; it must divide --hidden ({shape['hidden']})")
    job = prepare(args, argv, RECORD)
    config = draft_config(job.config, **shape)
    params = init_params(config, jax.random.key(args.seed))
    if job.vocabulary is not None:
        params["lm_head"]["kernel"] = params["lm_head"]["kernel"][:, job.vocabulary]
    # joey's own recipe, a tenth of the steps to warm up.
    optimizer = make_optimizer(args.steps, args.learning_rate, args.steps // 10)

    def write(params: Any, record: dict[str, Any]) -> None:
        with whole_directory(job.out, replace=True) as staged:
            if job.vocabulary is not None:  # The logits of the others stay 0: never the highest.
                head = np.zeros((config.hidden_size, config.vocab_size), np.float32)
                head[:, job.vocabulary] = params["lm_head"]["kernel"]
                params["lm_head"]["kernel"] = head
            write_hf(staged, config, params)
            for file in TOKENIZER_FILES:
                if (job.directory / file).is_file():
                    shutil.copy(job.directory / file, staged / file)
            write_json(staged / RECORD, record)
        print(
            f"held-out loss {record['held_out_loss']:.4f} nats a token; next token right: {record['held_out_top1']:.3f}"
        )

    train(job, next_token_sums(config, job.places), params, {}, optimizer, shape, write)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(work, argv)


if __name__ == "__main__":
    sys.exit(main())
