"""Checkpoints in Hugging Face's layout: ``config.json`` and weights, in one file or in shards with an index.

Weights are safetensors or, where a directory has none, torch's ``.bin`` files. Where a directory is asked for, a GGUF
file is read as well.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kangaroo_jax.files import first_line, read_json, whole_file, write_json
from kangaroo_jax.gguf import Gguf, is_gguf
from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store.dialects import config_from_hf, config_to_hf
from kangaroo_jax.store.gguf_model import GgufModel, read_model
from kangaroo_jax.store.mapping import Leaf, Params, from_flax, leaves, unflatten
from kangaroo_jax.store.torch_file import TorchFile
from kangaroo_jax.store.torch_zip import shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_SINGLE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I32": "int32"}
_SHARD = re.compile(r"\w[\w.-]{0,254}")  # A file's plain name; no separators, no leading dot.


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors, ``.bin`` or GGUF file; ``np.asarray`` reads it, and nothing before.

    Attributes:
        file: the file.
        name: the tensor's name, as Hugging Face has it.
        shape: extents as stored.
        dtype: element type as stored; of what is quantised, that of the values.
        reader: has ``get_tensor(name)``.
        packed: of a GGUF file: what kind of tensor it has, by name, and its bytes.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    reader: Any
    packed: tuple[str, int] | None = None

    @property
    def kind(self) -> str:
        """How the file has it, by name."""
        return self.packed[0] if self.packed else self.dtype.name

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.packed[1] if self.packed else math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read the elements from disk.

        Raises:
            ValueError: if the file has become unreadable.
        """
        try:
            values = self.reader.get_tensor(self.name)
        except (SafetensorError, OSError) as error:  # Of .bin files it is a ValueError already.
            raise ValueError(
                f"{self.file}: reading {self.name} failed ({first_line(error)}); download it again"
            ) from error
        return values if dtype is None else values.astype(dtype)


