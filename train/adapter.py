"""Train the adapter of a target model: the only part of Kangaroo's draft model that is trained.

The target stays frozen; teacher and student come from one forward pass of it. Killed or stopped, the same command
resumes from the newest checkpoint. ``docs/training.md`` has recipes and their figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kangaroo_jax.model import KangarooConfig, LlamaConfig, init_adapter
from kangaroo_jax.model.sharding import target_sharding
from kangaroo_jax.store import EMBEDDED, load_adapter, load_target, save_adapter
from kangaroo_jax.text import load_tokenizer
from train.corpus import TokenTexts, split_sources, standard_library
from train.data import read_texts, tokenize, window_batch
from train.loop import fit
from train.loss import distillation_loss
from train.options import build_parser, check_against_target, check_numbers, make_optimizer
from train.record import claim, last_training_figures, run_settings, text_digest
from train.step import init_state, make_eval_step, make_train_step, place, place_batch, target_mesh

EVAL_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked and loaded training run.

    Attributes:
        config: the target's shape.
        target: the target's frozen params.
        mesh: the devices that the target is spread over, or None when each has all of it.
        draft: what the adapter's config will say.
        adapter: fp32 params to start from.
        texts: training text.
        held: held-out text.
        out: where the adapter goes.
        settings: what a resumed run must share with the one it resumes.
    """

    config: LlamaConfig
    target: Any
    mesh: Mesh | None
    draft: KangarooConfig
    adapter: Any
    texts: TokenTexts
    held: TokenTexts
    out: Path
    settings: dict[str, Any]

    @property
    def workspace(self) -> Path:
        """Folder of checkpoints, log and settings: beside the adapter, which is replaced as a whole."""
        path = self.out.absolute()
        return path.with_name(path.name + "-training")


def prepare(args: argparse.Namespace) -> Run:
    """Check the options, load target and text, and claim the run's folder.

    Raises:
        ValueError: in one line, if something asked for cannot be.
    """
    check_numbers(args)
    mesh = target_mesh(args.shard_target) if args.shard_target > 1 else None
    config, target, directory = load_target(args.model, args.dtype, target_sharding(mesh) if mesh else None)
    check_against_target(args, config)
    out = args.out or (Path("runs/joey-adapter") if args.model in EMBEDDED else directory / "adapter")
    if out.exists() and not (out / "adapter_config.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"--out {out} holds something else than an adapter; pass another folder")
    draft = KangarooConfig(args.exit_layer, args.gamma, args.eta)
    adapter = init_adapter(config, jax.random.key(args.seed))
    if args.init_adapter:
        other, adapter = load_adapter(args.init_adapter, config, "float32")
        if other.exit_layer != args.exit_layer:
            raise ValueError(
                f"--init-adapter {args.init_adapter} is for exit layer {other.exit_layer}, not {args.exit_layer}; "
                f"pass --exit-layer {other.exit_layer} or another adapter"
            )
    settings = run_settings(args, config, target)
    texts, held = _texts(args, config, directory)
    settings |= {"training_tokens": _count(texts), "text": text_digest(texts)}
    run = Run(config, target, mesh, draft, adapter, texts, held, out, settings)
    claim(run.workspace, settings)
    return run


def train(run: Run, args: argparse.Namespace) -> None:
    """Train until all steps are done and write the adapter, with the record of its training."""
    loss = distillation_loss(run.config, args.exit_layer)
    optimizer = make_optimizer(args)
    target = run.target if run.mesh else place(run.target)
    figures: dict[str, float] = {}
    evaluate = make_evaluation(loss, target, run.held, args.batch_size, args.length, run.mesh)

    def remember(params: Any) -> dict[str, float]:
        figures.update(evaluate(params))
        return figures

    def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
        for step in itertools.count(first):
            yield window_batch(run.texts, args.batch_size, args.length, (args.seed, step))

    print(
        f"{args.model}: adapter of {sum(x.size for x in jax.tree.leaves(run.adapter)):,} parameters at exit layer "
        f"{args.exit_layer} of {run.config.num_hidden_layers}; {_count(run.texts):,} tokens of training text, "
        f"{_count(run.held):,} held out"
    )
    state = fit(
        make_train_step(loss, optimizer, args.accumulate, run.mesh),
        init_state(run.adapter, optimizer),
        target,
        batches,
        args.steps,
        run.workspace,
        save_every=args.save_every,
        eval_every=args.eval_every,
        evaluate=remember,
        name="adapter",
        mesh=run.mesh,
        max_skipped=args.max_skipped,
    )
    if not figures:
        remember(state.params)
    steps = int(state.step)
    name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model  # Paths are of one machine.
    record = {
        "model": name,
        "steps": steps,
        "tokens": steps * args.batch_size * args.length,
        **last_training_figures(run.workspace / "log.jsonl"),
        **figures,
        **run.settings,
    }
    save_adapter(run.out, run.config, run.draft, jax.device_get(state.params), record)
    print(f"adapter of {steps} steps written to {run.out}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))


def make_evaluation(
    loss: Callable[..., Any], target: Any, held: TokenTexts, rows: int, length: int, mesh: Mesh | None = None
) -> Callable[[Any], dict[str, float]]:
    """Build ``params -> held-out means`` over a fixed set of windows of held-out text."""
    step = make_eval_step(loss, mesh)
    batches = [place_batch(window_batch(held, rows, length, (index,)), mesh) for index in range(EVAL_BATCHES)]

    def evaluate(params: Any) -> dict[str, float]:
        sums = [step(params, target, batch) for batch in batches]
        total = {name: float(sum(part[name] for part in sums)) for name in sums[0]}
        return {f"held_out_{name}": total[name] / total["tokens"] for name in total if name != "tokens"}

    return evaluate


def main(argv: list[str] | None = None) -> None:
    """Train (or resume) the adapter that the options describe."""
    args = build_parser().parse_args(argv)
    try:
        try:
            run = prepare(args)
        except (ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from error
        train(run, args)
    except FloatingPointError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def _texts(args: argparse.Namespace, config: LlamaConfig, directory: Path) -> tuple[TokenTexts, TokenTexts]:
    """Return tokenised training and held-out text."""
    if args.data:
        sides = read_texts(args.data)
    elif args.model in EMBEDDED:
        train_files, held_files = split_sources([standard_library()])
        sides = [file.data.decode() for file in train_files], [file.data.decode() for file in held_files]
    else:
        raise ValueError(f"--data is missing; pass text for {args.model}: folders or files")
    tokenizer = load_tokenizer(directory)
    eos = config.eos_token_id[0] if config.eos_token_id else None
    return tokenize(sides[0], tokenizer, eos), tokenize(sides[1], tokenizer, eos)


def _count(texts: TokenTexts) -> int:
    return sum(len(text) for text in texts.tokens)


if __name__ == "__main__":
    main()
