"""Params as Orbax checkpoints: written leaf by leaf, in memory of one leaf's size, and read straight to devices."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kangaroo_jax.files import first_line, held_interrupts, read_json, whole_directory, write_json
from kangaroo_jax.model import Fused, LlamaConfig, abstract_params, fused_at
from kangaroo_jax.store.failures import quiet_orbax
from kangaroo_jax.store.hf import as_dtype
from kangaroo_jax.store.mapping import Params, check_shapes, common_dtype, flatten, unflatten

Placement = jax.sharding.Sharding | Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding] | None
"""Where leaves go: one sharding for all, or a function of a leaf's path and shape; None is the default device."""

BATCH_BYTES = 64 << 20  # Leaves are written once they are this much together: each write costs a tenth of a second.
FORMAT = 2
"""The number of what is written. 2: columns of fused weights as in ``model.fused``; 1: q | k | v, gate | up."""
_RECORD = "format.json"
_RECORD_1 = "sizes.json"  # Not written any more, so that what can only read format 1 does not take this for one.
_CONVERT_AGAIN = "convert the model again (python -m convert.hf_to_flax)"


def default_dtype() -> np.dtype:
    """Return the dtype models are loaded in when none is asked for: float32 on a CPU, bfloat16 elsewhere."""
    kind = as_dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
    assert kind is not None
    return kind


class ParamsWriter:
    """Writes one Orbax checkpoint, some leaves at a time; what is written survives the process.

    Attributes:
        folder: where the parts are collected.
        saved: paths of the leaves that are on disk.
    """

    def __init__(self, folder: Path) -> None:
        """Go on with what an earlier writer left in ``folder``, removing what it had not finished."""
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.saved: set[str] = set()
        self._journal = self.folder / "saved.jsonl"
        self._waiting: dict[str, Any] = {}
        self._take_stock()

    def add(self, path: str, values: Any) -> None:
        """Take a leaf; it is written now or with one of the next.

        Raises:
            OSError: if writing fails.
        """
        self._waiting[path] = values
        if sum(leaf.nbytes for leaf in self._waiting.values()) >= BATCH_BYTES:
            self._write()

    def finish(self, directory: Path) -> None:
        """Write what is waiting and let the checkpoint appear as ``directory``, which must not exist."""
        self._write()
        with held_interrupts():
            from orbax.checkpoint.experimental import v1

            self._record({"finishing": True})
            try:
                with quiet_orbax():
                    v1.partial.finalize(self.folder / "params")
            except Exception as error:
                raise OSError(f"finishing {self.folder} failed ({first_line(error)})") from error
            state = self.folder / "params" / "state"
            write_json(state / _RECORD, {"format": FORMAT, "sizes": _file_sizes(state)})
            state.rename(directory)
            shutil.rmtree(self.folder)

    def _write(self) -> None:
        if not self._waiting:
            return
        before = self._parts()
        # Interrupted, Orbax's threads would go on writing, and its import would come out as an ImportError.
        with held_interrupts():
            from orbax.checkpoint.experimental import v1  # Not at the top: reading safetensors does without it.

            # Orbax's and TensorStore's errors have no common base; a full disk may be a ValueError.
            try:
                with quiet_orbax():
                    v1.partial.save(self.folder / "params", unflatten(_on_cpu(self._waiting)))
            except Exception as error:
                raise OSError(f"writing {self.folder} failed ({first_line(error)})") from error
            self._record({"leaves": [*self._waiting], "parts": sorted(self._parts() - before)})
            self.saved |= set(self._waiting)
            self._waiting = {}

    def _record(self, line: Mapping[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def _parts(self) -> set[str]:
        """Return what Orbax has written, as paths two levels deep: it collects its parts in a folder of its own."""
        return {item.relative_to(self.folder).as_posix() for depth in ("*", "*/*") for item in self.folder.glob(depth)}

    def _take_stock(self) -> None:
        lines = _whole_lines(self._journal)
        parts = {part for line in lines or () for part in line.get("parts", ())}
        # Killed while it put the parts together, a writer leaves neither parts nor a whole.
        usable = lines is not None and not any("finishing" in line for line in lines) and parts <= self._parts()
        for part in sorted(self._parts() - parts - {self._journal.name} if usable else self._parts(), reverse=True):
            item = self.folder / part
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        self.saved = {leaf for line in lines or () for leaf in line["leaves"]} if usable else set()


def save_params(directory: Path, params: Params) -> None:
    """Write params as an Orbax checkpoint; ``directory`` appears when all is written.

    Raises:
        ValueError: if ``directory`` exists.
    """
    with whole_directory(directory) as staged:
        writer = ParamsWriter(staged / "parts")
        for path, leaf in flatten(params).items():
            writer.add(path, leaf)
        writer.finish(staged / "params")
        for item in (staged / "params").iterdir():
            item.rename(staged / item.name)
        (staged / "params").rmdir()


def restore_params(
    directory: Path, config: LlamaConfig, dtype: Any = None, sharding: Placement = None, only: Iterable[str] = ()
) -> Params:
    """Read an Orbax checkpoint to devices, a few leaves at a time; one of an older format becomes what is written now.

    Args:
        directory: written by ``save_params`` or ``ParamsWriter``.
        config: the model the checkpoint belongs to.
        dtype: of the params; None keeps the checkpoint's.
        sharding: where they go.
        only: top-level names, such as ``layers_3``, to read nothing else; empty reads all.

    Raises:
        ValueError: if the checkpoint is incomplete, damaged, of a newer format, or another model's.
    """
    import orbax.checkpoint as ocp
    from etils import epath  # What Orbax's handlers take for a path; it comes with Orbax.

    directory = Path(directory).absolute()
    number = _stored_format(directory)
    abstract = flatten(abstract_params(config))
    try:
        stored = flatten(ocp.PyTreeCheckpointHandler().metadata(epath.Path(directory)).tree)
    except Exception as error:  # Orbax's and TensorStore's errors have no common base.
        raise ValueError(f"{directory} is not a readable checkpoint; {_CONVERT_AGAIN}") from error
    check_shapes(
        {path: tuple(leaf.shape) for path, leaf in abstract.items()},
        [(path, tuple(leaf.shape)) for path, leaf in stored.items()],
        fix=f"{directory} belongs to another config.json; {_CONVERT_AGAIN}",
    )
    kind = as_dtype(dtype) or common_dtype([leaf.dtype for leaf in stored.values()])
    wanted = {path: leaf for path, leaf in abstract.items() if not only or path.split("/")[0] in only}
    target = unflatten(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, kind, sharding=sharding_of(sharding, path, leaf.shape, kind))
            for path, leaf in wanted.items()
        }
    )
    # Orbax reads so much at once, and holds it beside the arrays it makes of it.
    largest = max(math.prod(leaf.shape) * 4 for leaf in wanted.values())
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=2 * max(largest, 4 * BATCH_BYTES) / 10**9)
    arguments = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=bool(only)
    )
    try:
        with quiet_orbax(), ocp.Checkpointer(handler) as checkpointer:
            restored = flatten(checkpointer.restore(directory, args=arguments))
    except Exception as error:  # As above.
        raise ValueError(f"{directory} is damaged ({first_line(error)}); {_CONVERT_AGAIN}") from error
    if number == 1:
        for path in restored:
            if fused := fused_at(config, path):
                leaf, restored[path] = restored[path], None  # So that no leaf but this one is held twice.
                restored[path] = jax.block_until_ready(_from_blocks(fused, leaf.sharding)(leaf))
    return unflatten(restored)


