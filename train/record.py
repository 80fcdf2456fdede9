"""What a run of ``train.adapter`` keeps beside its checkpoints, so that it is never mixed up with another run."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import fingerprint
from kangaroo_jax.store.files import read_json, write_json
from train.corpus import TokenTexts


def run_settings(args: argparse.Namespace, config: LlamaConfig, target: Any) -> dict[str, Any]:
    """Return what decides the course of a run: target, text and options; more steps may be asked for later."""
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(target):  # The fingerprint knows shapes alone; first rows tell weights apart.
        weights.update(np.asarray(leaf[:1]).tobytes())
    names = (
        "exit_layer",
        "batch_size",
        "length",
        "learning_rate",
        "warmup",
        "weight_decay",
        "clip_value",
        "clip_norm",
        "schedule",
        "seed",
    )
    return {
        "target": fingerprint(config),
        "target_weights": weights.hexdigest()[:16],
        "data": [path.resolve().name for path in args.data] if args.data else ["standard library"],
        "init_adapter": args.init_adapter.resolve().name if args.init_adapter else None,
        "dtype": target["norm"]["scale"].dtype.name,
        "betas": list(args.betas),
        **{name: getattr(args, name) for name in names},
    }


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


def last_training_figures(log: Path) -> dict[str, float]:
    """Return loss, top1 and acceptance of the newest training step in the log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = next(line for line in reversed(lines) if "loss" in line)
    return {name: last[name] for name in ("loss", "top1", "acceptance")}
