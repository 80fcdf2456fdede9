"""Passages of Python sources by kind, and the questions drawn from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train import questions
from train.passages import FOLLOWING, KINDS, LONGEST, Parsed, table_lines
from train.prompts import end_within_line
from train.questions import draw_questions, runs
from workshop.held_out import SourceFile

PROSE = "".join(f"    Sentence {n} of a docstring says something.\n" for n in range(12))
BODY = "".join(f"    step_{n} = compute(step_{n - 1}, {n})\n" for n in range(1, 13))
TABLE = "".join(f"    {n}: 'entry {n}',  # comment {n * n}\n" for n in range(30))
ATTRIBUTES = "".join(f"    attribute_{n} = make_{n}()\n" for n in range(14))

FUNCTION = f'@decorated\ndef function(a):\n    """One line."""\n{BODY}'
DOCUMENTED = f'def documented():\n    """Say a lot.\n\n{PROSE}    """\n'
CLASS = f'class Thing:\n    """One line."""\n\n{ATTRIBUTES}\n    def method(self):\n        pass\n'


def found(kind: str, text: str, name: str = "module.py") -> list[tuple[int, str, str]]:
    """Return of each passage its line, its shortest prompt, and the end of what follows the longest."""
    source = Parsed(SourceFile(name, text.encode()))
    return [
        (source.line_of(p.start), text[p.start : p.start + p.shortest], text[: p.start + p.longest + FOLLOWING])
        for p in KINDS[kind](source)
    ]


def test_a_functions_prompt_reaches_its_body() -> None:
    [(line, shortest, last)] = found("function", f"x = 1\n{FUNCTION}\ny = 2\n")
    assert line == 2 and shortest.startswith("@decorated\ndef function") and "step_1 = compute(step_0, 1)\n" in shortest
    assert last.endswith(BODY[-40:]) or len(last) == LONGEST + FOLLOWING + 6
    assert found("function", FUNCTION, "test/test_it.py") == []
    assert found("function", "def short():\n    return 1\n") == []


def test_a_docstrings_prompt_ends_within_it() -> None:
    [(line, shortest, last)] = found("docstring", f"x = 1\n{DOCUMENTED}    return 3\n")
    assert line == 2 and shortest.startswith('def documented():\n    """Say a lot.\n')
    assert "return" not in last
    [(line, shortest, _)] = found("docstring", f'"""Module.\n{PROSE}"""\n')
    assert line == 1 and shortest.startswith('"""Module.\n')


def test_a_classs_passage_ends_before_its_first_method() -> None:
    [(line, shortest, last)] = found("class", CLASS)
    assert line == 1 and "attribute_0 = make_0()\n" in shortest
    assert "def method" not in last
    init = CLASS.replace("def method(self):\n        pass", f"def __init__(self):\n{BODY.replace('    ', ' ' * 8)}")
    assert len(found("class", init)[0][2]) >= len(last)
    assert found("class", "class A:\n" + f"    def method(self):\n{BODY.replace('    ', ' ' * 8)}") == []


def test_tests_are_functions_of_test_suites() -> None:
    text = FUNCTION.replace("def function", "def test_function")
    assert found("test", text) == [] and found("test", FUNCTION, "test/test_it.py") == []
    for name in ("test/test_it.py", "idlelib/idle_test/it.py", "lib2to3/tests/it.py"):
        assert len(found("test", text, name)) == 1


def test_a_table_is_a_run_of_like_rows() -> None:
    text = f"x = {{\n{TABLE}}}\n"
    assert table_lines(text) == [(2, 31)]
    passages = found("table", text)
    assert [line for line, _, _ in passages] == list(range(2, 2 + len(passages))) and len(passages) > 10
    assert all(last.count("entry") <= 30 and "}" not in last for _, _, last in passages)
    rows = TABLE.splitlines(keepends=True)
    assert table_lines("x = {\n" + "".join(rows[:7]) + "}\n") == []  # Too few,
    assert table_lines("x = {\n" + "".join(rows[:7]) + "  8: f(1),\n" + "".join(rows[8:12]) + "}\n") == []  # broken,
    assert table_lines("".join(f"name_{n}\n" for n in range(9))) == []  # no data,
    assert table_lines("x = [\n" + "'a line of text\\n'\n" * 9 + "]\n") == []  # prose,
    assert table_lines("".join(f"assert f({n})\n" for n in range(9))) == []  # statements.
    assert table_lines("".join(f"name({n}, 'x')\n" for n in range(9))) == [(1, 9)]


