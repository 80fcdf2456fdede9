"""The options that name a model and its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from kangaroo_jax.cli import common_options as options


def test_the_exit_layer_reaches_the_adapter(tiny_model: Path) -> None:
    parser = options.new_parser("", None)
    options.add_model(parser)
    argv = ["--model", str(tiny_model), "--exit-layer"]
    params = options.load(parser.parse_args([*argv, "1"]))
    assert params.draft is not None and params.draft.exit_layer == 1
    with pytest.raises(ValueError, match="exit_layer 1, and exit_layer 2 is asked for"):
        options.load(parser.parse_args([*argv, "2"]))
