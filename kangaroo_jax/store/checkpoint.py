"""Params as Orbax checkpoints, which is how this package keeps converted models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from kangaroo_jax.model import LlamaConfig, abstract_params
from kangaroo_jax.store.files import first_line, held_interrupts, read_json, whole_directory, write_json
from kangaroo_jax.store.hf import as_dtype
from kangaroo_jax.store.mapping import Params, check_shapes, common_dtype, flatten

_SIZES = "sizes.json"
_CONVERT_AGAIN = "convert the model again (python -m convert.hf_to_flax)"


def default_dtype() -> np.dtype:
    """Return the dtype models are loaded in when none is asked for: float32 on a CPU, bfloat16 elsewhere."""
    kind = as_dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
    assert kind is not None
    return kind


def save_params(directory: Path, params: Params) -> None:
    """Write params as an Orbax checkpoint; ``directory`` appears when all is written.

    Raises:
        ValueError: if ``directory`` exists.
    """
    with held_interrupts():  # Ctrl-C inside the import of a compiled module comes out as an ImportError.
        import orbax.checkpoint as ocp  # Not at the top: reading safetensors, joey's way in, does without it.

    with whole_directory(directory) as staged:
        # Interrupted, Orbax's threads would go on writing into a directory that is being removed.
        with held_interrupts(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(staged / "params", params)
        for item in (staged / "params").iterdir():
            item.rename(staged / item.name)
        (staged / "params").rmdir()
        write_json(staged / _SIZES, _file_sizes(staged))


def restore_params(directory: Path, config: LlamaConfig, dtype: Any = None) -> Params:
    """Read an Orbax checkpoint onto the default device.

    Args:
        directory: written by ``save_params``.
        config: the model the checkpoint belongs to.
        dtype: of the params; None keeps the checkpoint's.

    Raises:
        ValueError: if the checkpoint is incomplete, damaged, or another model's.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory).absolute()
    _check_complete(directory)
    abstract = abstract_params(config)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = flatten(checkpointer.metadata(directory).item_metadata.tree)
        except Exception as error:  # Orbax's and TensorStore's errors have no common base.
            raise ValueError(f"{directory} is not a readable checkpoint; {_CONVERT_AGAIN}") from error
        check_shapes(
            {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()},
            [(path, tuple(leaf.shape)) for path, leaf in stored.items()],
            fix=f"{directory} belongs to another config.json; {_CONVERT_AGAIN}",
        )
        kind = as_dtype(dtype) or common_dtype([leaf.dtype for leaf in stored.values()])
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind, sharding=sharding), abstract)
        try:
            return checkpointer.restore(directory, target)
        except Exception as error:  # As above.
            raise ValueError(f"{directory} is damaged ({first_line(error)}); {_CONVERT_AGAIN}") from error


def _file_sizes(directory: Path) -> dict[str, int]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != _SIZES)
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in sorted(files)}


def _check_complete(directory: Path) -> None:
    """Refuse a checkpoint whose files are not as long as they were written.

    Orbax would notice, too, but only after its reader threads have printed pages of tracebacks.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} does not exist; {_CONVERT_AGAIN}")
    if not (directory / _SIZES).is_file():
        raise ValueError(f"{directory} has no {_SIZES}, so it was not written to the end; {_CONVERT_AGAIN}")
    for name, size in read_json(directory / _SIZES, _CONVERT_AGAIN).items():
        file = directory / name
        actual = file.stat().st_size if file.is_file() else None
        if actual != size:
            found = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise ValueError(f"{file} {found}; {_CONVERT_AGAIN}")
