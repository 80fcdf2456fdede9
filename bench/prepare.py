"""Make what methods need on a model and is not there yet, by the commands they name."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence

from bench.methods import METHODS
from kangaroo_jax.store import companion


def missing(names: Sequence[str], model: str) -> list[str]:
    """Return the commands that make what these methods need on a model and is not there, each once.

    Args:
        names: keys of ``METHODS``.
        model: what ``kangaroo_jax.load`` takes.
    """
    methods = [METHODS[name] for name in names]
    needed = [one for one in methods if one.companion and not companion(model, one.companion).exists()]
    return list(dict.fromkeys(one.needs.replace("MODEL", shlex.quote(model)) for one in needed))


def prepare(names: Sequence[str], model: str) -> None:
    """Run these commands one after the other; each shows its own progress and goes on where it was stopped.

    Raises:
        ValueError: if one fails.
    """
    for command in missing(names, model):
        print(f"a method needs something that is made once: {command}", file=sys.stderr, flush=True)
        status = subprocess.run([sys.executable, *shlex.split(command)[1:]], stdout=sys.stderr).returncode
        if status in (130, -2):
            raise KeyboardInterrupt
        if status:
            raise ValueError(f"'{command}' ended with status {status}; see above, or leave out the method")
