"""Answer lines and files: what Spec-Bench's tools read from them, and that a kill loses no whole line."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import pytest
import transformers

import kangaroo_jax
from bench.answer_file import AnswerFile, answer_path, read_answers
from bench.answers import Answer, Turn
from bench.question_set import Question, prompt_of
from kangaroo_jax.store import resolve

QUESTIONS = [
    Question(81, "writing", ("import os\n", "\nclass A:\n")),
    Question(401, "math_reasoning", ('def add(a, b):\n    """Return',)),
    Question(402, "qa", ('if __name__ == "__main__":\n    unittest.ma',)),  # A file's end: joey says EOS.
]
SETTINGS = {"gamma": 7, "eta": 0.2, "dtype": "float32"}
TURN = Turn("ab\n", 3, 0.5, (2,), (3,), (1,), ((0.9, 0.3, 0.25),), 11, 0.125, "length", (5, 6, 7))


def answer(question_id: int = 81, **fields) -> Answer:
    return dataclasses.replace(Answer(question_id, "writing", "mt_bench", "m", 1, (TURN,), SETTINGS), **fields)


@pytest.fixture(scope="module")
def joey() -> kangaroo_jax.Params:
    return kangaroo_jax.load("joey", dtype="float32")


def answered(params: kangaroo_jax.Params, method: str) -> list[Answer]:
    answers = []
    for question in QUESTIONS:
        turns: list[Turn] = []
        for _ in question.turns:
            prompt = prompt_of(params, question, [turn.text for turn in turns])
            out = kangaroo_jax.generate(params, prompt, method=method, max_new_tokens=24)
            turns.append(Turn.of(out))
        answers.append(Answer.to(question, f"joey-{method}", 1, turns, SETTINGS))
    return answers


def as_speed_reads(method: Path, baseline: Path, tokenizer, task: str) -> tuple[float, float, float]:
    """Return (#mean accepted tokens, tokens/s, tokens/s of the baseline), from the keys that speed.py reads.

    Of each line's first choice: a method's rate is sum(new_tokens) / sum(wall_time); the baseline's tokens are those
    of the texts in turns, tokenised, less BOS. Rates are averaged over questions.
    """
    eight = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]

    def choices(path: Path) -> list[dict]:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        mine = {"overall": lambda c: True, "mt_bench": lambda c: c in eight}.get(task, lambda c: c == task)
        return [row["choices"][0] for row in rows if mine(row["category"])]

    ours, base = choices(method), choices(baseline)
    rate = statistics.mean(sum(c["new_tokens"]) / sum(c["wall_time"]) for c in ours)
    counts = [sum(len(tokenizer(text).input_ids) - 1 for text in c["turns"]) for c in base]
    return (
        statistics.mean(length for c in ours for length in c["accept_lengths"]),
        rate,
        statistics.mean(n / sum(c["wall_time"]) for n, c in zip(counts, base, strict=True)),
    )


def test_spec_bench_reads_the_right_figures(tmp_path: Path, joey: kangaroo_jax.Params) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve("joey"))
    files, found = {}, {}
    for method in ("plain", "kangaroo"):
        found[method] = answered(joey, method)
        files[method] = answer_path(tmp_path, "spec_bench", f"joey-{method}", 1)
        file = AnswerFile(files[method], SETTINGS)
        for item in found[method]:
            file.add(item)
    ends = [turn.finish_reason for item in found["plain"] for turn in item.turns]
    assert ends[-1] == "stop" and "length" in ends
    for mine, plain in zip(found["kangaroo"], found["plain"], strict=True):
        assert [turn.token_ids for turn in mine.turns] == [turn.token_ids for turn in plain.turns]
        for turn in mine.turns + plain.turns:
            assert turn.text_tokens == turn.new_tokens - (turn.finish_reason == "stop") == len(turn.text.encode())
    for task, place in (("mt_bench", 0), ("math_reasoning", 1), ("qa", 2), ("overall", slice(None))):
        ours, base = ([a] if isinstance(place, int) else a for a in (found[m][place] for m in ("kangaroo", "plain")))
        turns = [turn for item in ours for turn in item.turns]
        lengths = [length for turn in turns for length in turn.accept_lengths]

        def rate(answers: list[Answer]) -> float:
            return statistics.mean(
                sum(t.text_tokens for t in a.turns) / sum(t.wall_time for t in a.turns) for a in answers
            )

        expected = (statistics.mean(lengths), rate(ours), rate(base))
        assert as_speed_reads(files["kangaroo"], files["plain"], tokenizer, task) == pytest.approx(expected)
        assert expected[0] > 1
        assert as_speed_reads(files["plain"], files["plain"], tokenizer, task)[0] == 1


