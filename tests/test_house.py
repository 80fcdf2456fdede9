"""The house rules that a machine can check: which way imports point, and that no file names a place on one machine."""

from __future__ import annotations

import ast
import collections
import graphlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kangaroo_jax", "workshop", "convert", "train", "bench")

# What a part of the house may import beside itself. Each may name only what stands above it: arrows point one way.
MAY: dict[str, str] = {
    "kangaroo_jax.checks": "",
    "kangaroo_jax.files": "",
    "kangaroo_jax.version": "",
    "kangaroo_jax.kernels": "",
    "kangaroo_jax.progress": "",
    "kangaroo_jax.gguf": "checks files",
    "kangaroo_jax.text": "checks files gguf",
    "kangaroo_jax.model": "checks kernels",
    "kangaroo_jax.store": "checks files gguf model",
    "kangaroo_jax.baselines": "files model store",
    "kangaroo_jax.params": "kernels model store text",
    "kangaroo_jax.decode": "kernels model",
    "kangaroo_jax.engine": "checks kernels model store text params decode",
    "kangaroo_jax.api": "checks params engine",
    "kangaroo_jax.chat": "checks text params decode engine api",
    "kangaroo_jax.proof": "model params decode engine api",
    "kangaroo_jax.tuning": "checks version model store params decode engine api proof",
    "kangaroo_jax": "version model params engine api chat proof tuning",
    "workshop": "files version model store",
    "convert": "files progress gguf text model store workshop",
    "train": "checks files progress gguf text model store baselines params engine kangaroo_jax workshop",
    "bench": "checks files version progress kernels text model store baselines params decode engine proof tuning "
    "kangaroo_jax workshop",
    "kangaroo_jax.cli": "files progress kernels model store engine proof tuning kangaroo_jax",
    "kangaroo_jax.__main__": "cli",
}
ROOMS = {f"kangaroo_jax.{path.parent.name}" for path in ROOT.glob("kangaroo_jax/*/__init__.py")}
# model and decode are pure: they print nothing, read no environment, open no file.
PURE = ("kangaroo_jax.model", "kangaroo_jax.decode")
IMPURE_MODULES = ("os", "sys", "io", "pathlib", "logging", "tempfile", "shutil", "subprocess")
IMPURE_CALLS = ("print", "open", "input")

TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".svg", ".txt", ".ipynb", ".cc", ".h", ".inc"}
MACHINE_PATH = re.compile(r"(?<![\w.~}>])/(?:work|root|tmp|home|opt|mnt|Users)/")

Import = tuple[str, str | None]


def inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def part_of(module: str) -> str:
    """Return the key of ``MAY`` that a module belongs to."""
    return ".".join(module.split(".")[: 2 if inside(module, ("kangaroo_jax",)) else 1])


def allowed(part: str) -> set[str]:
    """Return the parts that one may import."""
    return {name if name in PACKAGES else f"kangaroo_jax.{name}" for name in MAY[part].split()}


