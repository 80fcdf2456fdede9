"""The README's notebook snippet is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_snippet_runs_and_its_claim_holds(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), scope)
    printed = capsys.readouterr().out
    assert str(scope["out"]) in printed and len(scope["out"].token_ids) > 1
