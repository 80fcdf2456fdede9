"""The snippets of README and docs/using.md are run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {"README.md": 1, "docs/using.md": 4}


def test_the_snippets_run_and_their_claims_hold(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    for name, count in FILES.items():
        snippets = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
        assert len(snippets) == count
        for code in snippets:
            exec(compile(code, name, "exec"), scope)
    printed, chat, outs = capsys.readouterr().out, scope["chat"], scope["outs"]
    assert isinstance(outs, list) and len({out.token_ids for out in outs}) == 4
    assert [message["role"] for message in chat.history] == ["user", "assistant"] * 2  # type: ignore[attr-defined]
    assert chat.history[-1]["content"] in printed  # type: ignore[attr-defined]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120
