"""verify_lossless: what it reports of texts that agree, of texts made to differ, and of ties."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kangaroo_jax
from kangaroo_jax import Generation
from kangaroo_jax.engine.programs import executables
from kangaroo_jax.model import forward
from kangaroo_jax.proof import lossless
from kangaroo_jax.proof.lossless import LosslessReport, LosslessRow, verify_lossless
from kangaroo_jax.proof.rescore import rescore

PROMPT = "def f(x):"
BUDGET = 20
Change = Callable[[Generation], Generation]


def text_of(params: kangaroo_jax.Params, prompt: str, **options: Any) -> tuple[int, ...]:
    return kangaroo_jax.generate(params, prompt, max_new_tokens=BUDGET, method="plain", **options).token_ids


_forward = jax.jit(forward, static_argnums=0)


def logits_after(params: kangaroo_jax.Params, ids: Sequence[int]) -> np.ndarray:
    """Return the logits in the plainest way: the whole text at once, no cache."""
    padded = np.zeros((1, params.config.max_position_embeddings), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(_forward(params.config, params.target, padded))[0, len(ids) - 1]


def put(index: int, token: int) -> Change:
    """Return a change of one token."""
    return lambda out: dataclasses.replace(out, token_ids=(*out.token_ids[:index], token, *out.token_ids[index + 1 :]))


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Make Kangaroo's results wrong from now on."""

    def install(change: Change) -> None:
        def generate(*args: Any, method: str, **options: Any) -> Generation:
            out = kangaroo_jax.generate(*args, method=method, **options)
            return change(out) if method == "kangaroo" else out

        monkeypatch.setattr(lossless, "generate", generate)

    return install


def check(report: LosslessReport) -> None:
    """Assert what holds of every report, whatever was found."""
    for row in report.rows:
        if row.identical:
            assert row.plain_finish_reason == row.kangaroo_finish_reason
            assert {row.first_difference, row.gap, row.noise, row.tie} == {None}
        elif row.tie:
            assert row.gap is not None and row.noise is not None and abs(row.gap) <= 2 * row.noise
            assert row.plain_token != row.kangaroo_token and row.tokens == (row.first_difference or 0) + 1
    assert report.identical == all(row.identical for row in report.rows)
    assert report.lossless == all(row.identical or row.tie for row in report.rows)
    assert report.ties == [row.tie for row in report.rows].count(True)
    assert report.tokens == sum(row.tokens for row in report.rows)
    assert report.tie_rate == (report.ties / report.tokens if report.tokens else 0)
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict() | {
        "rows": [dataclasses.asdict(row) for row in report.rows]
    }
    assert all(row.name in str(report) for row in report.rows) and report.dtype in str(report)


def test_fp32_is_identical(tiny: kangaroo_jax.Params) -> None:
    ticks: list[None] = []
    prompts: list[Any] = [PROMPT, "import os\n", "x"]
    report = verify_lossless(tiny, prompts, max_new_tokens=BUDGET, tick=lambda: ticks.append(None))
    check(report)
    assert report.identical and report.lossless and len(ticks) == 3
    assert (report.ties, report.tokens, report.tie_rate) == (0, 3 * BUDGET, 0.0)
    assert (report.dtype, report.gamma, report.eta) == ("float32", 5, 0.3)
    assert "identical   yes" in str(report) and "differs at" not in str(report)


def test_where_nothing_differs_nothing_is_scored(tiny: kangaroo_jax.Params, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*args: Any) -> None:
        raise AssertionError("scored without a difference")

    monkeypatch.setattr(lossless, "rescore", unexpected)
    assert verify_lossless(tiny, PROMPT, max_new_tokens=9).identical


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("def f(x):\n    return\t1", "def f(x): return 1"),
        ("x" * 33, "x" * 29 + "..."),
        ("a\x1b[31mb\x00", "a [31mb"),
        (" \n", "(blank)"),
        ([1, 3 + ord("o"), 3 + ord("k")], "ok"),
    ],
)
def test_a_prompt_is_named_by_its_beginning(tiny: kangaroo_jax.Params, prompt: Any, name: str) -> None:
    (row,) = verify_lossless(tiny, [prompt], max_new_tokens=1).rows
    assert row.name == name


def test_gamma_eta_and_names_are_passed_on(tiny: kangaroo_jax.Params) -> None:
    report = verify_lossless(tiny, [PROMPT], max_new_tokens=9, gamma=2, eta=0.9, names=["first"])
    assert (report.gamma, report.eta, report.rows[0].name, report.rows[0].tokens) == (2, 0.9, "first", 9)


