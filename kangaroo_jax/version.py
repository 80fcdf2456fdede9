"""The version of this code, and of what else decides how fast it is."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

VERSION = "0.2.0"
_SELF = ("kangaroo_jax", "kangaroo-jax")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages; of this one, that of the code that runs, which need not be installed.

    Args:
        packages: names as pip has them; one that is not installed is said to be so.
    """
    return {name: VERSION if name in _SELF else _installed(name) for name in packages}


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
