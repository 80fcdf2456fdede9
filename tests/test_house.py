"""The house rules that a machine can check: which way imports point, and that no file names a place on one machine."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kangaroo_jax", "workshop", "convert", "train", "bench")

# What a part may import of this repository beside itself; the first line that fits a module counts.
ALLOWED = {
    "kangaroo_jax.checks": (),
    "kangaroo_jax.files": (),
    "kangaroo_jax.kernels": (),
    "kangaroo_jax.model": ("kangaroo_jax.kernels", "kangaroo_jax.checks"),
    "kangaroo_jax.decode": ("kangaroo_jax.model",),
    "kangaroo_jax.text": ("kangaroo_jax.checks",),
    "kangaroo_jax.store": ("kangaroo_jax.model", "kangaroo_jax.checks", "kangaroo_jax.files"),
    "kangaroo_jax.baselines": ("kangaroo_jax.model", "kangaroo_jax.store", "kangaroo_jax.files"),
    "kangaroo_jax": (),
    "workshop": ("kangaroo_jax",),
    "convert": ("kangaroo_jax", "workshop"),
    "train": ("kangaroo_jax", "workshop"),
    "bench": ("kangaroo_jax", "workshop"),
}
# model and decode are pure: they print nothing, read no environment, open no file.
PURE = ("kangaroo_jax.model", "kangaroo_jax.decode")
COMMANDS = ("kangaroo_jax.cli",)
IMPURE_MODULES = ("os", "sys", "io", "pathlib", "logging", "tempfile", "shutil", "subprocess")
IMPURE_CALLS = ("print", "open", "input")

TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".svg", ".txt", ".ipynb", ".cc", ".h", ".inc"}
MACHINE_PATH = re.compile(r"(?<![\w.~}>])/(?:work|root|tmp|home|opt|mnt|Users)/")

Import = tuple[str, str | None]


def inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def imports_of(source: str, module: str) -> set[Import]:
    """Return the (module, name) pairs that a file imports, wherever in it; ``import a.b`` is ``("a.b", None)``."""
    found: set[Import] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                is_package = ROOT.joinpath(*base.split("."), alias.name, "__init__.py").is_file()
                found.add((f"{base}.{alias.name}", None) if is_package else (base, alias.name))
    return found


def exported(package: str) -> set[str]:
    """Return ``__all__`` of a package."""
    tree = ast.parse(ROOT.joinpath(*package.split("."), "__init__.py").read_text())
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    return set(ast.literal_eval(lists[0])) if lists else set()


def forbidden(module: str, imports: set[Import]) -> set[Import]:
    """Return those of a module's imports that the house does not allow."""
    part = next(part for part in ALLOWED if inside(module, (part,)))
    wrong = {i for i in imports if inside(i[0], PACKAGES) and not inside(i[0], (part, *ALLOWED[part]))}
    wrong |= {i for i in imports if inside(i[0], ("torch",))}
    if inside(module, PURE):
        wrong |= {i for i in imports if inside(i[0], IMPURE_MODULES)}
    if not inside(module, (*COMMANDS, "kangaroo_jax.__main__")):  # A library does not need its command line.
        wrong |= {i for i in imports if inside(i[0], COMMANDS)}
    if not inside(module, ("kangaroo_jax",)):  # decode's inside belongs to kangaroo_jax.
        decode = {i for i in imports if inside(i[0], ("kangaroo_jax.decode",))}
        wrong |= decode - {("kangaroo_jax.decode", name) for name in {None, *exported("kangaroo_jax.decode")}}
    return wrong


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted(ROOT.joinpath(*package.split(".")).rglob("*.py"))]


def text_files() -> Iterator[Path]:
    """Yield the repository's text files; folders that git ignores lie outside of these."""
    yield from (path for path in ROOT.glob("*") if path.is_file() and path.suffix in TEXT_SUFFIXES)
    yield from (ROOT / "Makefile", *ROOT.glob(".ci/*"), *ROOT.glob(".pre-commit-config.yaml"))
    for folder in (*PACKAGES, "tests", "docs", "examples"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in TEXT_SUFFIXES)


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    module = module_name(path)
    assert forbidden(module, imports_of(path.read_text(), module)) == set()


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("kangaroo_jax.model.llama", "from kangaroo_jax.decode import generate"),
        ("kangaroo_jax.model.llama", "from kangaroo_jax import decode"),
        ("kangaroo_jax.model.llama", "from ..decode import generate"),
        ("kangaroo_jax.model.llama", "import os"),
        ("kangaroo_jax.kernels.calls", "from kangaroo_jax.model import KVCache"),
        ("kangaroo_jax.decode.loop", "import kangaroo_jax.api"),
        ("kangaroo_jax.decode.loop", "from kangaroo_jax import load"),
        ("kangaroo_jax.decode.loop", "def f():\n    from kangaroo_jax.text import Detokenizer"),
        ("kangaroo_jax.text.tokenizer", "import kangaroo_jax.model"),
        ("kangaroo_jax.store.hf", "from kangaroo_jax.decode import state"),
        ("kangaroo_jax.api", "from train.corpus import BOS"),
        ("kangaroo_jax.proof.lossless", "from kangaroo_jax.cli.terminal import progress"),
        ("train.adapter", "from kangaroo_jax import cli"),
        ("convert.hf_to_flax", "from train import step"),
        ("train.adapter", "import convert.hf_to_flax as c"),
        ("train.adapter", "from kangaroo_jax.decode.loop import prefill"),
        ("train.adapter", "from kangaroo_jax.decode import _private"),
        ("convert.readers", "import torch.nn"),
    ],
)
def test_a_wrong_import_is_noticed(module: str, statement: str) -> None:
    assert forbidden(module, imports_of(statement, module))


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("kangaroo_jax.decode.loop", "from kangaroo_jax import model\nfrom kangaroo_jax.decode.state import commit"),
        ("kangaroo_jax.decode.loop", "from .state import commit\nimport jax"),
        ("kangaroo_jax.api", "from kangaroo_jax.decode.loop import prefill\nimport os"),
        ("kangaroo_jax.__main__", "from kangaroo_jax.cli import main"),
        ("train.adapter", "from kangaroo_jax import load\nfrom train.step import init_state"),
    ],
)
def test_a_right_import_is_let_through(module: str, statement: str) -> None:
    assert forbidden(module, imports_of(statement, module)) == set()


@pytest.mark.parametrize("path", sources(*PURE), ids=module_name)
def test_pure_parts_neither_print_nor_open(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not {call.id for call in calls if isinstance(call, ast.Name)}.intersection(IMPURE_CALLS)


def test_one_file_knows_pmap() -> None:
    users = {module_name(path) for path in sources(*PACKAGES) if re.search(r"\bjax\.pmap\(", path.read_text())}
    assert users == {"train.step"}


def test_no_file_names_a_place_on_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in text_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


def test_a_place_on_one_machine_is_noticed() -> None:
    assert MACHINE_PATH.search("see " + "/" + "work/main/file")
    assert MACHINE_PATH.search('open("' + "/" + 'tmp/x")')
    assert not MACHINE_PATH.search("https://example.org/work/page and docs/work/page")
