"""How numbers and weights came about: command, versions, commit and devices, and short names of weights."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kangaroo_jax.version import versions


def provenance(module: str, argv: Sequence[str], packages: Sequence[str]) -> dict[str, Any]:
    """Return what a record says of how something was made, apart from data and options.

    Paths are of one machine: the command has their last parts only.

    Args:
        module: the command, ``python -m MODULE``.
        argv: its words.
        packages: whose versions count.
    """
    local = ("/", "~", ".")
    words = [Path(word).name if word.startswith(local) or Path(word).exists() else word for word in argv]
    return {
        "command": shlex.join(["python", "-m", module, *words]),
        "versions": versions(packages),
        "commit": commit(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def commit() -> str | None:
    """Return the commit of the checkout this runs from, "+" behind it if files differ; None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):  # No git, or a checkout that it will not read.
        return None


def weights_digest(tree: Any, shapes: bool = False) -> str:
    """Return a short name of weights, by their first rows: a fingerprint of a config knows shapes alone.

    Args:
        tree: of arrays.
        shapes: whether shapes count as well, where no config stands beside it.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if shapes:
            digest.update(f"{np.shape(leaf)}".encode())
        digest.update(np.asarray(leaf[:1] if np.ndim(leaf) else leaf).tobytes())
    return digest.hexdigest()[:16]
