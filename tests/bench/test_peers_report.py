"""bench.peers_report: ratios are of neighbouring runs with as many tokens, and columns are those of what was run."""

from __future__ import annotations

import pytest

from bench.peers_report import report, summary

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


def test_ratios_are_of_neighbours_with_as_many_tokens():
    found = summary(ROWS)
    assert found["plain"]["tokens_per_second"] == pytest.approx(4 / 2)
    assert found["plain"]["against_transformers"] == pytest.approx((4 + 2) / 2)  # 4, 4, 8 of one prompt, 2 of the other
    assert found["lookup"] == {
        "tokens_per_second": pytest.approx(3 / 2.1),
        "identical": 1,
        "against_transformers": pytest.approx(4.0),
        "against_llama_cpp": None,
        "against_plain": pytest.approx(0.5),
    }


def test_other_ids_are_counted_and_their_time_is_compared():
    row = {"ids": {"plain": [1, 2], "llama.cpp": [1, 3]}, "seconds": {"plain": [1.0], "llama.cpp": [4.0]}}
    found = summary([row])
    assert found["llama.cpp"]["identical"] == 0
    assert (found["llama.cpp"]["against_plain"], found["plain"]["against_llama_cpp"]) == (0.25, 4.0)


@pytest.mark.parametrize(
    ("rows", "left_out", "head", "last"),
    [
        (
            [ROWS[1]],
            [],
            "tokens/s  x transformers  x plain   ids as plain's",
            ["lookup", "10.0", "-", "-", "0", "of", "1"],
        ),
        (
            [{"ids": {"plain": [1], "llama.cpp": [1]}, "seconds": {"plain": [0.004], "llama.cpp": [0.002]}}],
            ["transformers cannot run"],
            "tokens/s  x llama.cpp  x plain   ids as plain's",
            ["llama.cpp", "500", "1.00", "2.00", "1", "of", "1"],
        ),
    ],
)
def test_columns_are_those_of_what_was_run(rows, left_out, head, last):
    figures = dict.fromkeys(("model", "dtype", "max_new_tokens", "repeats", "jax", "jax_device"), "x")
    figures |= {"peers": ["y"], "left_out": left_out, "prompts": 1, "methods": summary(rows)}
    lines = report(figures)
    above = ["jax x on x; y", *(f"left out: {reason}" for reason in left_out), f"{'':24} {head}"]
    assert lines[1 : 1 + len(above)] == above
    assert lines[-1].split() == last
