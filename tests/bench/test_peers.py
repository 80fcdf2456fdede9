"""bench.peers: runs alternate, what is missing is named, and what is left then is compared."""

from __future__ import annotations

import importlib.util

import pytest

from bench import peers, transformers_peers

NO_TORCH = "transformers' generate needs torch, and it is not installed: pip install torch"


@pytest.fixture
def without_torch(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))


def test_runs_alternate_and_keep_their_ids():
    order: list[str] = []

    def method(name):
        return lambda ids: order.append(name) or [len(ids), len(name)]

    turns: list[int] = []
    rows = peers.race({name: method(name) for name in ("a", "bb")}, [[7], [7, 7]], 2, lambda: turns.append(1))
    assert order == ["a", "bb", "bb", "a", "a", "bb"] * 2 and len(turns) == 4
    assert [row["ids"] for row in rows] == [{"a": [1, 1], "bb": [1, 2]}, {"a": [2, 1], "bb": [2, 2]}]
    assert [row["prompt_tokens"] for row in rows] == [1, 2] and all(len(row["seconds"]["a"]) == 2 for row in rows)


def test_a_converted_checkpoint_alone_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no weights that transformers reads .* pass --hf"):
        transformers_peers.their_directory(str(tmp_path))
    assert transformers_peers.their_directory("joey").name == "joey"


def test_missing_torch_is_named(without_torch, capsys):
    assert peers.main([]) == 2
    assert capsys.readouterr().err == f"error: {NO_TORCH}\n"


def test_without_torch_there_is_llama_cpp(without_torch):
    args = peers.build_parser().parse_args(["--gguf", "joey.gguf"])
    assert peers.transformers_directory(args) == (None, [NO_TORCH])


def test_what_transformers_cannot_read_is_left_to_llama_cpp(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "check_torch", lambda: None)
    (tmp_path / "config.json").write_text("{}")
    words = ["--model", str(tmp_path), "--gguf", "model.gguf"]
    directory, left_out = peers.transformers_directory(peers.build_parser().parse_args(words))
    assert directory is None and "has no weights that transformers reads" in left_out[0]
    with pytest.raises(ValueError, match="has no weights that transformers reads"):  # --hf is meant.
        peers.transformers_directory(peers.build_parser().parse_args([*words, "--hf", str(tmp_path)]))
    words[1] = "joey"
    assert peers.transformers_directory(peers.build_parser().parse_args(words))[1] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
        (["--gguf", "joey.gguf", "--threads", "0"], "--threads is 0; it must be at least 1"),
        (["--json", "none/there.json"], "--json is none/there.json, and there is no directory none: make it first"),
    ],
)
def test_what_is_typed_is_checked_before_anything_is_loaded(words, message, capsys, monkeypatch):
    monkeypatch.setattr(peers, "measure", lambda args: pytest.fail("measured"))
    assert peers.main(words) == 2
    assert message in capsys.readouterr().err
