"""Passages of Python sources, by kind: where a prompt of that kind may start, and where its continuation ends.

Found by rules on the syntax tree (``ast``), the tokens (``tokenize``) or the characters, never by looking.
"""

from __future__ import annotations

import ast
import bisect
import dataclasses
import io
import itertools
import keyword
import tokenize
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from workshop.held_out import SourceFile

SHORTEST, LONGEST = 120, 360
FOLLOWING = 128
TABLE_ROWS = 8
ENTRY_CHARACTERS = 20
HALF_COPY = 48

_FIXTURES = frozenset(("setUp", "tearDown", "setUpClass", "tearDownClass", "asyncSetUp", "asyncTearDown"))
_TABLE_OPERATORS = frozenset(",:()[]{}-=")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Passage:
    """Where a prompt may be taken.

    Attributes:
        start: character of the file at which it starts, the first of a line.
        shortest: fewest characters of a prompt; with fewer it would not be of its kind.
        longest: most characters of a prompt; ``FOLLOWING`` more are of the same kind.
    """

    start: int
    shortest: int
    longest: int


class Parsed:
    """A source file: its text, syntax tree, and the characters at which its lines start."""

    def __init__(self, file: SourceFile) -> None:
        """Parse a file.

        Raises:
            SyntaxError: if it is no Python of this version; a few test files are not, on purpose.
        """
        self.name, self.text = file.name, file.data.decode()
        self.tree = ast.parse(self.text)
        self.lines = [0]
        for line in self.text.split("\n"):
            self.lines.append(self.lines[-1] + len(line) + 1)

    @property
    def is_test(self) -> bool:
        """Whether it belongs to a test suite: a folder or the file is called test, tests or test_..."""
        parts = PurePosixPath(self.name).with_suffix("").parts
        return any(part in ("test", "tests", "idle_test") or part.startswith("test_") for part in parts)

    def line_of(self, place: int) -> int:
        """Return the number of the line that a character is in."""
        return bisect.bisect_right(self.lines, place)

    def passage(self, first: int, body: int, last: int) -> Iterator[Passage]:
        """Yield the passage of the lines ``first`` to ``last`` whose prompts reach line ``body``, if it is one."""
        start, end = self.lines[first - 1], min(self.lines[last], len(self.text))
        shortest = max(SHORTEST, self.lines[body - 1] - start)
        longest = min(LONGEST, end - start - FOLLOWING)
        if shortest <= longest:
            yield Passage(start, shortest, longest)


def functions(source: Parsed) -> Iterator[Passage]:
    """Yield functions outside of tests; a prompt has the signature, the docstring and at least a line of the body."""
    if not source.is_test:
        for node in ast.walk(source.tree):
            if isinstance(node, _Function):
                yield from _reaching(source, node, _behind_docstring(node))


def docstrings(source: Parsed) -> Iterator[Passage]:
    """Yield docstrings with the ``def`` or ``class`` that they belong to; a prompt ends within the docstring."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Module | ast.ClassDef | _Function) and ast.get_docstring(node, clean=False):
            text = node.body[0]
            assert text.end_lineno is not None
            first = text.lineno if isinstance(node, ast.Module) else _first_line(node)
            # Its last line is often the quotes alone.
            yield from source.passage(first, text.lineno + 1, text.end_lineno)


def classes(source: Parsed) -> Iterator[Passage]:
    """Yield how classes begin: the statement, docstring, attributes, special methods (``__init__``, ``setUp``, ...).

    The passage ends before the first other method; a prompt has a line of what follows the docstring.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef):
            beginning = list(itertools.takewhile(_is_boilerplate, node.body))
            yield from _reaching(source, node, [s for s in beginning if s in _behind_docstring(node)])


def tests(source: Parsed) -> Iterator[Passage]:
    """Yield the functions of tests that are called ``test...``; as of functions, a prompt has a line of the body."""
    if source.is_test:
        for node in ast.walk(source.tree):
            if isinstance(node, _Function) and node.name.startswith("test"):
                yield from _reaching(source, node, _behind_docstring(node))


