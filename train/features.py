"""What training reads of the frozen target, computed once and stored: hidden states, and the teacher's choices."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kangaroo_jax.files import read_json, write_json
from kangaroo_jax.model import LlamaConfig, head_kernel, linear
from kangaroo_jax.progress import progress
from kangaroo_jax.store import fingerprint
from train.batches import Batch, Conversations, padded
from train.data import Data
from train.loss import CHUNK, choice, target_states
from train.recipe import AT_A_TIME
from train.render import Sample
from train.workspace import text_digest
from workshop.journal import check_same
from workshop.places import claimed
from workshop.provenance import weights_digest

IN_CACHE = 1024
"""Tokens of a batch on a CPU: SmolLM2's layers take a quarter less than with ``AT_A_TIME`` (2 cores)."""
_SETTINGS = "settings.json"
_ANEW = "pass another --store-features, or delete that folder to start anew"
Compute = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Field:
    """One file: what is known of positions, one conversation after the other.

    Attributes:
        name: of the file, and of the leaf of a batch.
        dtype: of the elements.
        shape: of a position's.
        counted: whether only positions that count are there.
    """

    name: str
    dtype: Any
    shape: tuple[int, ...] = ()
    counted: bool = True

    @property
    def size(self) -> int:
        """Bytes of a position."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Features:
    """A folder of such files for some conversations, the short ones first.

    They grow by whole batches, so their sizes tell what is done.

    Attributes:
        folder: where they are.
        conversations: whose they are.
        fields: the files.
    """

    folder: Path
    conversations: Conversations
    fields: Sequence[Field]

    @functools.cached_property
    def order(self) -> np.ndarray:
        """The conversations as they stand in the files."""
        return np.argsort(self.conversations.buckets, kind="stable")

    @functools.cached_property
    def plan(self) -> list[tuple[int, int]]:
        """(start, stop) in ``order`` of every batch: of one length, and of so many tokens at most."""
        plan, at = [], 0
        for length, group in itertools.groupby(self.conversations.buckets[self.order].tolist()):
            stop, rows = at + len(list(group)), self.rows(length)
            plan += [(first, min(first + rows, stop)) for first in range(at, stop, rows)]
            at = stop
        return plan

    @staticmethod
    def rows(length: int) -> int:
        """Return the rows of a batch."""
        return max((IN_CACHE if jax.default_backend() == "cpu" else AT_A_TIME) // length, 1)

    @functools.cached_property
    def ends(self) -> dict[bool, np.ndarray]:
        """Where each conversation in ``order`` ends: ``[False]`` among all positions, ``[True]`` those that count."""
        samples = [self.conversations.samples[index] for index in self.order]
        return {
            False: np.cumsum([len(sample.tokens) for sample in samples]),
            True: np.cumsum([int(sample.mask.sum()) for sample in samples]),
        }

    def file(self, field: Field) -> Path:
        """Return where a field is."""
        return self.folder / f"{field.name}.bin"

    def bytes(self, batches: int) -> dict[Field, int]:
        """Return the sizes of the files after so many batches."""
        last = self.plan[batches - 1][1] - 1
        return {field: int(self.ends[field.counted][last]) * field.size if batches else 0 for field in self.fields}

    def complete(self, compute: Compute) -> None:
        """Write what is missing; stopped or killed, the next call goes on.

        Args:
            compute: returns of tokens, and of the mask of those that count, ``[rows, length]``, the positions of every
                field, row after row.

        Raises:
            ValueError: if the disk has no room for it.
        """
        found = {field: file.stat().st_size if (file := self.file(field)).is_file() else 0 for field in self.fields}
        whole, done = self.bytes(len(self.plan)), len(self.plan)
        while any(found[field] < size for field, size in self.bytes(done).items()):
            done -= 1
        if done == len(self.plan):
            return
        tokens, needed = int(self.ends[False][-1]), sum(whole.values()) - sum(self.bytes(done).values())
        print(
            f"{self.folder}: {sum(whole.values()) / 1e9:.3f} GB, {sum(whole.values()) / tokens:,.0f} bytes a token",
            flush=True,
        )
        if needed > (free := shutil.disk_usage(self.folder).free):
            raise ValueError(
                f"--store-features {self.folder} needs {needed / 1e9:.3f} GB, and {free / 1e9:.3f} GB are free there; "
                "free some, pass another folder, or fewer --data-rows"
            )
        with contextlib.ExitStack() as stack:
            files = {field: stack.enter_context(self.file(field).open("ab")) for field in self.fields}
            for field, size in self.bytes(done).items():
                files[field].truncate(size)
            bar = stack.enter_context(progress(total=tokens, desc="store features", unit="token", unit_scale=True))
            for number, (start, stop) in enumerate(self.plan):
                samples = [self.conversations.samples[index] for index in self.order[start:stop]]
                if number >= done:
                    self._write(files, samples, int(self.conversations.buckets[self.order[start]]), compute)
                bar.update(sum(len(sample.tokens) for sample in samples))

    def _write(self, files: dict[Field, Any], samples: Sequence[Sample], length: int, compute: Compute) -> None:
        batch = padded([*samples, *[None] * (self.rows(length) - len(samples))], length)
        found = compute(batch["tokens"], batch["mask"])
        real = np.arange(length) < np.array([len(sample.tokens) for sample in samples])[:, None]
        for field, file in files.items():
            values = found[field.name] if field.counted else found[field.name][: len(samples)][real]
            file.write(np.ascontiguousarray(values, field.dtype).tobytes())

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        sizes = {field: (int(self.ends[field.counted][-1]), *field.shape) for field in self.fields}
        return {field.name: np.memmap(self.file(field), field.dtype, "r", shape=size) for field, size in sizes.items()}

    @functools.cached_property
    def _places(self) -> np.ndarray:
        return np.argsort(self.order)

    def batch(self, members: np.ndarray, length: int) -> Batch:
        """Return the fields of some conversations, ``[rows, length, ...]``, with zeros where nothing is known.

        Args:
            members: which; -1 is an empty row.
            length: of the rows.
        """
        shape = len(members), length
        batch = {field.name: np.zeros((*shape, *field.shape), field.dtype) for field in self.fields}
        for row, member in enumerate(members):
            if member < 0:
                continue
            mask, place = self.conversations.samples[member].mask, self._places[member]
            for field in self.fields:
                at = np.flatnonzero(mask) if field.counted else slice(len(mask))
                end = int(self.ends[field.counted][place])
                size = int(mask.sum()) if field.counted else len(mask)
                batch[field.name][row, at] = self._arrays[field.name][end - size : end]
        return batch


def with_features(folder: Path, data: Data, config: LlamaConfig, target: Any, layers: Sequence[int]) -> Data:
    """Return data whose batches have what a folder stores, instead of tokens; first it is completed.

    Args:
        folder: made if it is not there.
        data: conversations.
        config: the target's shape.
        target: its params.
        layers: exit layers, ascending; the folder may have more.

    Raises:
        ValueError: in one line, if there is plain text among the data, the folder holds something else, or the disk has
            no room.
    """
    training, held = data.training, data.held_out
    if not isinstance(training, Conversations) or not isinstance(held, Conversations):
        raise ValueError(
            "--store-features is for conversations, and --data has plain text, which has new windows each step"
        )
    samples = [*training.samples, *held.samples]
    dtype = target["norm"]["scale"].dtype
    settings = {
        "target": fingerprint(config),
        "dtype": dtype.name,
        "target_weights": weights_digest(target),
        "text": text_digest(part for sample in samples for part in sample),
        "exit_layers": list(layers),
    }
    features = Features(folder, Conversations(samples, training.shape), [])
    with claimed(folder, "stores features in"):
        if (folder / _SETTINGS).is_file():
            found = read_json(folder / _SETTINGS, _ANEW)
            if {*layers} < {*found["exit_layers"]}:  # More is stored than is trained now.
                settings["exit_layers"] = found["exit_layers"]
            check_same(f"{folder} holds features", found, settings, settings, _ANEW)
        elif any(item.name[0] != "." for item in folder.iterdir()):
            raise ValueError(f"--store-features {folder} holds something else than features; pass another folder")
        write_json(folder / _SETTINGS, settings)
        stored = settings["exit_layers"]
        dataclasses.replace(features, fields=_fields(config, stored, dtype)).complete(_computed(config, stored, target))
    features = dataclasses.replace(features, fields=_fields(config, layers, dtype))

    def states(first: int, members: np.ndarray, length: int) -> Batch:
        return features.batch(np.where(members < 0, -1, members + first), length)

    return dataclasses.replace(
        data,
        training=dataclasses.replace(training, states=functools.partial(states, 0)),
        held_out=dataclasses.replace(held, states=functools.partial(states, len(training.samples))),
    )


def _fields(config: LlamaConfig, layers: Sequence[int], dtype: Any) -> list[Field]:
    states = [Field(f"exit{layer}", dtype, (config.hidden_size,), counted=False) for layer in layers]
    return [
        *states,
        Field("final", dtype, (config.hidden_size,)),
        Field("total", np.float32),
        Field("chosen", np.int32),
    ]


def _computed(config: LlamaConfig, layers: Sequence[int], target: Any) -> Compute:
    """Return what computes the fields, as ``train.loss`` does where nothing is stored."""
    run = jax.jit(lambda target, tokens: target_states(config, layers, target, tokens))
    choose = jax.jit(lambda head, final: choice(linear(final, head, jnp.float32)))
    head = jnp.array(head_kernel(target))

    def compute(tokens: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: np.asarray(states) for name, states in run(target, tokens).items()}
        final = found["final"][counts]
        padded = np.pad(final, ((0, -len(final) % CHUNK), (0, 0)))
        parts = [choose(head, padded[at : at + CHUNK]) for at in range(0, len(padded), CHUNK)]
        total, chosen = (np.concatenate(part)[: len(final)] for part in zip(*parts, strict=True))
        return found | {"final": final, "total": total, "chosen": chosen}

    return compute