def as_dtype(dtype: Any) -> np.dtype | None:
    """Return the NumPy dtype of a name or dtype, or None for None.

    Raises:
        ValueError: if it is not one of float32, bfloat16, float16.
    """
    if dtype is None:
        return None
    try:
        kind = np.dtype(DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    except TypeError:
        kind = None
    if kind is None or kind.name not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return kind


def read_config(directory: Path) -> LlamaConfig:
    """Read ``config.json``; end tokens of ``generation_config.json`` go before it, as they do in transformers.

    Args:
        directory: of a checkpoint, or a GGUF file, whose keys say the same.

    Raises:
        ValueError: if a file is absent where it must not be, is not JSON, or describes another kind of network.
    """
    if is_gguf(directory):
        return read_model(directory).config
    fields = read_json(directory / "config.json", "give the directory of a checkpoint")
    generation = directory / "generation_config.json"
    if generation.is_file():
        eos = read_json(generation, "repair or remove it").get("eos_token_id")
        fields |= {} if eos is None else {"eos_token_id": eos}
    try:
        return config_from_hf(fields)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error


def open_hf(directory: Path, dtype: Any = None) -> tuple[LlamaConfig, list[Leaf]]:
    """Open a checkpoint of a supported family: all is checked, and no element is read.

    Args:
        directory: holds ``config.json`` and the weights; or a GGUF file.
        dtype: of the params; None keeps the checkpoint's.

    Returns:
        The config, and the leaves of the params; each is read from disk by its ``read``.

    Raises:
        ValueError: if files are absent or damaged, or the tensors do not fit the config (see ``mapping``).
    """
    directory, dtype = Path(directory), as_dtype(dtype)
    if is_gguf(directory):
        model = read_model(directory)
        config, tensors = model.config, _of_gguf(model)
    else:
        config, tensors = read_config(directory), checkpoint_tensors(directory)
    return config, leaves(config, [(tensor.name, tensor) for tensor in tensors], dtype)


def read_hf(
    directory: Path,
    dtype: Any = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    place: Callable[[str, np.ndarray], Any] = lambda path, values: values,
) -> tuple[LlamaConfig, Params]:
    """Read a checkpoint of a supported family.

    Args:
        directory: holds ``config.json`` and the weights; or a GGUF file.
        dtype: of the params; None keeps the checkpoint's.
        progress: wraps the sequence of leaves while it is read, as ``tqdm`` does.
        place: takes a leaf's path and elements and returns what is kept of it, such as an array on a device.

    Returns:
        The config, and params of NumPy arrays (ml_dtypes for bfloat16), or of what ``place`` made of them. One leaf
        and one tensor are held beside them.

    Raises:
        ValueError: if files are absent or damaged, or the tensors do not fit the config (see ``mapping``).
    """
    config, found = open_hf(directory, dtype)
    return config, unflatten({leaf.path: place(leaf.path, leaf.read()) for leaf in progress(found)})


def write_hf(directory: Path, config: LlamaConfig, params: Params, dtype: Any = None) -> None:
    """Write ``model.safetensors`` and ``config.json``, readable by transformers; other files there stay.

    Args:
        directory: made when absent.
        config: the model's config.
        params: its params, on any device.
        dtype: of the tensors; None keeps that of the params.
    """
    directory = Path(directory)
    tensors = dict(from_flax(config, params))
    if (kind := as_dtype(dtype)) is not None:
        tensors = {name: values.astype(kind) for name, values in tensors.items()}
    write_safetensors(directory / SINGLE, tensors)
    stored = next(iter(tensors.values())).dtype.name
    write_json(directory / "config.json", config_to_hf(config) | {"torch_dtype": stored})


def weight_files(directory: Path) -> list[Path]:
    """Return the files with the weights of a checkpoint: the single file, or the shards its index names.

    Safetensors are preferred to ``.bin`` files; a GGUF file's are its parts. A shard may be a link that leads
    elsewhere, as in the hub's cache; its name may not.

    Raises:
        ValueError: if there are none, or the index is damaged, or names a file that is not there or not in this place.
    """
    if is_gguf(directory):
        return Gguf(directory).files
    for single, index in ((SINGLE, INDEX), (TORCH_SINGLE, TORCH_INDEX)):
        if (directory / single).is_file():
            return [directory / single]
        if (directory / index).is_file():
            return _shards(directory, index, Path(single).suffix)
    raise ValueError(
        f"{directory} has none of {SINGLE}, {INDEX}, {TORCH_SINGLE}, {TORCH_INDEX}; give the directory of a checkpoint"
    )


def checkpoint_tensors(directory: Path) -> list[StoredTensor]:
    """Return the tensors of all files of a checkpoint, or of a GGUF file, without reading their elements.

    Raises:
        ValueError: as ``weight_files`` and ``stored_tensors`` do.
    """
    if is_gguf(directory):
        return _of_gguf(read_model(directory))
    return [tensor for file in weight_files(directory) for tensor in stored_tensors(file)]


def stored_tensors(file: Path, integers: Collection[str] = ()) -> list[StoredTensor]:
    """Return the tensors of a safetensors or ``.bin`` file without reading their elements.

    Args:
        file: the file.
        integers: names of tensors that may be int32.

    Raises:
        ValueError: if the file is damaged, holds anything but tensors, or a tensor is neither float32, bfloat16 nor
            float16.
    """
    reader, found = _open_torch(file) if file.suffix == ".bin" else _open_safetensors(file)
    if odd := [name for name, _, _ in found if not name.isprintable()]:  # It would break the lines of other messages.
        raise ValueError(f"{file} has a tensor with the name {shown(odd[0])}; get the checkpoint from another source")
    if other := [
        (name, kind) for name, _, kind in found if kind not in DTYPES and (name not in integers or kind != "int32")
    ]:
        name, kind = other[0]
        raise ValueError(f"{file}: {name} is {kind}; only {', '.join(DTYPES)} are read, quantised weights are not")
    return [StoredTensor(file, name, shape, np.dtype(DTYPES.get(kind, kind)), reader) for name, shape, kind in found]


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write named tensors to one file, whole or not at all."""
    with whole_file(file) as staged:
        # transformers refuses files that do not say which framework's layout they have; "pt" is [out, in].
        save_file(dict(tensors), staged, metadata={"format": "pt"})


def _of_gguf(model: GgufModel) -> list[StoredTensor]:
    return [
        StoredTensor(tensor.file, name, tensor.shape, tensor.dtype, model, (tensor.kind, tensor.nbytes))
        for name, tensor in model.tensors.items()
    ]


def _shards(directory: Path, index: str, suffix: str) -> list[Path]:
    """Return the files an index names, which are to be beside it."""
    weight_map = read_json(directory / index, "download it again").get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{directory / index} has no weight_map of tensor names to file names; download it again")
    names = sorted(set(weight_map.values()))
    if foreign := [name for name in names if not _SHARD.fullmatch(name) or not name.endswith(suffix)]:
        raise ValueError(
            f"{directory / index} names {shown(foreign[0])}; only {suffix} files beside it are read, so get the "
            "checkpoint from another source"
        )
    if absent := [name for name in names if not os.path.isfile(directory / name)]:  # Whatever the system says of it.
        rest = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
        raise ValueError(
            f"{directory} lacks {', '.join(absent[:6])}{rest}, named in {index}; download the missing shards"
        )
    return [directory / name for name in names]


def _open_safetensors(file: Path) -> tuple[Any, list[tuple[str, tuple[int, ...], str]]]:
    """Return what reads the file's tensors, and their names, shapes and dtypes."""
    try:
        with safe_open(file, framework="np") as opened:
            slices = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118 - not a dict
            found = [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices]
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a complete safetensors file ({first_line(error)}); download or write it again"
        ) from error
    return _SafetensorsFile(file), [(name, shape, _STORED.get(kind, kind)) for name, shape, kind in found]


class _SafetensorsFile:
    """Opens its file for one tensor at a time: while a file is open, every page of it that was read stays in memory."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def get_tensor(self, name: str) -> np.ndarray:
        with safe_open(self.file, framework="np") as opened:
            return opened.get_tensor(name)


def _open_torch(file: Path) -> tuple[Any, list[tuple[str, tuple[int, ...], str]]]:
    """The same for torch's format."""
    reader = TorchFile(file)
    return reader, [(name, layout.shape, layout.dtype.name) for name, layout in reader.layouts.items()]
