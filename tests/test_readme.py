"""The README's snippets are run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_snippets_run_and_their_claims_hold(capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(snippets) == 4
    scope: dict[str, object] = {}
    for code in snippets:
        exec(compile(code, str(README), "exec"), scope)
    printed, chat, outs = capsys.readouterr().out, scope["chat"], scope["outs"]
    assert isinstance(outs, list) and len({out.token_ids for out in outs}) == 4
    assert [message["role"] for message in chat.history] == ["user", "assistant"] * 2  # type: ignore[attr-defined]
    assert chat.history[-1]["content"] in printed  # type: ignore[attr-defined]
