"""Figures of answers made by hand: every expected value can be worked out on paper."""

from __future__ import annotations

import dataclasses

import pytest

from bench.answers import Answer, Turn
from bench.differences import differences
from bench.split import time_split
from bench.summary import bootstrap_interval, confidences, figures, summarise

FRESH = tuple(range(20))
REPEATING = (1, 2) * 10


def turn(ids: tuple[int, ...], wall: float, lengths: tuple[int, ...], **fields) -> Turn:
    """Return a turn that ended with EOS: its text has one token less."""
    drafts = fields.pop("drafts", (0,) * len(lengths))
    accepted = fields.pop("accepted", (0,) * len(lengths))
    confidence = fields.pop("confidence", tuple((0.9,) * count for count in drafts))
    return Turn("text", len(ids) - 1, wall, lengths, drafts, accepted, confidence, 5, wall / 4, "stop", ids, **fields)


def answer(question_id: int, run: int, *turns: Turn, category: str = "qa", gamma: int = 3) -> Answer:
    task = "mt_bench" if category == "writing" else category
    return Answer(question_id, category, task, "m", run, turns, {"gamma": gamma})


def plain(question_id: int, run: int, wall: float, ids: tuple[int, ...] = FRESH, category: str = "qa") -> Answer:
    return answer(question_id, run, turn(ids, wall, (1,) * (len(ids) - 1)), category=category, gamma=0)


def drafted(question_id: int, run: int, wall: float, ids: tuple[int, ...] = FRESH, category: str = "qa") -> Answer:
    lengths, drafts, accepted = (4, 4, 1, 2, 4, 4), (3, 3, 2, 1, 3, 3), (3, 3, 0, 1, 3, 3)
    return answer(question_id, run, turn(ids, wall, lengths, drafts=drafts, accepted=accepted), category=category)


PLAIN = [plain(1, 1, 2.0), plain(2, 1, 4.0, REPEATING), plain(1, 2, 3.0), plain(2, 2, 4.0, REPEATING)]
OTHER = [drafted(1, 1, 1.0), drafted(2, 1, 1.0, REPEATING), drafted(1, 2, 2.0), drafted(2, 2, 1.0, REPEATING)]


def test_speed() -> None:
    found = figures(OTHER, PLAIN, frozenset({2}))
    # Question 1: ratios 2 and 1.5, median 1.75; question 2: 4 and 4. Median over questions 2.875.
    assert found["speedups"] == {"1": 1.75, "2": 4.0}
    assert (found["speedup"], found["speedup_without_repetition"]) == (2.875, 1.75)
    assert found["speedup_interval"] == [1.75, 4.0]
    # Median wall times 1.5 and 1 for 40 tokens.
    assert found["tokens_per_second"] == pytest.approx(40 / 2.5)
    assert (found["questions"], found["runs"], found["new_tokens"]) == (2, 2, 40)
    # speed.py counts 19 tokens. Run 1: the mean of 19 and 19 over that of 9.5 and 4.75; run 2: 9.5, 19 over 19/3, 4.75.
    first, second = 38 / 14.25, 28.5 / (19 / 3 + 4.75)
    assert found["harness_speedup"]["mean"] == pytest.approx((first + second) / 2)
    assert found["harness_speedup"]["std"] == pytest.approx(abs(first - second) / 2**0.5)
    assert found["harness_tokens_per_second"] == pytest.approx((19 + 14.25) / 2)


def test_a_slower_answer_of_fewer_tokens_is_no_faster() -> None:
    short = answer(1, 1, turn(FRESH[:10], 2.0, (9,)))
    assert figures([short], [plain(1, 1, 2.0)])["speedup"] == 0.5


def test_rounds() -> None:
    found = figures(OTHER[:1], PLAIN[:1])
    assert found["rounds"] == 6 and found["compression_rate"] == pytest.approx(19 / 6)
    assert found["compression_rate_with_prefill"] == pytest.approx(20 / 7)
    assert found["ctar"] == pytest.approx([5 / 6, 4 / 6, 4 / 6])
    assert found["acceptance_rate"] == pytest.approx(13 / 15) and found["drafted_per_round"] == 15 / 6
    # 5 of 6 first drafts, 4 of 5 second, 4 of 4 third.
    assert found["acceptance_by_position"] == pytest.approx([5 / 6, 4 / 5, 1])
    assert found["accept_length_counts"] == {"1": 1, "2": 1, "4": 4}
    base = figures(PLAIN[:1], PLAIN[:1])
    assert base["ctar"] == [] and base["acceptance_rate"] is None and base["drafted_per_round"] == 0
    assert (base["speedup"], base["compression_rate"], base["speedup_interval"]) == (1, 1, None)
    assert base["harness_speedup"] == {"mean": 1, "std": None}


def test_an_answer_without_rounds_has_no_rates() -> None:
    one = answer(1, 1, turn((5,), 0.5, ()))
    found = figures([one], [one])
    assert found["speedup"] == 1 and found["compression_rate"] is None and found["ctar"] == [None] * 3
    assert found["compression_rate_with_prefill"] == 1 and found["harness_speedup"] is None


