"""What a run of ``train.adapter`` keeps beside its checkpoints, so that it is never mixed up with another run."""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kangaroo_jax.files import read_json, write_json
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import fingerprint, system_error
from train.best import BEST
from train.checkpoints import CHECKPOINTS, check_format
from train.run_log import SEEN, read_log
from workshop.journal import check_same
from workshop.places import claimed
from workshop.provenance import weights_digest

_SETTINGS = "settings.json"
_ANEW = "pass another --out, or delete that folder to start anew"
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "kangaroo-jax")
"""Those whose versions a record of training has."""
_PASSING = (
    "tokens",
    "grad_norm",
    "skipped",
    "tokens_per_second",
    "learning_rate",
    SEEN,
)  # Of a step, not of the adapter.


def workspace_of(out: Path) -> Path:
    """Return the folder of checkpoints, log and settings: beside the result, which is replaced as a whole."""
    path = out.absolute()
    return path.with_name(f"{path.name}-training")


def run_settings(args: argparse.Namespace, config: LlamaConfig, target: Any) -> dict[str, Any]:
    """Return what decides the course of a run: target, text and options; more steps may be asked for later."""
    names = (
        "gamma",
        "eta",
        "batch_size",
        "length",
        "learning_rate",
        "warmup",
        "weight_decay",
        "clip_value",
        "clip_norm",
        "schedule",
        "seed",
        "mask",
        "data_rows",
        "optimizer",
        "kv_heads",
        "mlp_width",
        "draft_vocabulary",
        "final_states",
    )
    return {
        "target": fingerprint(config),
        "target_weights": weights_digest(target),
        "data": [source_name(name) for name in args.data] if args.data else ["standard library"],
        "chat_template": args.chat_template.resolve().name if args.chat_template else None,
        "init_adapter": args.init_adapter.resolve().name if args.init_adapter else None,
        "dtype": target["norm"]["scale"].dtype.name,
        "betas": list(args.betas),
        "exit_layer": args.exit_layer[0] if len(args.exit_layer) == 1 else list(args.exit_layer),
        "adapter": args.adapter[0] if len(args.adapter) == 1 else list(args.adapter),
        **{name: getattr(args, name) for name in names},
    }


def source_name(name: str) -> str:
    """Return what a record calls a source of data: its name without the folders, or a hub id."""
    path = Path(name)
    return path.resolve().name if path.exists() else name


def text_digest(texts: Iterable[np.ndarray]) -> str:
    """Return a short name of the tokens of the training text: other text under the same name is another run."""
    digest = hashlib.sha256()
    for tokens in texts:
        digest.update(np.asarray(tokens).tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def held(workspace: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Hold a run's workspace while the block trains in it, so that no other run and no other process writes there.

    Only the first of several processes writes, and holds it.

    Raises:
        ValueError: if it is of another run, in use, or cannot be made.
        OSError: in one line, if the block cannot write: where, why, and from which step the same command goes on.
    """
    if jax.process_index():
        yield
        return
    try:
        with claimed(workspace, "trains in"):
            _remove_leftovers(workspace)
            _check_same_run(workspace, settings)
            write_json(workspace / _SETTINGS, settings)
            yield
    except ValueError:  # It says in its own words what is wrong.
        raise
    except Exception as error:
        if (reason := system_error(error)) is None:
            raise
        raise OSError(_refusal(workspace, reason)) from error


def _refusal(workspace: Path, reason: OSError) -> str:
    """Return what to say of a write that the system refused."""
    steps = _steps(workspace)
    if reason.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some"
    elif reason.errno == errno.EFBIG:
        fix = "raise the limit (ulimit -f)"
    else:
        fix = "make it writable, or pass another --out" if not steps else "make it writable"
    then = f"goes on from step {max(steps)}" if steps else "starts anew"
    where = reason.filename or workspace
    return f"{where} cannot be written: {str(reason.strerror).lower()}; {fix}, and the same command {then}"


def _steps(workspace: Path) -> list[int]:
    """Return the steps of the checkpoints; Orbax gives one its name when all of it is written."""
    return [int(item.name) for item in (workspace / CHECKPOINTS).glob("*") if item.name.isdigit()]


def _check_same_run(workspace: Path, settings: dict[str, Any]) -> None:
    if not _steps(workspace):
        shutil.rmtree(workspace / BEST, ignore_errors=True)  # Of a run that was killed before its first checkpoint.
        return
    # At first there was nothing else.
    found = {"optimizer": "adamw", "final_states": False, **read_json(workspace / _SETTINGS, _ANEW)}
    check_format(workspace / CHECKPOINTS)
    check_same(f"{workspace} holds a run", found, settings, settings, _ANEW)


def _remove_leftovers(workspace: Path) -> None:
    """Remove what killed processes were about to write: files and folders are renamed once they are whole."""
    for item in [*workspace.glob(".?*-*"), *(workspace / BEST).glob(".?*-*")]:
        shutil.rmtree(item) if item.is_dir() else item.unlink()


def figures_at(log: Path, step: int) -> dict[str, float]:
    """Return what is known of a step: the newest training, held-out and decoding figures in the log up to it."""
    newest = {name: [value for at, value in curve if at <= step] for name, curve in read_log(log).items()}
    return {name: values[-1] for name, values in newest.items() if values and name not in _PASSING}
