"""Train the adapter of a target model: the only part of Kangaroo's draft model that is trained.

The target stays frozen; teacher and student come from one forward pass of it. Killed or stopped, the same command
resumes from the newest checkpoint. ``docs/training.md`` has recipes and their figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from kangaroo_jax.model import KangarooConfig, LlamaConfig, init_adapter
from kangaroo_jax.store import EMBEDDED, load_adapter, load_target, read_config, resolve, save_adapter
from kangaroo_jax.text import load_tokenizer
from train.batches import Shape
from train.corpus import split_sources, standard_library
from train.data import Data, load_data, text_data
from train.loop import Evaluation, fit, replicate
from train.loss import distillation_loss
from train.options import build_parser, check_against_target, check_numbers, make_optimizer
from train.record import claim, last_training_figures, run_settings
from train.render import show_mask
from train.step import init_state, make_eval_step, make_train_step, split_devices


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked and loaded training run.

    Attributes:
        config: the target's shape.
        target: the target's frozen params.
        draft: what the adapter's config will say.
        adapter: fp32 params to start from.
        data: training and held-out data.
        out: where the adapter goes.
        settings: what a resumed run must share with the one it resumes.
    """

    config: LlamaConfig
    target: Any
    draft: KangarooConfig
    adapter: Any
    data: Data
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
    config, target, directory = load_target(args.model, args.dtype)
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
    data = read_data(args, config, directory)
    settings |= {"training_tokens": data.tokens.all, "text": data.digest}
    run = Run(config, target, draft, adapter, data, out, settings)
    claim(run.workspace, settings)
    return run


def read_data(args: argparse.Namespace, config: LlamaConfig, directory: Path) -> Data:
    """Return the data that the options name; ``directory`` has the tokenizer.

    Raises:
        ValueError: in one line, if there is none, or none of use.
    """
    if not args.data and args.model not in EMBEDDED:
        raise ValueError(f"--data is missing; pass text or conversations for {args.model}: folders, files or hub ids")
    tokenizer = load_tokenizer(directory)
    shape = Shape(args.batch_size, args.length, args.seed)
    ends = config.eos_token_id or ()
    if not args.data:
        training, held = ([file.data.decode() for file in side] for side in split_sources([standard_library()]))
        return text_data((training, held), tokenizer, shape, ends[0] if ends else None)
    return load_data(
        args.data,
        tokenizer,
        shape,
        model=args.model,
        eos_ids=ends,
        upstream=args.mask == "upstream",
        chat_template=args.chat_template.read_text() if args.chat_template else None,
        limit=args.data_rows,
    )


def show(args: argparse.Namespace) -> None:
    """Print rows of training data with the tokens marked whose predictions count; the target is not loaded."""
    check_numbers(args)
    directory = resolve(args.model)
    config = read_config(directory)
    check_against_target(args, config)
    data = read_data(args, config, directory)
    print(show_mask(data.samples(args.show_mask), load_tokenizer(directory), colour=sys.stdout.isatty()))
    left_out = f"; {data.bad_rows}" if data.bad_rows.seen else ""
    print(f"{data.tokens.trained:,} of {data.tokens.all:,} tokens are predicted{left_out}")


def train(run: Run, args: argparse.Namespace) -> None:
    """Train until all steps are done and write the adapter, with the record of its training."""
    loss = distillation_loss(run.config, args.exit_layer)
    optimizer = make_optimizer(args)
    target = replicate(run.target)
    figures: dict[str, float] = {}
    evaluate = make_evaluation(loss, target, run.data)

    def remember(step: int, params: Any) -> dict[str, float]:
        figures.update(evaluate(params))
        return figures

    print(
        f"{args.model}: adapter of {sum(x.size for x in jax.tree.leaves(run.adapter)):,} parameters at exit layer "
        f"{args.exit_layer} of {run.config.num_hidden_layers}; {run.data.tokens.all:,} tokens of training text, "
        f"{run.data.tokens.trained:,} of them predicted, {run.data.held_out.tokens.all:,} held out"
    )
    if run.data.bad_rows.counts:
        print(run.data.bad_rows)
    state = fit(
        make_train_step(loss, optimizer),
        init_state(run.adapter, optimizer),
        target,
        run.data.batches,
        args.steps,
        run.workspace,
        save_every=args.save_every,
        evaluations=[Evaluation(args.eval_every, remember)],
        name="adapter",
    )
    if not figures:
        remember(int(state.step), state.params)
    steps = int(state.step)
    name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model  # Paths are of one machine.
    record = {
        "model": name,
        "steps": steps,
        "tokens": run.data.seen(steps),
        **last_training_figures(run.workspace / "log.jsonl"),
        **figures,
        **run.settings,
    }
    save_adapter(run.out, run.config, run.draft, jax.device_get(state.params), record)
    print(f"adapter of {steps} steps written to {run.out}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))


def make_evaluation(loss: Callable[..., Any], target: Any, data: Data) -> Callable[[Any], dict[str, float]]:
    """Build ``params -> held-out means`` over a fixed set of batches of held-out data."""
    step = make_eval_step(loss)
    devices = jax.local_device_count()
    batches = [split_devices(batch, devices) for batch in data.held_out_batches()]

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
            if args.show_mask:
                return show(args)
            run = prepare(args)
        except (ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from error
        train(run, args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
