"""Settings of the whole suite, and a tiny model on disk.

All workers, and the processes that tests start, share compiled programs in ``build/xla``; what is traced and counted is
traced and counted as without. Tests of the package's own cache begin without this one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Before JAX is imported, and handed on to other processes by the environment.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / "build" / "xla"))
# No bound: with one, every writer reads the times of all entries under a lock, half of the run in the end.
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "-1"
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["KANGAROO_COMPILATION_CACHE"] = "0"

import jax
import pytest
from hypothesis import settings

import kangaroo_jax
from kangaroo_jax.kernels import pack_adapter, pack_target, use_native
from kangaroo_jax.model import KangarooConfig, LlamaConfig, init_adapter, init_params
from kangaroo_jax.store import save_adapter, write_hf
from train.byte_tokenizer import write_byte_tokenizer
from train.corpus import VOCAB_SIZE

# Jobs that a shell has put into the background ignore it, and tests interrupt what they run.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The first example of a test may load or compile something; how long that takes says nothing about the code.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="module")
def _few_mappings() -> Iterator[None]:
    """Forget compiled programs when a file is done and there are many of them.

    On a CPU each is three mappings of memory or more. Linux allows a process 65,530, and XLA ends with a segmentation
    fault where it gets no further one.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of a random model with joey's byte tokenizer and an untrained adapter; read only."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=42,
        intermediate_size=29,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=101,
    )
    params = init_params(config, jax.random.key(5))
    # Larger than the initialisation's, so that the choice depends on the text and changes from token to token.
    params = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim == 2 else leaf, params)
    write_hf(directory, config, jax.device_get(params))
    write_byte_tokenizer(directory, config.max_position_embeddings)
    adapter = jax.device_get(init_adapter(config, jax.random.key(6)))
    save_adapter(directory / "adapter", config, KangarooConfig(exit_layer=1, gamma=5, eta=0.3), adapter, {})
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> kangaroo_jax.Params:
    """The same, loaded."""
    return kangaroo_jax.load(tiny_model)


@pytest.fixture(scope="session")
def tiny_arrays(tiny_model: Path) -> kangaroo_jax.Params:
    """The same with all weights as arrays, for tests that look at them or change them."""
    return kangaroo_jax.load(tiny_model, kernels="xla")


@pytest.fixture(scope="session")
def as_loaded() -> Callable[[kangaroo_jax.Params], kangaroo_jax.Params]:
    """Return a function that makes of a model of arrays what ``load`` makes of it here: packs it, or leaves it."""

    def pack(params: kangaroo_jax.Params) -> kangaroo_jax.Params:
        if not use_native("auto", params.target["norm"]["scale"].dtype):
            return params
        adapter = params.adapter and pack_adapter(params.adapter)
        return params.replace(target=pack_target(dict(params.target)), adapter=adapter)

    return pack


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """30 small files: enough for the hash of the path to choose among them."""
    folder = tmp_path / "text"
    for index in range(30):
        file = folder / f"part{index % 3}" / f"file{index}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"value_{index} = {line} * {index}\n" for line in range(7)))
    return folder
