"""The help of the commands with many options is whole."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from train import adapter, adapter_options, invent, regenerate


@pytest.mark.parametrize(
    ("main", "build_parser"),
    [
        (adapter.main, adapter_options.build_parser),
        (regenerate.main, regenerate.build_parser),
        (invent.main, invent.build_parser),
    ],
    ids=["adapter", "regenerate", "invent"],
)
def test_help_names_every_option_with_its_default(
    main: Callable[[list[str]], int],
    build_parser: Callable[[], argparse.ArgumentParser],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for action in build_parser()._actions[1:]:
        assert action.option_strings[0] in text and action.help
        assert action.required or "default" in action.help, action.option_strings
