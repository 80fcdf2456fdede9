"""Train the adapter of a target model: the only part of Kangaroo's draft model that is trained.

The target stays frozen; teacher and student come from one forward pass of it. Killed or stopped, the same command
resumes from the newest checkpoint. ``docs/training.md`` has recipes and their figures.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kangaroo_jax.files import first_line
from kangaroo_jax.model import head_kernel
from kangaroo_jax.store import read_config, resolve, save_adapter
from kangaroo_jax.text import load_tokenizer
from train.adapter_options import build_parser, make_optimizer
from train.best import MEASURE
from train.checkpoints import GOES_ON
from train.data import Data
from train.evaluation import Decoding, figures_of, held_out_evaluation
from train.features import with_features
from train.loss import joint_loss
from train.optimizer import each_alone, learning_rate
from train.preparation import Run, prepare, read_data, settle
from train.render import BETWEEN, show_mask
from train.report import draw
from train.run_log import LOG
from train.step import init_state, make_train_step, place
from train.training_loop import Evaluation, fit
from train.workspace import PACKAGES, figures_at, held
from workshop.command import exit_status
from workshop.provenance import provenance

_REFUSED = 1


def train(run: Run, argv: Sequence[str]) -> None:
    """Train until all steps are done and write every adapter, with the record of its training."""
    args = run.options
    loss = joint_loss(run.config, run.drafts, groups=run.mesh.shape["data"] if run.mesh else 1)
    optimizer = each_alone(make_optimizer(args), run.drafts)
    first = jax.process_index() == 0
    if first:
        print(_description(run))
    data, target, frozen = _frozen(run)
    held = held_out_evaluation(loss, frozen, data, run.mesh, args.accumulate)
    decoding = Decoding(run, target, first)
    origin = provenance("train.adapter", argv, PACKAGES)
    state = fit(
        make_train_step(loss, optimizer, args.accumulate, run.mesh),
        init_state(run.adapters, optimizer),
        frozen,
        data.batches,
        args.steps,
        run.workspace,
        save_every=args.save_every,
        keep=args.keep,
        evaluations=[
            Evaluation(args.eval_every, held),
            *([Evaluation(args.decode_every, decoding.evaluate)] if args.decode_every else []),
        ],
        name="adapter",
        mesh=run.mesh,
        max_skipped=args.max_skipped,
        rate=learning_rate(args.schedule, args.learning_rate, args.steps, args.warmup),
        wandb=args.wandb,
        settings=run.settings | origin,
    )
    if not first:
        return
    last = int(state.step), jax.device_get(state.params)
    for name, best in decoding.best.items():
        step, params = best.read() or (last[0], last[1][name])
        _write(run, name, step, params, origin)
    print(f"curves: {draw(run.workspace)}")


def _frozen(run: Run) -> tuple[Data, Any, Any]:
    """Return the data, the target for decoding, placed, and what a step reads of it."""
    folder, data = run.options.store_features, run.data
    if folder:
        data = with_features(folder, data, run.config, run.target, run.options.exit_layer)
    placed: Any = None
    if not folder or run.options.decode_every:
        placed = run.target if run.mesh else place(run.target)
    if not folder:
        frozen = placed
    else:  # Of all that is computed only what depends on the adapters is left.
        frozen = {} if run.columns else place({"lm_head": {"kernel": head_kernel(run.target)}})
    if run.columns:
        frozen = frozen | {"columns": place(run.columns, run.mesh)}
    return data, placed, frozen


def _write(run: Run, name: str, step: int, params: Any, origin: Mapping[str, Any]) -> None:
    """Write one adapter, in the dtype that it drafts in, and say what it is worth."""
    draft, several = run.drafts[name], len(run.drafts) > 1
    figures = figures_of(name, figures_at(run.workspace / LOG, step), several)
    own = {"exit_layer": draft.exit_layer, "adapter": draft.adapter.kind}
    record = {
        "model": run.name,
        "steps": step,
        "of_steps": run.options.steps,
        "tokens": run.data.seen(step),
        **figures,
        **run.settings,
        **own,
        **origin,
    }
    out = run.out / name if several else run.out
    dtype = run.target["norm"]["scale"].dtype
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)
    save_adapter(out, run.config, draft, run.whole(rounded), record)
    shown = ("held_out_loss", "held_out_acceptance", MEASURE)
    text = ", ".join(f"{key} {figures[key]:.4f}" for key in shown if key in figures)
    print(f"adapter of step {step} written to {out}: {text}")


def show(args: argparse.Namespace) -> None:
    """Print rows of training data with the tokens marked whose predictions count; the target is not loaded."""
    directory = resolve(args.model)
    config = read_config(directory)
    args = settle(args, config)
    tokenizer = load_tokenizer(directory, config.vocab_size)
    data = read_data(args, config, tokenizer)
    colour = sys.stdout.isatty()
    print(BETWEEN.join(show_mask(batch, tokenizer, colour=colour) for batch in data.samples(args.show_mask)))
    left_out = f"; {data.bad_rows}" if data.bad_rows.seen else ""
    print(f"{data.tokens.trained:,} of {data.tokens.all:,} tokens are predicted{left_out}")


def main(argv: list[str] | None = None) -> int:
    """Train (or resume) the adapter that the options describe, and return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(words)

    def work() -> None:
        _join(args)
        if args.show_mask:
            return show(args)
        run = prepare(args)
        with held(run.workspace, run.settings):
            train(run, words)

    status = exit_status(work, afterwards=GOES_ON, explain=_explained, refused=_REFUSED)
    if status == _REFUSED and jax.distributed.is_initialized():
        # One of several processes ends at once: JAX would first wait minutes for the others, which wait for this one.
        sys.stdout.flush()
        os._exit(status)
    return status