@pytest.mark.parametrize("index", [0, 1, 13, BUDGET - 1])
def test_a_wrong_token_is_reported_with_its_gap(tiny: kangaroo_jax.Params, wrong: Any, index: int) -> None:
    plain = text_of(tiny, PROMPT)
    expected = logits_after(tiny, [*tiny.tokenizer.encode(PROMPT), *plain[:index]])
    worst = int(expected.argmin())
    wrong(put(index, worst))
    report = verify_lossless(tiny, PROMPT, max_new_tokens=BUDGET)
    check(report)
    (row,) = report.rows
    assert (report.identical, report.lossless, row.tie, report.ties) == (False, False, False, 0)
    assert (row.first_difference, row.tokens) == (index, index + 1)
    assert (row.plain_token, row.kangaroo_token) == (plain[index], worst)
    assert row.plain_text == tiny.tokenizer.decode([plain[index]])
    assert row.gap == pytest.approx(expected.max() - expected.min(), rel=1e-3)
    assert row.noise is not None and 0 <= row.noise < 1e-3 * (row.gap or 0)
    assert "NO" in str(report) and "differs at" in str(report)


def test_of_several_prompts_one_is_wrong(tiny: kangaroo_jax.Params, wrong: Any) -> None:
    plain = text_of(tiny, PROMPT)
    wrong(lambda out: put(3, (plain[3] + 1) % 256)(out) if out.token_ids == plain else out)
    report = verify_lossless(tiny, ["import os", PROMPT, "class A"], max_new_tokens=BUDGET)
    check(report)
    assert [row.identical for row in report.rows] == [True, False, True]
    assert not report.lossless and report.tokens == BUDGET + 4 + BUDGET


def test_a_text_that_ends_too_soon_is_no_tie(tiny: kangaroo_jax.Params, wrong: Any) -> None:
    wrong(lambda out: dataclasses.replace(out, token_ids=out.token_ids[:7]))
    (row,) = (report := verify_lossless(tiny, PROMPT, max_new_tokens=BUDGET)).rows
    check(report)
    assert (row.identical, row.tie, report.lossless) == (False, False, False)
    assert (row.first_difference, row.kangaroo_token, row.kangaroo_text, row.gap) == (7, None, None, None)
    assert "ends: length" in str(report)


def test_another_finish_reason_alone_is_no_tie(tiny: kangaroo_jax.Params, wrong: Any) -> None:
    wrong(lambda out: dataclasses.replace(out, finish_reason="stop"))
    (row,) = (report := verify_lossless(tiny, PROMPT, max_new_tokens=BUDGET)).rows
    check(report)
    assert (row.identical, row.first_difference, row.tie, report.lossless) == (False, None, None, False)
    assert (row.plain_finish_reason, row.kangaroo_finish_reason) == ("length", "stop")
    assert "ends: stop" in str(report)


@pytest.fixture
def twins(tiny_arrays: kangaroo_jax.Params, as_loaded: Any) -> tuple[kangaroo_jax.Params, int, int]:
    """The tiny model where the LM head cannot tell a token of its text from another one; and the two."""
    first = text_of(tiny_arrays, PROMPT)[5]
    twin = next(token for token in range(first + 1, 259) if token not in text_of(tiny_arrays, PROMPT))
    kernel = tiny_arrays.target["lm_head"]["kernel"]
    kernel = kernel.at[:, twin].set(kernel[:, first])
    changed = tiny_arrays.replace(target=tiny_arrays.target | {"lm_head": {"kernel": kernel}})
    return as_loaded(changed), first, twin


def test_equal_logits_are_a_tie(twins: tuple[kangaroo_jax.Params, int, int], wrong: Any) -> None:
    params, first, twin = twins
    index = text_of(params, PROMPT).index(first)
    wrong(put(index, twin))
    (row,) = (report := verify_lossless(params, PROMPT, max_new_tokens=BUDGET)).rows
    check(report)
    assert (row.identical, row.tie, row.gap, row.first_difference) == (False, True, 0.0, index)
    assert (report.identical, report.lossless, report.ties) == (False, True, 1)
    assert report.tie_rate == 1 / (index + 1)
    assert " tie " in str(report) and "lossless    yes" in str(report) and "1 of 1 differences" in str(report)