def test_what_is_kept_of_a_generation(joey: kangaroo_jax.Params) -> None:
    out = kangaroo_jax.generate(joey, "import os\n", max_new_tokens=20)
    turn = Turn.of(out, 1.5)
    assert (turn.text, turn.wall_time, turn.new_tokens) == (out.text, 1.5, 20)
    assert turn.accept_lengths == out.stats.accept_lengths and turn.draft_lengths == out.stats.draft_lengths
    assert turn.accepted_drafts == out.stats.accepted_drafts and turn.prompt_tokens == 11
    assert turn.token_ids == out.token_ids
    for kept, found in zip(turn.confidence, out.stats.confidence, strict=True):
        assert kept == pytest.approx(found, abs=1e-6)
    assert Turn.of(out).wall_time == out.stats.prefill_seconds + out.stats.decode_seconds


def test_a_line_has_spec_benchs_keys_and_reads_back() -> None:
    other = dataclasses.replace(TURN, text="ä\n\u2028", accept_lengths=(4, 1, 2), confidence=(), finish_reason="stop")
    wrote = answer(turns=(TURN, other, dataclasses.replace(TURN, accept_lengths=())))
    row = json.loads(wrote.to_json())
    assert list(row) == ["question_id", "category", "answer_id", "model_id", "choices", "tstamp", "kangaroo_jax"]
    assert row["choices"] == [
        {
            "index": 0,
            "turns": ["ab\n", "ä\n\u2028", "ab\n"],
            "decoding_steps": [1, 3, 0],
            "new_tokens": [3, 3, 3],
            "wall_time": [0.5, 0.5, 0.5],
            "accept_lengths": [2, 4, 1, 2],
        }
    ]
    assert Answer.from_json(wrote.to_json()) == wrote
    assert answer().answer_id != answer().answer_id


def test_every_cut_of_the_last_line_loses_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a.jsonl"
    file = AnswerFile(path, SETTINGS)
    whole = [answer(number) for number in (81, 82, 83)]
    for item in whole:
        file.add(item)
    content, last = path.read_bytes(), len(whole[-1].to_json()) + 1
    for cut in (1, 2, 9, last // 2, last - 1):
        path.write_bytes(content[:-cut])
        assert read_answers(path) == whole[:2]
        resumed = AnswerFile(path, SETTINGS)
        assert resumed.done == {81, 82} and path.read_bytes() == content[:-last]
        resumed.add(whole[2])
        assert path.read_bytes() == content
    assert AnswerFile(path, SETTINGS).answers == whole


def test_answers_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    settings = SETTINGS | {"tree": (1, 2)}
    AnswerFile(path, settings).add(answer(settings=settings))
    assert AnswerFile(path, settings).done == {81}
    for changed, part in (
        (settings | {"gamma": 6}, "gamma 7, not 6"),
        (settings | {"new": 1}, "new None, not 1"),
        (SETTINGS, r"tree \[1, 2\], not None"),
    ):
        with pytest.raises(ValueError, match=part):
            AnswerFile(path, changed)
    file = AnswerFile(path, settings)
    with pytest.raises(ValueError, match="has an answer to question 81"):
        file.add(answer(settings=settings))
    with pytest.raises(ValueError, match="the answer has settings"):
        file.add(answer(82))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"question_id": 81}\n', "line 1: no answer of this benchmark"),
        (b"\x00\x00\n", "line 1: no answer"),
        (b"notes of mine", "ends in something that is no answer"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=part) as error:
        AnswerFile(path, SETTINGS)
    assert path.read_bytes() == content and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="No such file"):
        read_answers(tmp_path / "missing.jsonl")


def test_lines_are_sorted_by_question(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "a.jsonl", SETTINGS)
    for number in (401, 81, 90):
        file.add(answer(number))
    file.sort()
    assert [item.question_id for item in read_answers(file.path)] == [81, 90, 401]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_paths_are_those_that_the_mean_over_runs_reads(tmp_path: Path) -> None:
    assert answer_path(Path("data"), "spec_bench", "m", 2) == Path("data/spec_bench/model_answer_temp0_run_2/m.jsonl")
