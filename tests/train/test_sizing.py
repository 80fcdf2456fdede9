"""The table of what training takes."""

from __future__ import annotations

import pytest

from train.sizing import hours, main


def test_time_follows_from_operations_and_rate() -> None:
    assert hours(8 * 3600 * 1e12, 1e12, 1.0) == pytest.approx(1)
    assert hours(8 * 3600 * 1e12, 1e12, 0.25) == pytest.approx(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rows 0", "--rows is 0; it must be at least 1"),
        ("--share 0", "--share is 0.0; it must be above 0, and 1 at most"),
        ("--shard-target 3", "set XLA_FLAGS=--xla_force_host_platform_device_count=3"),
    ],
)
def test_numbers_without_sense_are_refused(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options.split()) == 1 and message in capsys.readouterr().err


def test_a_line_for_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--targets", "tinyllama", "--rows", "1", "--length", "16", "--tokens", "2e9"])
    header, rule, line = capsys.readouterr().out.splitlines()
    cells = dict(zip(header.split(" | "), line.split(" | "), strict=True))
    assert header.count("|") == rule.count("|") == line.count("|")
    # 1.1 billion params in bf16; 2.1 of 16.8 million each in q and o, and two key/value heads' 0.5 million.
    assert cells["target, GB"] == "2.2" and cells["adapter, GB"] == "0.1"
    parts = [float(cells[name]) for name in ("target, GB", "adapter, GB", "temporary, GB")]
    assert float(cells["sum, GB"]) == pytest.approx(sum(parts), abs=0.11)
    assert float(cells["8 x V100, h"]) > float(cells["8 x A100, h"]) > 0
