"""What batches take of a GPU's memory: check_memory's estimate is enough for what the compiled programs take."""

from __future__ import annotations

import pytest

from bench import card_memory

pytestmark = pytest.mark.h200


@pytest.mark.parametrize("shape", ["joey"])
def test_the_estimate_is_enough(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert card_memory.main(["--shape", shape, "--batch", "1", "5", "--slots", "512"]) == 0
    head, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = [cell.strip() for cell in head.strip("|").split("|")]
    assert names[-2:] == ["of h100", "of h200"] and len(rows) == 4
    for row in rows:
        found = dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
        assert 1 <= float(found["estimate / compiled"]) < 3
        assert int(found["of h100"].rstrip("%")) >= int(found["of h200"].rstrip("%"))