def test_tasks_and_overall() -> None:
    extra_plain, extra = plain(3, 1, 9.0, category="writing"), drafted(3, 1, 3.0, category="writing")
    found = summarise({"plain": [*PLAIN, extra_plain], "other": [*OTHER, extra]})
    assert list(found["tasks"]) == ["mt_bench", "qa"] and found["repetitive_questions"] == [2]
    assert found["tasks"]["mt_bench"]["other"]["speedup"] == 3
    assert found["tasks"]["qa"]["other"]["speedup"] == 2.875
    assert found["overall"]["other"]["speedup"] == 3 and found["overall"]["other"]["questions"] == 3
    assert found["tasks"]["qa"]["other"]["speedup_without_repetition"] == 1.75
    assert found["differences"] == [] and found["compared"] == 10


def test_a_bootstrap_interval_is_the_same_each_time_and_holds_the_median() -> None:
    values = [1.0, 1.2, 1.1, 1.3, 1.25, 0.9, 1.15]
    low, high = bootstrap_interval(values)
    assert 0.9 <= low < 1.15 < high <= 1.3 and bootstrap_interval(values) == [low, high]
    assert bootstrap_interval([2.0]) is None and bootstrap_interval([2.0, 2.0]) == [2.0, 2.0]


def test_confidences_of_accepted_and_rejected_drafts() -> None:
    given = turn(FRESH[:5], 1.0, (3, 1), drafts=(3, 2), accepted=(2, 0), confidence=((0.9, 0.8, 0.7), (0.6, 0.5)))
    # The draft behind a rejected one was never judged.
    assert confidences([answer(1, 1, given)]) == ([0.9, 0.8], [0.7, 0.6])


def test_differences_are_found_where_they_begin() -> None:
    base = answer(1, 1, turn((1, 2, 3), 1.0, (1, 1)), turn((4, 5), 1.0, (1,)))
    other = answer(1, 1, turn((1, 2, 3), 1.0, (2,)), turn((4, 6), 1.0, (1,)))
    longer = answer(1, 2, turn((1, 2, 3, 9), 1.0, (3,)), turn((7,), 1.0, ()))
    ended = dataclasses.replace(base.turns[0], finish_reason="length")
    unsteady = answer(1, 2, ended, base.turns[1])
    found = differences({"plain": [base, unsteady], "other": [other, longer], "same": [base]})
    assert [(d.method, d.run, d.turn, d.position, d.plain_token, d.token) for d in found] == [
        ("plain", 2, 1, 3, None, None),
        ("other", 1, 2, 1, 5, 6),
        ("other", 2, 1, 3, None, 9),
    ]
    assert str(found[1]) == "other differs from plain: question 1, turn 2, run 1, at new token 1: token 6 for token 5"


def test_time_split() -> None:
    # Plain: 19 steps in 1.5 s of decoding; a step takes 1.5 / 19. The other: 6 rounds and 15 drafts in 3 s of 4.
    base, other = [plain(1, 1, 2.0)], [drafted(1, 1, 4.0)]
    step = 1.5 / 19
    split = time_split(other, base, {"shallow": 0.2, "propose": 0.1, "deep": 1.5})
    expected = {"prefill": 1.0, "shallow": 21 * 0.2 * step, "propose": 15 * 0.1 * step, "deep": 9 * step}
    assert {name: split[name] for name in expected} == pytest.approx(expected)
    assert sum(split.values()) == pytest.approx(4.0) and split["rest"] > 0
    by_rows = time_split(other, base, {"draft": 0.5, "deep": 1.0, "row": 0.1})
    assert (by_rows["propose"], by_rows["deep"]) == pytest.approx((3 * step, 7.5 * step))
    only_deep = time_split(other, base, {"deep": 1.0})
    assert only_deep["shallow"] == only_deep["propose"] == 0 and sum(only_deep.values()) == pytest.approx(4.0)
    assert time_split(base, base, {"deep": 1.0}) == pytest.approx(
        {"prefill": 0.5, "shallow": 0, "propose": 0, "deep": 1.5, "rest": 0}
    )
    too_much = time_split(other, base, {"shallow": 1.0, "propose": 1.0, "deep": 9.0})
    assert too_much["rest"] == 0 and sum(too_much.values()) == pytest.approx(4.0)
    assert too_much["shallow"] / too_much["deep"] == pytest.approx(21 / 54)
    assert time_split(other, base, None) is None


def test_siblings_and_looked_up_tokens_cost_no_draft_step() -> None:
    """Siblings have confidence 0, and a round of ones was looked up; without confidences every token was drafted."""
    base, (other,) = [plain(1, 1, 2.0)], [drafted(1, 1, 4.0)]
    confidence = ((0.9, 0.8, 0.4), (1.0, 1.0, 1.0), (0.7, 0.0), (0.5,), (0.9, 0.9, 0.0), ())
    turns = tuple(dataclasses.replace(turn, confidence=confidence) for turn in other.turns)
    split = time_split([dataclasses.replace(other, turns=turns)], base, {"shallow": 0.2, "propose": 0.1, "deep": 1.0})
    steps = 3 + 0 + 1 + 1 + 2 + 3
    assert split["propose"] == pytest.approx(steps * 0.1 * 1.5 / 19)
    assert split["shallow"] == pytest.approx((6 + steps) * 0.2 * 1.5 / 19)
