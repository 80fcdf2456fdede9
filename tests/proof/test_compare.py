"""The figures of a comparison, from hand-made runs, and the prompts it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kangaroo_jax
from kangaroo_jax import Generation, Stats, generate
from kangaroo_jax.proof.compare import Pair, compare, is_repetition, read_prompts, summarise

FRESH = tuple(range(40))
LOOP = (5, 6, 7) * 14


def run_of(ids: tuple[int, ...], accept_lengths: tuple[int, ...], reason: str = "length") -> Generation:
    each = tuple(1 for _ in accept_lengths)
    costs = (len(ids), accept_lengths, each, each, tuple((0.5,) for _ in each), 3, 3, 1, 0.1, 0.9, 0.0)
    return Generation("text", ids, reason, Stats("kangaroo", 4, 0.5, *costs), ("",) * len(ids))


def pair_of(
    ids: tuple[int, ...] = FRESH,
    plain_ids: tuple[int, ...] | None = None,
    *,
    kangaroo_seconds: tuple[float, ...] = (1.0,),
    plain_seconds: tuple[float, ...] = (2.0,),
    accept_lengths: tuple[int, ...] = (4, 4, 5),
    reason: str = "length",
) -> Pair:
    plain = run_of(ids if plain_ids is None else plain_ids, (1,) * (len(ids) - 1), reason)
    return Pair("name", "prompt", run_of(ids, accept_lengths), plain, kangaroo_seconds, plain_seconds)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (LOOP, True),
        ((9,) * 40, True),
        (FRESH, False),
        ((*range(20), *(9,) * 20), True),  # ends in a blank run
        ((*(9,) * 20, *range(20)), False),  # begins with one, and goes on
        ((*range(30), *range(30)), True),  # all of the second half was there before
        ((*range(65), *range(65)), False),  # one pattern of more than 64
        ((9,) * 15, False),  # too short to tell
        ((9,) * 16, True),
        ((*(9,) * 20, *(9,) * 18, 1, 2), True),  # 90 % of the second half; the 1 and the 2 differ
        ((*(9,) * 20, *(9,) * 17, 1, 2, 3), False),
        ((), False),
    ],
)
def test_what_counts_as_repetition(ids: tuple[int, ...], expected: bool) -> None:
    assert is_repetition(ids) is expected


def test_the_speedup_of_a_pair_is_the_median_of_its_ratios() -> None:
    pair = pair_of(kangaroo_seconds=(1.0, 2.0, 1.0), plain_seconds=(3.0, 2.0, 2.0))
    assert pair.speedup == 2.0  # of 3, 1 and 2; the medians' ratio would be 2 as well, the means' 7 / 4
    assert pair_of(kangaroo_seconds=(1.0, 4.0), plain_seconds=(4.0, 4.0)).speedup == 2.5


def test_identical_is_ids_and_reason() -> None:
    assert pair_of().identical
    assert not pair_of(FRESH, FRESH[:-1]).identical
    assert not pair_of(FRESH, (*FRESH[:-1], 99)).identical
    assert not pair_of(reason="stop").identical


def test_summary() -> None:
    pairs = [
        pair_of(kangaroo_seconds=(1.0, 1.0, 4.0), plain_seconds=(2.0, 2.0, 2.0), accept_lengths=(4, 4)),
        pair_of(kangaroo_seconds=(1.0,) * 3, plain_seconds=(1.0,) * 3, accept_lengths=(1,)),
        pair_of(LOOP, kangaroo_seconds=(0.5,) * 3, plain_seconds=(2.0,) * 3, accept_lengths=(5, 5, 5)),
    ]
    figures = summarise(pairs)
    tokens = 2 * len(FRESH) + len(LOOP)
    assert figures == {
        "plain_tokens_per_second": tokens / (2.0 + 1.0 + 2.0),
        "kangaroo_tokens_per_second": tokens / (1.0 + 1.0 + 0.5),
        "speedup": 2.0,
        "speedup_without_repetition": 1.5,
        "repetitive_prompts": 1,
        "compression_rate": (8 + 1 + 15) / (2 + 1 + 3),
        "identical": True,
        "prompts": 3,
        "new_tokens": tokens,
    }
    assert summarise([*pairs, pair_of(FRESH, FRESH[:-1])])["identical"] is False


def test_summary_when_all_repeats_or_nothing_was_drafted() -> None:
    figures = summarise([pair_of(LOOP)])
    assert (figures["speedup_without_repetition"], figures["repetitive_prompts"]) == (None, 1)
    assert summarise([pair_of((7,), accept_lengths=())])["compression_rate"] == 1.0


def test_runs_are_interleaved_and_all_counted(tiny: kangaroo_jax.Params) -> None:
    ticks: list[None] = []
    prompts = [{"name": "one", "prompt": "def f"}, {"name": "two", "prompt": "class A"}]
    options = {"max_new_tokens": 30, "eta": 0.5}
    pairs = compare(tiny, prompts, repeats=2, tick=lambda: ticks.append(None), **options)  # type: ignore[arg-type]
    assert [pair.name for pair in pairs] == ["one", "two"] and len(ticks) == 4
    for pair, row in zip(pairs, prompts, strict=True):
        assert len(pair.kangaroo_seconds) == len(pair.plain_seconds) == 2
        assert min(*pair.kangaroo_seconds, *pair.plain_seconds) > 0
        assert pair.identical
        # What is measured has been compiled before.
        assert pair.kangaroo.stats.compile_seconds == pair.plain.stats.compile_seconds == 0
        assert (pair.kangaroo.stats.method, pair.plain.stats.method) == ("kangaroo", "plain")
        assert pair.kangaroo.token_ids == generate(tiny, row["prompt"], **options).token_ids  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="repeats is 0; it must be at least 1"):
        compare(tiny, prompts, repeats=0)


def test_built_in_prompts() -> None:
    prompts = read_prompts()
    assert len(prompts) >= 5
    assert all(set(row) == {"name", "prompt"} and row["prompt"].strip() for row in prompts)
    assert len({row["name"] for row in prompts}) == len(prompts)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    text = "one\u2028line \u0085 \f and\nmore"
    rows = [{"prompt": text, "id": 3}, {"prompt": "b", "name": "second"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text(lines[0] + "\n\n" + lines[1], "utf-8")
    assert read_prompts(file) == [{"name": "prompt 1", "prompt": text}, {"name": "second", "prompt": "b"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("holds no prompts", "per line")),
        (b"\n \n", ("holds no prompts", "per line")),
        (b'{"prompt": "a"}\nnot json\n', ("line 2", "expected an object")),
        (b'{"prompt": "a"}\n{"text": "b"}\n', ("line 2", "expected an object")),
        (b'["a"]\n', ("line 1", "expected an object")),
        (b'"a"\n', ("line 1", "expected an object")),
        (b'{"prompt": 5}\n', ("line 1", "expected an object")),
        (b'{"prompt": null}\n', ("line 1", "expected an object")),
        (b"\xff\xfe\x00", ("prompts.jsonl", "UTF-8")),
    ],
)
def test_bad_prompt_files_are_refused_in_one_line(tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_prompts(file)
    message = str(caught.value)
    assert "\n" not in message and str(file) in message and all(word in message for word in words), message


def test_a_missing_prompt_file_is_refused(tmp_path: Path) -> None:
    for path, word in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ValueError, match=word) as caught:
            read_prompts(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
