"""bench.peers: runs alternate, ratios are of neighbouring runs with the same ids, and what is missing is named."""

from __future__ import annotations

import importlib.util

import pytest

from bench import peers, transformers_peers

ROWS = [
    {
        "ids": {"plain": [1, 2], "transformers": [1, 2], "lookup": [1, 2]},
        "seconds": {"plain": [1.0, 2.0, 1.0], "transformers": [4.0, 8.0, 8.0], "lookup": [2.0, 2.0, 2.0]},
    },
    {
        "ids": {"plain": [3, 4], "transformers": [3, 4], "lookup": [3]},
        "seconds": {"plain": [1.0], "transformers": [2.0], "lookup": [0.1]},
    },
]


def test_runs_alternate_and_keep_their_ids():
    order: list[str] = []

    def method(name):
        return lambda ids: order.append(name) or [len(ids), len(name)]

    turns: list[int] = []
    rows = peers.race({name: method(name) for name in ("a", "bb")}, [[7], [7, 7]], 2, lambda: turns.append(1))
    assert order == ["a", "bb", "bb", "a", "a", "bb"] * 2 and len(turns) == 4
    assert [row["ids"] for row in rows] == [{"a": [1, 1], "bb": [1, 2]}, {"a": [2, 1], "bb": [2, 2]}]
    assert [row["prompt_tokens"] for row in rows] == [1, 2] and all(len(row["seconds"]["a"]) == 2 for row in rows)


def test_ratios_are_of_neighbours_with_the_same_ids():
    found = peers.summary(ROWS)
    assert found["plain"]["tokens_per_second"] == pytest.approx(4 / 2)
    assert found["plain"]["against_transformers"] == pytest.approx((4 + 2) / 2)  # 4, 4, 8 of one prompt, 2 of the other
    assert found["lookup"] == {
        "tokens_per_second": pytest.approx(3 / 2.1),
        "identical": 1,
        "against_transformers": pytest.approx(4.0),
        "against_plain": pytest.approx(0.5),
    }
    nowhere = peers.summary([ROWS[1]])
    assert nowhere["lookup"]["against_plain"] is None
    figures = dict.fromkeys(("model", "dtype", "max_new_tokens", "repeats", "jax", "jax_device"), "x")
    lines = peers.report(figures | {"peers": "y", "torch_device": "z", "prompts": 1, "methods": nowhere})
    assert lines[-1].split() == ["lookup", "10.0", "-", "-", "0", "of", "1"]


def test_a_converted_checkpoint_alone_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no weights that transformers reads .* pass --hf"):
        transformers_peers.their_directory(str(tmp_path))
    assert transformers_peers.their_directory("joey").name == "joey"


def test_missing_torch_is_named(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    assert peers.main([]) == 2
    assert capsys.readouterr().err == (
        "error: transformers' generate needs torch, and it is not installed: pip install torch\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
        (["--json", "none/there.json"], "--json is none/there.json, and there is no directory none: make it first"),
    ],
)
def test_what_is_typed_is_checked_before_anything_is_loaded(words, message, capsys, monkeypatch):
    monkeypatch.setattr(peers, "measure", lambda args: pytest.fail("measured"))
    assert peers.main(words) == 2
    assert message in capsys.readouterr().err
