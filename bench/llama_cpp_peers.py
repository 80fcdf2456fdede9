"""A checkpoint as llama.cpp runs it: what ``bench.peers`` compares with. It needs the package llama-cpp-python."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from kangaroo_jax.files import first_line
from kangaroo_jax.model import LlamaConfig

KV_TYPES = {"f16": 1, "bf16": 30, "f32": 0}
"""Element types of the cache, with ggml's numbers; llama.cpp's own default comes first."""

_ERROR = 4  # GGML_LOG_LEVEL_ERROR


def physical_cores() -> int:
    """Return the number of physical cores, or of all where the system does not tell."""
    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def check_gguf(path: Path) -> None:
    """Raise ValueError if llama-cpp-python is not installed, or a path does not lead to a GGUF file."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise ValueError("--gguf needs llama-cpp-python, and it is not installed: pip install llama-cpp-python")
    if not path.is_file():
        raise ValueError(f"--gguf is {path}, and there is no such file; --help says how it is made")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"--gguf is {path}, which is no GGUF file; make it with llama.cpp's convert_hf_to_gguf.py")


def check_shape(path: Path, config: LlamaConfig, vocab_size: int, layers: int) -> None:
    """Raise ValueError if a GGUF file's vocabulary or number of layers is not the model's."""
    for what, theirs, ours in (
        ("a vocabulary", vocab_size, config.vocab_size),
        ("a number of layers", layers, config.num_hidden_layers),
    ):
        if theirs != ours:
            raise ValueError(f"{path} has {what} of {theirs}, the model of {ours}; give --gguf made from this model")


class LlamaCpp:
    """A GGUF file as llama.cpp decodes it: one sequence, greedily, through its own C functions.

    A token costs two calls from Python, ``llama_decode`` and ``llama_sampler_sample`` of llama.cpp's greedy sampler.
    Options that are not named here are llama.cpp's defaults.

    Attributes:
        device: where it runs.
        version: of llama-cpp-python, with what file, cache and threads.
    """

    def __init__(self, path: Path, config: LlamaConfig, length: int, threads: int, kv_type: str = "f16") -> None:
        """Load a file and make a context; ``check_gguf`` first.

        Args:
            path: the GGUF file.
            config: of the model that it was made from.
            length: tokens of the longest sequence, prompt included.
            threads: for the prompt and for decoding.
            kv_type: one of ``KV_TYPES``.

        Raises:
            ValueError: if llama.cpp cannot load it, or it is not a file of this model.
        """
        import llama_cpp

        self._api: Any = llama_cpp
        self._errors: list[str] = []
        self._log = llama_cpp.llama_log_callback(self._logged)  # Held here: llama.cpp keeps only its address.
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        if not model:
            raise ValueError(f"llama.cpp cannot load {path} ({self._reason()}); make it again")
        vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        check_shape(path, config, vocab_size, llama_cpp.llama_model_n_layer(model))
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = self._length = length
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = KV_TYPES[kv_type]
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise ValueError(f"llama.cpp makes no context for {path} ({self._reason()}); try another --kv-type")
        self._sampler = llama_cpp.llama_sampler_init_greedy()
        # "llama 7B F16": what is left of the two first words is the type of the weights.
        text = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(model, text, len(text))
        weights = text.value.decode(errors="replace").split(" ", 2)[-1]
        self.version = f"llama-cpp-python {llama_cpp.__version__} ({weights}, {kv_type} cache, threads: {threads})"
        self.device = "gpu" if llama_cpp.llama_supports_gpu_offload() else "cpu"

    def generate(self, ids: Sequence[int], tokens: int, eos: Sequence[int]) -> list[int]:
        """Return the new ids of greedy decoding, EOS included; they end where the context does, too.

        Raises:
            ValueError: if llama.cpp fails.
        """
        api, context, sampler = self._api, self._context, self._sampler
        api.llama_memory_clear(api.llama_get_memory(context), False)
        most = api.llama_n_batch(context)
        for first in range(0, len(ids), most):
            self._decode(ids[first : first + most])
        found = [api.llama_sampler_sample(sampler, context, -1)]
        while len(found) < min(tokens, self._length - len(ids)) and found[-1] not in eos:
            self._decode(found[-1:])
            found.append(api.llama_sampler_sample(sampler, context, -1))
        return found

    def _decode(self, ids: Sequence[int]) -> None:
        """Put tokens behind those in the cache; the last one's logits are kept."""
        tokens = (self._api.llama_token * len(ids))(*ids)  # A name of its own: the batch holds only its address.
        batch = self._api.llama_batch_get_one(tokens, len(ids))
        if status := self._api.llama_decode(self._context, batch):
            raise ValueError(f"llama.cpp's llama_decode returned {status} ({self._reason()})")

    def _logged(self, level: int, text: bytes, data: Any) -> None:
        if level == _ERROR:
            self._errors.append(text.decode(errors="replace").strip())

    def _reason(self) -> str:
        return first_line(ValueError(self._errors[0])) if self._errors else "it gives no reason"