def test_a_repetition_is_found_where_it_begins() -> None:
    fresh = "".join(f"value.of_{n} = {chr(97 + n) * 9}({n * 7919 % 1000})\n" for n in range(9))
    rest = "".join(f"# {chr(110 + n) * 47}\n" for n in range(9))
    assert 240 <= len(fresh) <= 270 and found("repeat", fresh + rest) == []
    text = fresh + fresh + rest
    source = Parsed(SourceFile("m.py", text.encode()))
    passages = list(KINDS["repeat"](source))
    assert passages
    for passage in passages:
        prompt = text[passage.start : passage.start + passage.longest]
        around = text[passage.start + passage.longest - 48 : passage.start + passage.longest + 48]
        assert passage.shortest == passage.longest <= LONGEST and around in prompt


def test_a_prompt_ends_within_a_line() -> None:
    class Always:
        def randrange(self, stop: int) -> int:
            return stop - 1

    rng: object = Always()
    assert end_within_line("one line\nthe next line\n", rng) == "one line\nthe next lin"  # type: ignore[arg-type]
    assert end_within_line("no line end in it", rng) == "no line end in it"  # type: ignore[arg-type]


def corpus(word: str, count: int) -> list[SourceFile]:
    """Files with one passage of each kind, all different."""
    files = []
    for n in range(count):
        mark = f"{word}_{n}"
        table = f"x_{mark} = {{\n" + TABLE.replace("entry", mark) + "}\n\n"
        code = (FUNCTION + "\n\n" + DOCUMENTED + "\n\n" + CLASS).replace("compute", mark).replace("make", mark)
        lines = "".join(f"{mark}.of_{k} = {chr(97 + k) * 12}({k * 7919 % 1000})\n" for k in range(8))
        for old in ("Sentence", "Thing", "decorated", "One line", "Say a lot", "documented"):
            code = code.replace(old, mark)
        test = FUNCTION.replace("function", f"test_{mark}").replace("compute", f"check_{mark}")
        test = test.replace("decorated", f"of_{mark}")
        files.append(
            SourceFile(
                f"{mark}.py",
                (table + code + "\n\n" + lines * 2 + "".join(f"# {mark} {k}\n" for k in range(30))).encode(),
            )
        )
        files.append(SourceFile(f"test/{mark}.py", test.encode()))
    return files


def test_questions_of_every_kind_are_drawn_without_overlap() -> None:
    held = corpus("held", 3)
    rows = draw_questions(held, corpus("seen", 3), 3, seed=1)
    assert rows == draw_questions(held, corpus("seen", 3), 3, seed=1) != draw_questions(held, [], 3, seed=2)
    assert [row["question_id"] for row in rows] == list(range(1, 19))
    assert [row["category"] for row in rows] == [kind for kind in KINDS for _ in range(3)]
    texts = {file.name: file.data.decode() for file in held}
    seen: set[tuple[str, int]] = set()
    for row in rows:
        name, line = row["source"].rsplit(":", 1)
        [prompt] = row["turns"]
        start = texts[name].index(prompt)
        assert texts[name].count("\n", 0, start) + 1 == int(line)
        places = {(name, place) for place in range(start, start + len(prompt) + FOLLOWING)}
        assert seen.isdisjoint(places)
        seen |= places
    for kind in KINDS:
        assert len({row["source"].split(":")[0] for row in rows if row["category"] == kind}) == 3


def test_what_stands_in_a_training_file_is_not_drawn() -> None:
    held = corpus("held", 2)
    with pytest.raises(ValueError, match=r"only 1 prompts of kind 'function' in 4 files"):
        draw_questions(held, held[:1], 2, seed=1)
    text = "  aaaaaaaaaaaaaaaaaaaaaaa\n\n\tbbbbbbbbbbbbbbbbbb\nc\nd\n"
    assert runs(text) == {"a" * 23 + "\n" + "b" * 18}
    assert runs("1 = aaaaaaaaaaaa\n2 = bbbbbbbbbbbb\n3 = cccccccccccc\n") == {
        "1 = aaaaaaaaaaaa\n2 = bbbbbbbbbbbb\n3 = cccccccccccc"
    }


def test_the_command_writes_json_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(questions, "standard_library", lambda: tmp_path / "lib")
    monkeypatch.setattr("workshop.held_out.is_held_out", lambda name: "held" in name)
    for file in (*corpus("held", 3), *corpus("seen", 1)):
        (tmp_path / "lib" / file.name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / file.name).write_bytes(file.data)
    out = tmp_path / "new" / "q.jsonl"
    assert questions.main(["--count", "2", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 12 and all("held" in row["source"] for row in rows)
    assert "12 questions of 6 kinds" in capsys.readouterr().out
    for options, part in ((["--count", "0"], "--count is 0"), (["--count", "9"], "ask for fewer")):
        assert questions.main([*options, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and part in error and error.count("\n") == 1
