"""What a run of ``train.adapter`` keeps beside its checkpoints, so that it is never mixed up with another run."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import fingerprint
from kangaroo_jax.store.files import read_json, write_json
from train.corpus import TokenTexts
from train.metrics import SEEN, read_log

_PASSING = ("tokens", "grad_norm", "skipped", "tokens_per_second", SEEN)  # Of a step, not of the adapter.


def run_settings(args: argparse.Namespace, config: LlamaConfig, target: Any) -> dict[str, Any]:
    """Return what decides the course of a run: target, text and options; more steps may be asked for later."""
    names = (
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


def weights_digest(tree: Any) -> str:
    """Return a short name of weights, by their first rows: a fingerprint of a config knows shapes alone."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf[:1]).tobytes())
    return digest.hexdigest()[:16]


def source_name(name: str) -> str:
    """Return what a record calls a source of data: its name without the folders, or a hub id."""
    path = Path(name)
    return path.resolve().name if path.exists() else name


def text_digest(texts: TokenTexts) -> str:
    """Return a short name of the training text: other text under the same name is another run."""
    digest = hashlib.sha256()
    for tokens in texts.tokens:
        digest.update(np.asarray(tokens).tobytes())
    return digest.hexdigest()[:16]


def claim(workspace: Path, settings: dict[str, Any]) -> None:
    """Write a run's settings into its workspace, or check that the checkpoints found there are of the same run.

    Raises:
        ValueError: if they are of another run.
    """
    path = workspace / "settings.json"
    if path.exists() and any(item.name.isdigit() for item in (workspace / "checkpoints").glob("*")):
        found = read_json(path, "delete that folder to start anew")
        for name, value in settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{workspace} holds a run with {name} {found.get(name)!r}, not {value!r}; "
                    "pass another --out, or delete that folder to start anew"
                )
    write_json(path, settings)


def figures_at(log: Path, step: int) -> dict[str, float]:
    """Return what is known of a step: the newest training, held-out and decoding figures in the log up to it."""
    newest = {name: [value for at, value in curve if at <= step] for name, curve in read_log(log).items()}
    return {name: values[-1] for name, values in newest.items() if values and name not in _PASSING}


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Return what made an adapter, apart from data and options: command, versions, commit.

    Paths are of one machine: the command has their last parts only.
    """
    local = ("/", "~", ".")
    words = [Path(word).name if word.startswith(local) or Path(word).exists() else word for word in argv]
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "kangaroo-jax")
    return {
        "command": shlex.join(["python", "-m", "train.adapter", *words]),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "commit": _commit(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _commit() -> str | None:
    """Return the commit of the sources, with a mark if they have been changed since; None outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
