"""bench.llama_cpp_peers: what stands in the way of llama.cpp is named in a line, before anything is loaded."""

from __future__ import annotations

import importlib.machinery
import importlib.util

import pytest

from bench import llama_cpp_peers, peers
from kangaroo_jax.model import LlamaConfig

CONFIG = LlamaConfig(61, 22, 29, 3, 6, 3, 4)


def found(monkeypatch, there):
    """Make the package llama_cpp be found, or not; it is not imported."""
    find, spec = importlib.util.find_spec, importlib.machinery.ModuleSpec("llama_cpp", None)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: (spec if there else None) if name == "llama_cpp" else find(name, *rest),
    )


def test_a_missing_package_is_named(monkeypatch, capsys):
    found(monkeypatch, False)
    monkeypatch.setattr(peers, "check_torch", lambda: None)
    assert peers.main(["--gguf", "joey.gguf"]) == 2
    error = "error: --gguf needs llama-cpp-python, and it is not installed: pip install llama-cpp-python\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no such file"), (b"", "no GGUF file"), (b"GGML....", "no GGUF file")]
)
def test_a_file_of_another_kind_is_refused(content, message, tmp_path, monkeypatch):
    found(monkeypatch, True)
    file = tmp_path / "joey.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^--gguf is .*joey\.gguf.* {message}"):
        llama_cpp_peers.check_gguf(file)
    file.write_bytes(b"GGUF....")
    llama_cpp_peers.check_gguf(file)


@pytest.mark.parametrize(
    ("vocab_size", "layers", "message"),
    [(67, 3, "a vocabulary of 67, the model of 61"), (61, 2, "a number of layers of 2, the model of 3")],
)
def test_a_file_of_another_model_is_refused(vocab_size, layers, message, tmp_path):
    with pytest.raises(ValueError, match=f"{message}; give --gguf made from this model"):
        llama_cpp_peers.check_shape(tmp_path / "joey.gguf", CONFIG, vocab_size, layers)
    llama_cpp_peers.check_shape(tmp_path / "joey.gguf", CONFIG, 61, 3)


def test_threads_are_the_cores():
    assert peers.build_parser().parse_args([]).threads == llama_cpp_peers.physical_cores() >= 1