def imports_of(source: str, module: str) -> set[Import]:
    """Return the (module, name) pairs that a file imports, wherever in it, also for types alone.

    ``import a.b`` is ``("a.b", None)``. What is read of a package imported as a whole, as in ``dec.verify``, counts as
    imported from it.
    """
    found: set[Import] = set()
    whole: dict[str, str] = {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
            whole |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                is_file = file_of(name) is not None and alias.name not in exported(base)
                found.add((name, None) if is_file else (base, alias.name))
                whole |= {alias.asname or alias.name: name} if is_file else {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            base = whole.get(node.value.id, "")
            if base in ROOMS and not node.attr.startswith("__"):
                found.add((base, node.attr))
    return found


def file_of(module: str) -> Path | None:
    """Return the file of one of our modules."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def exported(package: str) -> set[str]:
    """Return ``__all__`` of a package."""
    file = file_of(package)
    tree = ast.parse(file.read_text() if file else "")
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    return set(ast.literal_eval(lists[0])) if lists else set()


def forbidden(module: str, imports: set[Import]) -> set[Import]:
    """Return those of a module's imports that the house does not allow."""
    part = part_of(module)
    others = {i for i in imports if inside(i[0], PACKAGES) and part_of(i[0]) != part}
    wrong = {i for i in others if part_of(i[0]) not in allowed(part)}
    # A room is entered by what it exports; its files are its own.
    wrong |= {i for i in others if part_of(i[0]) in ROOMS and i[1] not in {None, *exported(i[0])}}
    wrong |= {i for i in others if part_of(i[0]) in ROOMS and i[0] not in ROOMS}
    wrong |= {i for i in imports if inside(i[0], ("torch",))}
    if inside(module, PURE):
        wrong |= {i for i in imports if inside(i[0], IMPURE_MODULES)}
    return wrong


def ring(graph: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import each other in a ring, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted(ROOT.joinpath(*package.split(".")).rglob("*.py"))]


def text_files() -> Iterator[Path]:
    """Yield the repository's text files; folders that git ignores lie outside of these."""
    yield from (path for path in ROOT.glob("*") if path.is_file() and path.suffix in TEXT_SUFFIXES)
    yield from (ROOT / "Makefile", *ROOT.glob(".ci/*"), *ROOT.glob(".pre-commit-config.yaml"))
    for folder in (*PACKAGES, "tests", "docs", "examples"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in TEXT_SUFFIXES)


def test_the_table_has_no_arrow_up() -> None:
    parts = list(MAY)
    assert [(part, name) for part in parts for name in allowed(part) if name not in parts[: parts.index(part)]] == []


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    module = module_name(path)
    assert forbidden(module, imports_of(path.read_text(), module)) == set()


def test_no_files_import_each_other_in_a_ring() -> None:
    imports = {module_name(path): imports_of(path.read_text(), module_name(path)) for path in sources(*PACKAGES)}
    assert ring({module: {i[0] for i in found if inside(i[0], PACKAGES)} for module, found in imports.items()}) == []


def test_a_ring_is_noticed_among_types_too() -> None:
    source = "if TYPE_CHECKING:\n    from kangaroo_jax.decode.spec import DecodeSpec"
    types = {module for module, _ in imports_of(source, "kangaroo_jax.decode.state")}
    found = ring({"kangaroo_jax.decode.state": types, "kangaroo_jax.decode.spec": {"kangaroo_jax.decode.state"}})
    assert set(found) == {"kangaroo_jax.decode.state", "kangaroo_jax.decode.spec"}
    assert ring({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_file_of_a_room_is_called_as_a_room_is() -> None:
    rooms = {room.rpartition(".")[2] for room in ROOMS} | set(PACKAGES)
    assert [module_name(path) for path in sources("kangaroo_jax") if path.stem in rooms] == []


def test_a_file_name_is_of_one_file() -> None:
    """Commands are called as they are typed."""
    named = collections.defaultdict(list)
    for path in sources(*PACKAGES):
        if not path.stem.startswith("__") and 'if __name__ == "__main__":' not in path.read_text():
            named[path.stem].append(module_name(path))
    assert [modules for modules in named.values() if len(modules) > 1] == []


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
        ("kangaroo_jax.proof.lossless", "from kangaroo_jax.cli.terminal import write"),
        ("train.adapter", "from kangaroo_jax import cli"),
        ("convert.hf_to_flax", "from train import step"),
        ("train.adapter", "import convert.hf_to_flax as c"),
        ("train.adapter", "from kangaroo_jax.decode.loop import prefill"),
        ("train.adapter", "from kangaroo_jax.decode import _private"),
        ("bench.split", "from kangaroo_jax.store.hf import read_hf"),
        ("bench.split", "from kangaroo_jax.store import hf"),
        ("bench.split", "from kangaroo_jax import decode as dec\ndec.loop"),
        ("kangaroo_jax.store.hf", "from kangaroo_jax.model.llama import forward"),
        ("workshop.command", "from train.joey import main"),
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
        ("kangaroo_jax.chat", "from kangaroo_jax import decode as dec\nimport os\ndec.prefill"),
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


def texts_without_encoding(source: str) -> list[str]:
    """Return the calls that read or write text in the encoding of the locale."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "open":
            first = [*node.args[not is_method :], *(key.value for key in node.keywords if key.arg == "mode")][:1]
            mode = "r" if not first else str(first[0].value) if isinstance(first[0], ast.Constant) else ""
            # Archives and images are opened by other methods of this name, which take something else first.
            in_locale = bool(mode) and "b" not in mode
        else:
            in_locale = (name == "read_text" and not node.args) or (name == "write_text" and len(node.args) < 2)
        found += [f"{node.lineno}: {ast.unparse(node)}"] if in_locale else []
    return found


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=module_name)
def test_text_is_utf8_whatever_the_locale(path: Path) -> None:
    assert texts_without_encoding(path.read_text(encoding="utf-8")) == []


def test_text_in_the_encoding_of_the_locale_is_noticed() -> None:
    wrong = ["p.read_text()", "p.write_text(s)", "open(p)", "open(p, 'w')", "p.open()", "p.open(mode='a')"]
    right = [
        "p.read_text('utf-8')",
        "p.write_text(s, encoding='utf-8')",
        "open(p, 'rb')",
        "p.open('wb')",
        "zip.open(p)",
    ]
    assert [text for text in wrong + right if texts_without_encoding(text)] == wrong


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
