"""The measurements run and print their lines; times are not asserted."""

from __future__ import annotations

from typing import Any

import pytest

from bench import generation


def test_ratios_are_of_neighbouring_runs() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("b", "a", "c")}
    ratios = generation.paired(calls, 2)
    assert ratios.pop("seconds") >= 0 and set(ratios) == {"a", "b", "c"} and ratios["b"] == 1
    assert order == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]  # the first three unmeasured


def test_a_part_prints_its_lines(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "read_prompts", lambda: [{"name": "one", "prompt": "def f(x):"}])
    lines = list(generation.PARTS["stream"](tiny, 1))
    assert len(lines) >= 3 and all(" x " in line for line in lines)


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        generation.main(["speed"])
    assert "unknown part speed; choose from batch" in capsys.readouterr().err