def _join(args: argparse.Namespace) -> None:
    """Join the other processes of a run; before anything else is asked of JAX."""
    if args.coordinator is None:
        if args.processes is not None or args.process is not None:
            raise ValueError("--processes and --process are for several processes; pass --coordinator HOST:PORT, too")
        return
    address = None if args.coordinator == "auto" else args.coordinator
    jax.distributed.initialize(address, args.processes, args.process)


def _explained(error: Exception) -> str | None:
    """Return what to say if memory was lacking, or processes could not reach each other; None of other errors.

    JAX raises the latter as more than one type.
    """
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        advice = "a larger --accumulate computes fewer rows at a time, --shard-target spreads the target"
        return f"out of memory ({first_line(error)}); {advice}"
    text = str(error).rpartition("dispatching computation: ")[2]
    if not jax.distributed.is_initialized() or not any(name in text for name in ("Gloo", "NCCL")):
        return None
    advice = "has one of them ended? Stop all, and the same commands go on from the last checkpoint"
    return f"a step over several processes failed ({first_line(RuntimeError(text))}); {advice}"


def _description(run: Run) -> str:
    data: Data = run.data
    sizes = {sum(leaf.size for leaf in jax.tree.leaves(adapter)) for adapter in run.adapters.values()}
    size = " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)}))
    layers = ", ".join(map(str, sorted({draft.exit_layer for draft in run.drafts.values()})))
    what = "adapter" if len(run.drafts) == 1 else f"{len(run.drafts)} adapters"
    steps = run.options.steps
    lines = [
        f"{run.options.model}: {what} of {size} parameters at exit layer {layers} of {run.config.num_hidden_layers}; "
        f"{steps:,} steps, {steps / data.epoch_steps:.2g} epochs of {data.tokens.all:,} tokens of training text, "
        f"{data.tokens.trained:,} of them predicted, {data.held_out.tokens.all:,} held out"
    ]
    return "\n".join([*lines, *([str(data.bad_rows)] if data.bad_rows.counts else [])])


if __name__ == "__main__":
    sys.exit(main())
