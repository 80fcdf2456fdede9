"""Settings that were chosen for an adapter, written into its directory: gamma, eta and the method, nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kangaroo_jax.files import read_json, unwritable, whole_directory, write_json
from kangaroo_jax.model import KangarooConfig, LlamaConfig
from kangaroo_jax.store.adapter_record import AGAIN, check_draft
from kangaroo_jax.store.adapters import ADAPTER_CONFIG, EXPORTED, load_adapter, read_adapter, save_adapter
from kangaroo_jax.store.names import assets

TUNING = "tuning"
"""Key of the note in an adapter's record."""


def save_choice(
    source: Path, config: LlamaConfig, draft: KangarooConfig, note: Mapping[str, Any], out: Path | None = None
) -> Path:
    """Write gamma, eta and method of ``draft`` into an adapter's record; whole or not at all.

    All else in the directory stays as it is, the other fields of the record included. An adapter as its authors
    published it has no record, and one that is part of this package is not written to: these are copied.

    Args:
        source: an adapter directory of either form.
        config: the target it drafts for.
        draft: the choice; exit layer and kind of adapter are those of the directory.
        note: how it was made, as JSON can hold it; replaces an earlier one.
        out: directory to write a copy of the adapter to, with the choice in it; None writes to ``source``.

    Returns:
        The directory that was written.

    Raises:
        ValueError: if ``source`` cannot be written and ``out`` is not given, ``out`` exists, or the draft is not for
            this adapter.
    """
    source = Path(source)
    stored = read_adapter(source, config, draft.exit_layer)
    if stored.draft.adapter != draft.adapter:
        raise ValueError(f"{source} holds an adapter of another kind than the one tuned: {stored.draft.adapter.kind}")
    check_draft(draft, config, str(source))
    if out is None:
        check_writable(source)
        _rewrite(source, draft, note)
        return source
    out = Path(out)
    with whole_directory(out) as staged:
        if _record_file(source) is None:
            # In fp32, which holds the numbers of any dtype they are stored in.
            params = jax.device_get(load_adapter(source, config, "float32", draft.exit_layer)[1])
            save_adapter(staged, config, draft, params, stored.training)
        else:
            for file in source.iterdir():
                if file.is_file():
                    shutil.copyfile(file, staged / file.name)
        _rewrite(staged, draft, note)
    return out


def check_writable(directory: Path) -> None:
    """Raise ValueError if a choice cannot be written into this adapter directory.

    It cannot where the directory belongs to this package, is in the authors' form without a record, or is read-only.
    """
    advice = "give a directory to write a copy of the adapter to"
    directory = Path(directory)
    if (inside := directory.resolve()).is_relative_to(assets()):
        name = inside.relative_to(assets()).parts[0]
        raise ValueError(f"the adapter of {name} is part of the installed package, and stays as it is: {advice}")
    file = _record_file(directory)
    if file is None:
        raise ValueError(f"{directory} is in the authors' form, which has no place for gamma and eta: {advice}")
    if unwritable(directory):
        raise ValueError(f"{directory} cannot be written: {advice}")


def _record_file(directory: Path) -> Path | None:
    """Return the file that holds an adapter's record, if there is one."""
    if (ours := directory / ADAPTER_CONFIG).is_file():
        return ours
    theirs = directory / "config.json"
    return theirs if EXPORTED in read_json(theirs, AGAIN) else None


def _rewrite(directory: Path, draft: KangarooConfig, note: Mapping[str, Any]) -> None:
    """Put the choice into the record of a directory."""
    file = _record_file(directory)
    assert file is not None  # Callers have seen to it.
    whole = read_json(file, AGAIN)
    record = whole if file.name == ADAPTER_CONFIG else dict(whole[EXPORTED])
    record |= {"gamma": draft.gamma, "eta": draft.eta, "method": draft.method, TUNING: dict(note)}
    write_json(file, record if record is whole else whole | {EXPORTED: record})