def leaf_groups(config: LlamaConfig, dtype: np.dtype, most: int = 1 << 30) -> list[list[str]]:
    """Return the top-level names of a model's params in groups of up to ``most`` bytes: what is read at a time.

    Args:
        config: the model.
        dtype: of the params in memory.
        most: bytes of a group; one name alone may be larger.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tree in abstract_params(config).items():
        size = sum(math.prod(leaf.shape) for leaf in flatten({name: tree}).values()) * dtype.itemsize
        if groups[-1] and filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def sharding_of(placement: Placement, path: str, shape: tuple[int, ...], dtype: np.dtype) -> jax.sharding.Sharding:
    """Return where a leaf goes.

    Raises:
        ValueError: if ``placement`` is no such thing, or does not divide the leaf.
    """
    if placement is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = placement(path, jax.ShapeDtypeStruct(shape, dtype)) if callable(placement) else placement
    if not isinstance(sharding, jax.sharding.Sharding):
        raise ValueError(
            f"sharding of {path} is {sharding!r:.60}; pass a jax.sharding.Sharding, or a function that returns one"
        )
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        raise ValueError(f"sharding of {path}, {shape}, does not divide it ({first_line(error)})") from error
    return sharding


def to_device(path: str, values: np.ndarray, placement: Placement) -> jax.Array:
    """Return a leaf where it goes, once it is there: on its way it would hold its memory while the next is read."""
    sharding = sharding_of(placement, path, values.shape, values.dtype)
    if sharding.is_fully_addressable:
        return jax.block_until_ready(jax.device_put(values, sharding))
    # Of several processes each gives its devices' parts; device_put would first compare the values of all.
    return jax.block_until_ready(jax.make_array_from_callback(values.shape, sharding, lambda index: values[index]))


@functools.cache
def _from_blocks(fused: Fused, sharding: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(fused.from_blocks, out_shardings=sharding)


def _on_cpu(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves as JAX's arrays in the computer's memory, which Orbax copies once less than NumPy's."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out.
        return dict(leaves)
    return {path: leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf, cpu) for path, leaf in leaves.items()}


def _whole_lines(journal: Path) -> list[dict[str, Any]] | None:
    """Return the journal's lines, None if it is damaged; a last one that a kill has cut short is removed."""
    if not journal.is_file():
        return []
    data = journal.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(journal, len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        return None


def _file_sizes(directory: Path) -> dict[str, int]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != _RECORD)
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in sorted(files)}


def _stored_format(directory: Path) -> int:
    """Return the number of a checkpoint's format; one whose files are not as long as they were written is refused.

    Orbax would notice, too, but only after its reader threads have printed pages of tracebacks.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} does not exist; {_CONVERT_AGAIN}")
    if (directory / _RECORD).is_file():
        record = read_json(directory / _RECORD, _CONVERT_AGAIN)
    elif (directory / _RECORD_1).is_file():
        record = {"format": 1, "sizes": read_json(directory / _RECORD_1, _CONVERT_AGAIN)}
    else:
        raise ValueError(f"{directory} has no {_RECORD}, so it was not written to the end; {_CONVERT_AGAIN}")
    number, sizes = record.get("format"), record.get("sizes")
    if not isinstance(number, int) or not isinstance(sizes, dict):
        raise ValueError(f"{directory / _RECORD} is damaged; {_CONVERT_AGAIN}")
    if not 1 <= number <= FORMAT:
        raise ValueError(
            f"{directory} is of format {number}, and this version of kangaroo_jax reads up to {FORMAT}; update it, or "
            f"{_CONVERT_AGAIN}"
        )
    for name, size in sizes.items():
        file = directory / name
        actual = file.stat().st_size if file.is_file() else None
        if actual != size:
            found = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise ValueError(f"{file} {found}; {_CONVERT_AGAIN}")
    return number
