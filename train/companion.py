"""What recipes of other methods' models share: options, target and text, folders, and the run of ``training_loop.fit``.

``bench`` compares Kangaroo with methods that need something trained for the target: Medusa's heads, a small draft
model. Each has a command of its own (``train.medusa``, ``train.draft_model``), and is kept in the home folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import companion, fingerprint, read_config, resolve
from kangaroo_jax.text import load_tokenizer
from train.adapter_options import check_data
from train.batches import Shape
from train.checkpoints import GOES_ON
from train.data import Data
from train.evaluation import held_out_evaluation
from train.preparation import read_data
from train.run_log import LOG
from train.step import init_state, make_train_step, place
from train.training_loop import Evaluation, fit
from train.workspace import PACKAGES, figures_at, held, source_name, workspace_of
from workshop.command import check_counts, exit_status
from workshop.places import check_folder
from workshop.provenance import provenance


@dataclasses.dataclass(frozen=True)
class Job:
    """A checked recipe before its first step.

    Attributes:
        config: the target's shape.
        directory: where the target lies.
        data: training and held-out text, in the target's tokens.
        out: where the result goes.
        options: those of the command.
        origin: command, versions and commit, for the record.
        vocabulary: ids of the tokens that can be drafted, ascending; None is all.
    """

    config: LlamaConfig
    directory: Path
    data: Data
    out: Path
    options: argparse.Namespace
    origin: Mapping[str, Any]
    vocabulary: np.ndarray | None

    @property
    def places(self) -> np.ndarray | None:
        """Place of every token of the target in ``vocabulary``, -1 where it is not there; None where all are."""
        if self.vocabulary is None:
            return None
        places = np.full(self.config.vocab_size, -1, np.int32)
        places[self.vocabulary] = np.arange(len(self.vocabulary))
        return places

    @property
    def workspace(self) -> Path:
        """Folder of checkpoints and log."""
        return workspace_of(self.out)


def build_parser(module: str, about: str, what: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return the options that the recipes share.

    Args:
        module: the command, ``python -m MODULE``.
        about: what it does.
        what: name of the result's folder, as for ``store.companion``.
        defaults: of steps, batch_size, length and learning_rate, for joey.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Stopped or killed, the same command goes on from the newest checkpoint. Examples:\n\n"
        f"  python -m {module}                                 # for joey, where bench looks for it\n"
        f"  python -m {module} --steps 20 --out runs/try       # a try\n"
        f"  python -m {module} --model DIR --data FOLDER       # for another model",
    )
    add = parser.add_argument
    add("--model", default="joey", help="target: joey, an alias, or a model's directory (default: %(default)s)")
    add("--data", nargs="+", metavar="PATH", help="text or conversations (default: for joey, the standard library)")
    add("--out", type=Path, help=f"folder of the result (default: bench/MODEL/{what} in $KANGAROO_HOME)")
    for name, help_text in (
        ("steps", "optimiser steps"),
        ("batch_size", "windows or conversations per step, over all devices"),
        ("length", "tokens of a window, and of the longest conversation"),
    ):
        add(f"--{name.replace('_', '-')}", type=int, default=defaults[name], help=f"{help_text} (default: %(default)s)")
    vocabulary = "tokens that can be drafted: the commonest ones of the text (default: all)"
    add("--vocabulary", type=int, metavar="N", help=vocabulary)
    rate = "peak of the learning rate"
    add("--learning-rate", type=float, default=defaults["learning_rate"], help=f"{rate} (default: %(default)s)")
    add("--seed", type=int, default=0, help="of initialisation and windows (default: %(default)s)")
    add("--save-every", type=int, default=100, help="steps between checkpoints (default: %(default)s)")
    add("--eval-every", type=int, default=200, help="steps between validations (default: %(default)s)")
    parser.set_defaults(mask="reply", chat_template=None, data_rows=None, what=what, module=module)
    return parser


def prepare(args: argparse.Namespace, argv: Sequence[str], marker: str) -> Job:
    """Check the options and read the text; the target's weights are not loaded.

    Args:
        args: from ``build_parser``.
        argv: the words they were made from.
        marker: a file that a result has, by which an older one is told from other things.

    Raises:
        ValueError: in one line, if something asked for cannot be.
    """
    check_counts(args, "steps", "batch_size", "length", "save_every", "eval_every")
    if not 0 < args.learning_rate < float("inf"):
        raise ValueError(f"--learning-rate is {args.learning_rate}; it must be above 0, and finite")
    check_data(args)
    directory = resolve(args.model)
    config = read_config(directory)
    if args.length > config.max_position_embeddings:
        raise ValueError(
            f"--length is {args.length}; the target has {config.max_position_embeddings} positions at most"
        )
    Shape(args.batch_size, args.length, args.seed)
    if args.batch_size % jax.local_device_count():
        raise ValueError(
            f"--batch-size is {args.batch_size}; use a multiple of {jax.local_device_count()}, the devices"
        )
    out = (args.out or companion(args.model, args.what)).absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / marker).is_file()):
        raise ValueError(f"--out {out} holds something else than an earlier result; pass another folder")
    data = read_data(args, config, load_tokenizer(directory, config.vocab_size))
    origin = provenance(args.module, argv, PACKAGES)
    job = Job(config, directory, data, out, args, origin, _commonest(data, args.vocabulary, config.vocab_size))
    check_folder(job.workspace)
    return job


def _commonest(data: Data, number: int | None, vocab_size: int) -> np.ndarray | None:
    """Return the ids of the tokens that occur most in an epoch, ascending; None for all of them.

    Raises:
        ValueError: if there are not so many.
    """
    if number is None or number == vocab_size:
        return None
    if not 1 <= number <= vocab_size:
        raise ValueError(f"--vocabulary is {number}; it must be 1 to {vocab_size}, the target's tokens")
    return data.most_frequent(number, vocab_size)


def train(
    job: Job,
    loss: Callable[..., Any],
    params: Any,
    frozen: Any,
    optimizer: optax.GradientTransformation,
    settings: Mapping[str, Any],
    write: Callable[[Any, dict[str, Any]], None],
) -> None:
    """Train until all steps are done, and write the result with the record of its training.

    Args:
        job: from ``prepare``.
        loss: for ``train.step.make_train_step``.
        params: fp32 params to start from.
        frozen: what the loss reads beside them.
        optimizer: of all the steps.
        settings: what a resumed run must share with the one it resumes, beside the common options.
        write: takes trained params and a record.

    Raises:
        ValueError: if the workspace holds another run.
    """
    args, steps = job.options, job.options.steps
    common = ("steps", "batch_size", "length", "learning_rate", "seed", "vocabulary")
    settings = {
        "target": fingerprint(job.config),
        "data": [source_name(name) for name in args.data] if args.data else ["standard library"],
        "text": job.data.digest,
        **{name: getattr(args, name) for name in common},
        **settings,
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    with held(job.workspace, settings):
        print(
            f"{args.model}: {args.what} of {size:,} parameters; {steps:,} steps, "
            f"{steps / job.data.epoch_steps:.2g} epochs of {job.data.tokens.all:,} tokens"
        )
        if job.data.bad_rows.counts:
            print(job.data.bad_rows)
        frozen = place(frozen)
        state = fit(
            make_train_step(loss, optimizer),
            init_state(params, optimizer),
            frozen,
            job.data.batches,
            steps,
            job.workspace,
            save_every=args.save_every,
            keep=1,
            evaluations=[Evaluation(args.eval_every, held_out_evaluation(loss, frozen, job.data))],
            name=args.what,
        )
        figures = figures_at(job.workspace / LOG, steps)
        write(jax.device_get(state.params), {"tokens": job.data.seen(steps), **figures, **settings, **job.origin})
    print(f"written to {job.out}")


def ahead_sums(
    logits: Float[Array, "B T V"],
    tokens: Int[Array, "B T"],
    counts: Bool[Array, "B T"],
    ahead: int,
    places: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the sums of cross-entropy (nats) and of hits of predictions of the token ``ahead`` places on.

    Args:
        logits: of every position.
        tokens: the text.
        counts: positions whose prediction counts; not the last ``ahead`` of a row.
        ahead: 1 is the next token.
        places: of ``Job``. Where the right token has no place, it is no hit, and there is nothing to learn.
    """
    scores, right = logits[:, :-ahead].astype(jnp.float32), tokens[:, ahead:]
    counts = counts[:, :-ahead]
    if places is not None:
        right = jnp.asarray(places)[right]
        counts &= right >= 0
    each = optax.softmax_cross_entropy_with_integer_labels(scores, right)
    # Whether nothing is above the right one, without argmax, which XLA does not vectorise on a CPU.
    hit = jnp.take_along_axis(scores, right[:, :, None], axis=-1)[..., 0] >= scores.max(-1)
    return jnp.sum(each, where=counts), jnp.sum(hit.astype(jnp.float32), where=counts)


def counted(mask: Bool[Array, "B T"], ahead: int) -> Bool[Array, "B T"]:
    """Return at which positions all of the next ``ahead`` tokens are there and are to be predicted.

    With False at the end of a text (E), and two tokens ahead::

        tokens   a b E c d e
        mask     x x . x x x
        counted  x . . x . .
    """
    length = mask.shape[1] - ahead
    whole = mask[:, :length]
    for shift in range(1, ahead):
        whole &= mask[:, shift : shift + length]
    return jnp.pad(whole, ((0, 0), (0, ahead)))


def run(work: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> int:
    """Run a command and return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    return exit_status(lambda: work(words), afterwards=GOES_ON)
