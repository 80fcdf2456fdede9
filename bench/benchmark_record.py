"""How numbers came about: versions, device, commit, and short names of weights and files."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import kangaroo_jax
from bench.interleave import WARM_UPS
from bench.methods import METHODS, Ready
from kangaroo_jax.version import versions
from workshop.provenance import commit, weights_digest


def new_record(
    params: kangaroo_jax.Params,
    methods: Mapping[str, Ready],
    questions: Path,
    *,
    max_new_tokens: int,
    repeats: int,
    command: Sequence[str],
) -> dict[str, Any]:
    """Return what ``record.json`` holds at the beginning of a benchmark (``bench.folder``).

    Args:
        params: the model.
        methods: ready to run, by name.
        questions: the file of questions.
        max_new_tokens: token budget of a turn.
        repeats: runs.
        command: the command's module and arguments.
    """
    name = Path(params.name).resolve().name
    return {
        "command": shlex.join(["python", "-m", *command]),
        "identity": {
            "model": name,
            "dtype": params.dtype.name,
            "kernels": params.kernels,
            "weights": weights_digest((params.target, params.adapter), shapes=True),
            "device": jax.local_devices()[0].device_kind,
            "versions": versions(("kangaroo-jax", "jax", "jaxlib")),
            "questions": questions.name,
            "questions_sha256": hashlib.sha256(questions.read_bytes()).hexdigest(),
            "chat": params.chats,
            "max_new_tokens": max_new_tokens,
            "repeats": repeats,
            "warm_ups": WARM_UPS,
            "methods": {key: {**ready.settings, "weights": _own_digest(ready)} for key, ready in methods.items()},
        },
        "methods": {key: described(f"{name}-{key.replace(', ', '-')}", ready) for key, ready in methods.items()},
        "costs": None,
        "commits": [found] if (found := commit()) else [],
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "compile_seconds": {},
    }


def described(model_id: str, ready: Ready) -> dict[str, Any]:
    """Return what a record says of a method; ``model_id`` is what its answer files are called."""
    method, spec = METHODS[ready.name], ready.spec
    return {
        "about": method.about,
        "source": method.source,
        "settings": dict(ready.settings),
        "gamma": spec.gamma,
        "exit_layer": spec.drafter.exit_layer,
        "rows": spec.rows if spec.gamma else 1,
        "added_parameters": ready.added_parameters,
        "model_id": model_id,
    }


def _own_digest(ready: Ready) -> str:
    """Return a short name of what a method drafts with; adapters of an ablation are not those of the model itself."""
    adapter = ready.params.adapter if ready.spec.drafter.reads_adapter else None
    return weights_digest((ready.weights, adapter), shapes=True)
