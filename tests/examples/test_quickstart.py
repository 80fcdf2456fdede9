"""The notebook runs in a fresh kernel, shows what it says, and is stored without traces of the machine that ran it."""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
TINT = '<span style="background-color:'
PNG = b"\x89PNG\r\n"
MOST_BYTES = 150_000

# Two names with slashes around them, a Windows drive, or a home folder. The URLs and closing tags of HTML are none.
ABSOLUTE = re.compile(r"(?<![\w.</])/\w[\w.-]*/|\b[A-Z]:\\\w|(?<!\w)~/")


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def code_cells(book: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def cell(book: NotebookNode, name: str) -> NotebookNode:
    (found,) = (cell for cell in book.cells if cell.id == name)
    return found


def texts(cell: NotebookNode) -> Iterator[str]:
    """Yield what a cell shows, pictures apart."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def printed(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell: NotebookNode) -> list[bytes]:
    encoded = [output.get("data", {}).get("image/png") for output in cell.outputs]
    return [base64.b64decode(data) for data in encoded if data]


def complaints(book: NotebookNode) -> list[str]:
    """Return the outputs of a notebook that are an error or a warning, the last line of each."""
    return [
        f"{cell.id}: {(output.get('text') or output.get('evalue') or '?').strip().splitlines()[-1]}"
        for cell in code_cells(book)
        for output in cell.outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def places(book: NotebookNode) -> list[str]:
    """Return the absolute paths in code and outputs, which name a machine and often a user."""
    return [
        f"{cell.id}: {line.strip()[:80]}"
        for cell in code_cells(book)
        for text in (cell.source, *texts(cell))
        for line in text.splitlines()
        if ABSOLUTE.search(line)
    ]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """The notebook without its stored outputs, run elsewhere by the interpreter that runs the tests."""
    folder = tmp_path_factory.mktemp("notebook")
    write_kernel_spec(folder / "share" / "kernels" / "python3")
    book = copy.deepcopy(read())
    for each in code_cells(book):
        each.outputs, each.execution_count = [], None
    client = NotebookClient(
        book, kernel_name="python3", timeout=600, allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        # Jupyter looks here first, so that no python3 of the user's is taken for this one.
        patch.setenv("JUPYTER_PATH", str(folder / "share"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("MPLBACKEND", raising=False)
        return client.execute()


@pytest.mark.full
def test_no_cell_fails_or_warns(executed):
    assert complaints(executed) == []
    assert [each.execution_count for each in code_cells(executed)] == list(range(1, len(code_cells(executed)) + 1))


@pytest.mark.full
def test_the_view_tints_what_was_accepted(executed):
    html = cell(executed, "generate").outputs[0].data["text/html"]
    # One tint is the legend's.
    assert html.count(TINT) > 2 and "drafted and accepted" in html


@pytest.mark.full
def test_the_streamed_text_is_the_generated_one(executed):
    streamed = printed(cell(executed, "stream"))
    assert streamed.count("|") > 2
    assert streamed.replace("|", "") in printed(cell(executed, "result"))


@pytest.mark.full
def test_a_figure_is_drawn(executed):
    (picture,) = pictures(cell(executed, "rounds"))
    assert picture.startswith(PNG)


def test_it_is_stored_with_ids_and_a_kernel_that_everyone_has():
    book = read()
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    assert book.metadata.kernelspec.name == "python3"


def test_it_is_stored_as_one_run_from_top_to_bottom():
    cells = code_cells(read())
    assert [each.execution_count for each in cells] == list(range(1, len(cells) + 1))
    assert all(each.outputs for each in cells)


def test_it_is_stored_without_warnings_and_errors():
    assert complaints(read()) == []


def test_it_is_stored_without_places_on_a_machine():
    assert places(read()) == []


def test_it_is_stored_small():
    assert NOTEBOOK.stat().st_size < MOST_BYTES


@pytest.mark.parametrize(
    "output",
    [
        new_output("stream", name="stderr", text="tqdm/auto.py:21: TqdmWarning: IProgress not found.\n"),
        new_output("error", ename="AssertionError", evalue="", traceback=[]),
    ],
    ids=["warning", "error"],
)
def test_a_complaint_is_noticed(output):
    assert complaints(new_notebook(cells=[new_code_cell("1", outputs=[output])]))


@pytest.mark.parametrize("place", ["/" + "home/ann/model", "C:" + r"\Users\ann", "~" + "/models"])
def test_a_place_is_noticed_in_code_and_in_outputs(place):
    shown = new_output("display_data", {"text/plain": f"read {place}"})
    cells = [new_code_cell(f'load("{place}")'), new_code_cell("1", outputs=[shown])]
    assert len(places(new_notebook(cells=cells))) == 2


@pytest.mark.parametrize(
    "text", ["see https://example.org/a/b", "<b>and</b>/<i>or</i>", "docs/a/b", "def f():\\n    1 / 2"]
)
def test_a_text_without_places_passes(text):
    shown = new_output("display_data", {"text/html": text})
    assert places(new_notebook(cells=[new_code_cell("1", outputs=[shown])])) == []
