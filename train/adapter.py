"""Train the adapter of a target model: the only part of Kangaroo's draft model that is trained.

The target stays frozen; teacher and student come from one forward pass of it. Killed or stopped, the same command
resumes from the newest checkpoint. ``docs/training.md`` has recipes and their figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from kangaroo_jax import Params
from kangaroo_jax.store import read_config, resolve, save_adapter
from kangaroo_jax.text import load_tokenizer
from train.best import Best
from train.data import Data
from train.decoding import decoding_figures, held_out_prompts
from train.loop import Evaluation, Terminated, fit
from train.loss import distillation_loss
from train.metrics import LOG
from train.options import build_parser, check_against_target, check_numbers, make_optimizer
from train.record import figures_at, provenance
from train.render import show_mask
from train.report import draw
from train.run import Run, prepare, read_data
from train.step import init_state, make_eval_step, make_train_step, place, place_batch


def train(run: Run, args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Train until all steps are done and write the adapter, with the record of its training."""
    loss = distillation_loss(run.config, args.exit_layer)
    optimizer = make_optimizer(args)
    target = run.target if run.mesh else place(run.target)
    first = jax.process_index() == 0
    held, decoded = make_evaluation(loss, target, run), Decoding(run, target, first)
    if first:
        print(_description(run, args))
    origin = provenance(argv)
    state = fit(
        make_train_step(loss, optimizer, args.accumulate, run.mesh),
        init_state(run.adapter, optimizer),
        target,
        run.data.batches,
        args.steps,
        run.workspace,
        save_every=args.save_every,
        keep=args.keep,
        evaluations=[
            Evaluation(args.eval_every, held),
            *([Evaluation(args.decode_every, decoded.evaluate)] if args.decode_every else []),
        ],
        name="adapter",
        mesh=run.mesh,
        max_skipped=args.max_skipped,
        wandb=args.wandb,
        settings=run.settings | origin,
    )
    if not first:
        return
    step, params = decoded.best.read() or (int(state.step), jax.device_get(state.params))
    record = {
        "model": run.name,
        "steps": step,
        "tokens": run.data.seen(step),
        **figures_at(run.workspace / LOG, step),
        **run.settings,
        **origin,
    }
    save_adapter(run.out, run.config, run.draft, params, record)
    shown = [f"{name} {record[name]:.4f}" for name in ("held_out_loss", "compression_rate") if name in record]
    print(f"adapter of step {step} written to {run.out}: {', '.join(shown)}")
    print(f"curves: {draw(run.workspace)}")


def make_evaluation(loss: Callable[..., Any], target: Any, run: Run) -> Callable[[int, Any], dict[str, float]]:
    """Build ``(step, params) -> held-out means`` over a fixed set of batches of held-out data."""
    step_fn = make_eval_step(loss, run.mesh)
    batches = [place_batch(batch, run.mesh) for batch in run.data.held_out_batches()]

    def evaluate(step: int, params: Any) -> dict[str, float]:
        sums = [step_fn(params, target, batch) for batch in batches]
        total = {name: float(sum(part[name] for part in sums)) for name in sums[0]}
        return {f"held_out_{name}": total[name] / total["tokens"] for name in total if name != "tokens"}

    return evaluate


class Decoding:
    """Decodes a few held-out prompts with the adapter as it is, and keeps the best one.

    Attributes:
        best: where the best one is.
    """

    def __init__(self, run: Run, target: Any, writes: bool) -> None:
        self.best = Best(run.workspace / "best", run.config, run.draft)
        self._run, self._writes = run, writes
        # One device decodes; its share of a replicated target is all of it.
        self._target = target if run.mesh else jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, target)
        self._prompts = held_out_prompts(run.data.whole_held_out_batches())

    def evaluate(self, step: int, params: Any) -> dict[str, float]:
        """Return what decoding with these params gave."""
        if not self._writes or not self._prompts:
            return {}
        run, dtype = self._run, self._target["norm"]["scale"].dtype
        host = jax.device_get(params)
        adapter = jax.tree.map(lambda leaf: leaf.astype(dtype), host)
        adapter = place(adapter, run.mesh) if run.mesh else jax.device_put(adapter)
        loaded = Params(self._target, adapter, run.config, run.draft, run.tokenizer, run.name)
        figures = decoding_figures(loaded, self._prompts)
        self.best.offer(step, host, figures)
        return figures


def show(args: argparse.Namespace) -> None:
    """Print rows of training data with the tokens marked whose predictions count; the target is not loaded."""
    check_numbers(args)
    directory = resolve(args.model)
    config = read_config(directory)
    check_against_target(args, config)
    tokenizer = load_tokenizer(directory)
    data = read_data(args, config, tokenizer)
    print(show_mask(data.samples(args.show_mask), tokenizer, colour=sys.stdout.isatty()))
    left_out = f"; {data.bad_rows}" if data.bad_rows.seen else ""
    print(f"{data.tokens.trained:,} of {data.tokens.all:,} tokens are predicted{left_out}")


def main(argv: list[str] | None = None) -> None:
    """Train (or resume) the adapter that the options describe."""
    words = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(words)
    try:
        _join(args)
        if args.show_mask:
            return show(args)
        train(prepare(args), args, words)
    except (FloatingPointError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
    except Terminated:
        print("terminated, all saved; the same command goes on from there", file=sys.stderr)
        raise SystemExit(0) from None


def _join(args: argparse.Namespace) -> None:
    """Join the other processes of a run; before anything else is asked of JAX."""
    if args.coordinator is None:
        if args.processes is not None or args.process is not None:
            raise ValueError("--processes and --process are for several processes; pass --coordinator HOST:PORT, too")
        return
    if args.shard_target > 1:
        raise ValueError(f"--shard-target is {args.shard_target}; over several processes each device holds the target")
    address = None if args.coordinator == "auto" else args.coordinator
    jax.distributed.initialize(address, args.processes, args.process)


def _description(run: Run, args: argparse.Namespace) -> str:
    data: Data = run.data
    lines = [
        f"{args.model}: adapter of {sum(x.size for x in jax.tree.leaves(run.adapter)):,} parameters at exit layer "
        f"{args.exit_layer} of {run.config.num_hidden_layers}; {data.tokens.all:,} tokens of training text, "
        f"{data.tokens.trained:,} of them predicted, {data.held_out.tokens.all:,} held out"
    ]
    return "\n".join([*lines, *([str(data.bad_rows)] if data.bad_rows.counts else [])])


if __name__ == "__main__":
    main()
