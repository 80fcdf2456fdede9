"""Versions in records: this package's is that of the code that runs, installed or not."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np

from kangaroo_jax.version import VERSION, versions

ROOT = Path(__file__).resolve().parents[1]


def test_both_names_are_of_the_code_that_runs_and_absent_packages_are_said_to_be() -> None:
    found = versions(("kangaroo-jax", "kangaroo_jax", "numpy", "no-such-package"))
    assert found["kangaroo-jax"] == found["kangaroo_jax"] == VERSION and found["numpy"] == np.__version__
    assert found["no-such-package"] == "not installed"


def test_the_code_and_pyproject_agree() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


def test_a_checkout_that_is_not_installed_knows_its_version() -> None:
    """-S leaves out site-packages; the file imports nothing of them."""
    expected = {"kangaroo-jax": VERSION, "jax": "not installed"}
    code = "from version import versions; print(versions(['kangaroo-jax', 'jax']))"
    words = [sys.executable, "-S", "-c", code]
    found = subprocess.run(words, cwd=ROOT / "kangaroo_jax", capture_output=True, text=True, check=True).stdout
    assert found == f"{expected}\n"
