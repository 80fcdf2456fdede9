"""bench.peers, live: transformers' three ways of decoding give the ids of ours, on a random checkpoint."""

from __future__ import annotations

import json

import pytest

from bench import peers

pytestmark = pytest.mark.hf


def test_all_methods_give_the_same_ids(tiny_model, tmp_path, capsys):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "peers.json"
    prompts.write_text('{"prompt": "def f(x):"}\n{"prompt": "import os, import os, import"}\n')
    command = f"--model {tiny_model} --prompts {prompts} --max-new-tokens 40 --repeats 1 --dtype float32 --json {out}"
    assert peers.main(command.split()) == 0
    figures = json.loads(out.read_text())
    assert list(figures["methods"]) == [*peers.OURS, *peers.THEIRS]
    assert all(row["identical"] == 2 and row["against_plain"] > 0 for row in figures["methods"].values())
    assert figures["early_exit"] == 1 and all(len(ids) for row in figures["rows"] for ids in row["ids"].values())
    assert len(capsys.readouterr().out.splitlines()) == 3 + 5


def test_another_exit_is_checked(tiny_model, capsys):
    assert peers.main(["--model", str(tiny_model), "--early-exit", "3"]) == 2
    assert "--early-exit is 3; give one of" in capsys.readouterr().err