def tables(source: Parsed) -> Iterator[Passage]:
    """Yield data tables, from each of their rows on.

    A table is a run of at least 8 lines that are the same but for their names, numbers and short strings, hold a number
    or a string, and have no operators but ``, : ( ) [ ] { } - =``. Comments do not count. A short string has 20
    characters at most, quotes included, and no line end, as lines of prose have.
    """
    for first, last in table_lines(source.text):
        for line in range(first, last + 1):
            yield from source.passage(line, line, last)


def repeats(source: Parsed) -> Iterator[Passage]:
    """Yield where a text repeats itself, tables apart: a prompt from a line on that ends within a copy.

    The 96 characters around the prompt's end, 48 on either side, stand in the prompt before.
    """
    rows = {line for first, last in table_lines(source.text) for line in range(first, last + 1)}
    for line, start in enumerate(source.lines[:-1], 1):
        whole = source.text[start : start + LONGEST + FOLLOWING]
        if rows.isdisjoint(range(line, line + whole.count("\n") + 1)):
            for size in range(3 * HALF_COPY, min(LONGEST, len(whole) - FOLLOWING) + 1):
                if whole[size - HALF_COPY : size + HALF_COPY] in whole[:size]:
                    yield Passage(start, size, size)


KINDS: dict[str, Callable[[Parsed], Iterator[Passage]]] = {
    "function": functions,
    "docstring": docstrings,
    "class": classes,
    "test": tests,
    "table": tables,
    "repeat": repeats,
}


def table_lines(text: str) -> list[tuple[int, int]]:
    """Return the first and last lines of the tables of a source; see ``tables``."""
    rows: dict[int, list[str] | None] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        shape = _shape(token)
        if shape == "":
            continue
        for line in range(token.start[0], token.end[0] + 1):
            row = rows.setdefault(line, [])
            if row is not None and shape is not None:
                row.append(shape)
            else:
                rows[line] = None
    found: list[tuple[int, int]] = []
    first, previous = 0, None
    for line in range(1, max(rows, default=0) + 2):
        row = rows.get(line)
        data = row if row and not {"NUMBER", "STRING"}.isdisjoint(row) else None
        if data is None or data != previous:
            if previous is not None and line - first >= TABLE_ROWS:
                found.append((first, line - 1))
            first, previous = line, data
    return found


def _shape(token: tokenize.TokenInfo) -> str | None:
    """Return what two rows of a table must have in common, ``""`` for what does not count, None for no table."""
    kind, text = token.type, token.string
    if kind in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
        return ""
    if kind == tokenize.STRING:
        return "STRING" if len(text) <= ENTRY_CHARACTERS and "\\n" not in text else None
    if kind == tokenize.NUMBER:
        return "NUMBER"
    if kind == tokenize.NAME:
        return None if keyword.iskeyword(text) and text not in ("None", "True", "False") else "NAME"
    return text if text in _TABLE_OPERATORS else None


def _reaching(source: Parsed, node: ast.ClassDef | _Function, body: list[ast.stmt]) -> Iterator[Passage]:
    """Yield the passage of a definition up to the end of ``body``, whose prompts have a line of it."""
    if body:
        last = body[-1].end_lineno
        assert last is not None
        yield from source.passage(_first_line(node), body[0].lineno + 1, last)


def _behind_docstring(node: ast.ClassDef | _Function) -> list[ast.stmt]:
    """Return the body without its docstring."""
    return node.body[1:] if ast.get_docstring(node) is not None else node.body


def _is_boilerplate(statement: ast.stmt) -> bool:
    """Tell whether a statement of a class's body is a docstring, an attribute or a special method."""
    if isinstance(statement, _Function):
        return statement.name in _FIXTURES or (statement.name.startswith("__") and statement.name.endswith("__"))
    return isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign)


def _first_line(node: ast.ClassDef | _Function) -> int:
    """Return the line a definition starts at, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