def test_equal_logits_that_nobody_would_choose_are_no_tie(
    twins: tuple[kangaroo_jax.Params, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both methods are wrong in the same place: the two tokens are equal, and far below the best."""
    params, first, twin = twins
    plain = text_of(params, PROMPT)
    index = next(i for i, token in enumerate(plain) if token != first)
    chosen = {"plain": first, "kangaroo": twin}

    def generate(*args: Any, method: str, **options: Any) -> Generation:
        return put(index, chosen[method])(kangaroo_jax.generate(*args, method=method, **options))

    monkeypatch.setattr(lossless, "generate", generate)
    (row,) = (report := verify_lossless(params, PROMPT, max_new_tokens=BUDGET)).rows
    assert (row.gap, row.tie, report.lossless) == (0.0, False, False)


def test_differences_at_any_position_share_two_programs(tiny: kangaroo_jax.Params, wrong: Any) -> None:
    plain = text_of(tiny, PROMPT)
    verify_lossless(tiny, PROMPT, max_new_tokens=BUDGET)
    before = executables()
    for index in (2, 5, 11, 17):
        wrong(put(index, (plain[index] + 1) % 256))
        verify_lossless(tiny, PROMPT, max_new_tokens=BUDGET)
    assert executables() <= before + 2


@pytest.mark.parametrize("count", [1, 17, 80])
def test_both_ways_of_scoring_give_the_targets_logits(tiny: kangaroo_jax.Params, count: int) -> None:
    """Over prompts of one block and of several, and new tokens of no, one and many verifications."""
    rng = np.random.default_rng(count)
    for new in (0, 1, 8, 19):
        ids = rng.integers(0, 259, count + new).tolist()
        for found in rescore(tiny, ids[:count], ids[count:], BUDGET, 5, 2):
            assert (found.dtype, found.shape) == (np.float32, (259,))
            np.testing.assert_allclose(found, logits_after(tiny, ids), atol=1e-3, rtol=1e-3)


@pytest.mark.full
def test_bf16_scores_in_bf16_and_all_differences_are_ties(tiny_model: Path) -> None:
    """With XLA, whose bits depend on the rows of a product; tests/kernels has the same without ties."""
    params = kangaroo_jax.load(tiny_model, dtype="bfloat16", kernels="xla")
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, 259, 13).tolist() for _ in range(20)]
    report = verify_lossless(params, prompts, max_new_tokens=80)
    check(report)
    assert report.dtype == "bfloat16" and report.lossless
    # Rounding to 8 bits moves these logits by more than fp32 ever would.
    plain, verified = rescore(params, prompts[0], prompts[1], 80, 5)
    assert 1e-3 < np.abs(verified - plain).max() < 1


ROWS = st.sampled_from(
    [
        LosslessRow("a", True, 9, "length", "length"),
        LosslessRow("b", False, 4, "length", "stop", 3, 5, 2, "x", "", 0.01, 0.02, True),
        LosslessRow("c", False, 4, "stop", "length", 3, 2, 5, "", "\n", 3.0, 0.02, False),
        LosslessRow("d", False, 0, "length", "stop"),
    ]
)


@settings(max_examples=30)
@given(st.lists(ROWS, min_size=1, max_size=5))
def test_a_report_sums_up_its_rows(rows: list[LosslessRow]) -> None:
    report = LosslessReport(tuple(rows), "model", "float32", 5, 0.3)
    check(report)
    assert len(str(report).split("\n\n")[0].splitlines()) == 1 + len(rows)
    with pytest.raises(ValueError, match=r"ask for report\.lossless"):
        bool(report)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "prompt is an empty list"),
        (7, {}, "prompt is 7"),
        ([PROMPT, 7], {}, "prompt mixes text and token id"),
        ([[1], [2, 259]], {}, "prompt 1 has token id 259"),
        ([[1], []], {"max_new_tokens": 1}, "prompt 1 is empty"),
        ([PROMPT], {"names": ["a", "b"]}, "names has 2 entries for 1 prompts"),
        (PROMPT, {"gamma": 0}, "gamma is 0"),
    ],
)
def test_bad_input_is_refused(tiny: kangaroo_jax.Params, prompts: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        verify_lossless(tiny, prompts, **options)
    assert "\n" not in str(caught.value)


def test_a_list_of_ids_is_one_prompt(tiny: kangaroo_jax.Params) -> None:
    ids: list[Any] = [[5, 6, 7], (5, 6, 7), np.array([5, 6, 7])]
    reports = [verify_lossless(tiny, prompt, max_new_tokens=3) for prompt in ids]
    assert [len(report.rows) for report in reports] == [1, 1, 1]
    assert len({report.rows for report in reports}) == 1
