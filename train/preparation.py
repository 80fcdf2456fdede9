"""A training run before its first step: options checked, target and data loaded, its folder claimed."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kangaroo_jax.gguf import whole_name
from kangaroo_jax.model import KangarooConfig, LlamaConfig, init_adapter
from kangaroo_jax.store import (
    ADAPTER_CONFIG,
    EMBEDDED,
    check_draft,
    load_adapter,
    load_target,
    read_config,
    resolve,
    target_sharding,
)
from kangaroo_jax.text import Tokenizer, load_tokenizer
from train.adapter_options import check_against_target, check_data, check_options
from train.batches import Shape
from train.data import Data, load_data, text_data
from train.loss import columns_of
from train.recipe import drafts_of, scheduled, settled
from train.run_log import require_libraries
from train.step import one_copy, target_mesh
from train.workspace import run_settings, source_name, workspace_of
from workshop.held_out import split_sources, standard_library
from workshop.places import check_folder


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked and loaded training run.

    Attributes:
        name: what the target is called in records.
        config: the target's shape.
        target: the target's frozen params.
        mesh: the devices that the target is spread over, or None when each has all of it.
        tokenizer: the target's.
        drafts: what the config of every adapter will say, by name.
        adapters: fp32 params to start from, by name.
        columns: the draft vocabulary's columns of the target's head, as ``train.loss.columns_of`` has them; or None.
        data: training and held-out data.
        out: where the adapter goes; of several, the folder of their folders.
        options: those of the command, everything filled in.
        settings: what a resumed run must share with the one it resumes.
    """

    name: str
    config: LlamaConfig
    target: Any
    mesh: Mesh | None
    tokenizer: Tokenizer
    drafts: dict[str, KangarooConfig]
    adapters: dict[str, Any]
    columns: dict[str, Any] | None
    data: Data
    out: Path
    options: argparse.Namespace
    settings: dict[str, Any]

    @property
    def workspace(self) -> Path:
        """Folder of checkpoints, log and settings."""
        return workspace_of(self.out)

    def whole(self, params: Any) -> Any:
        """Return an adapter's params with the ids of its draft vocabulary, as adapters are saved and loaded."""
        return params if self.columns is None else {**params, "draft_vocabulary": {"ids": self.columns["ids"]}}


def prepare(args: argparse.Namespace) -> Run:
    """Check the options, load target and text.

    Raises:
        ValueError: in one line, if something asked for cannot be.
    """
    require_libraries(args.wandb)
    source = resolve(args.model)
    args = settle(args, read_config(source))
    drafts = drafts_of(args)
    out = args.out or _default_out(args.model, source, len(drafts))
    check_vacant(out, drafts)
    check_data(args)
    mesh = target_mesh(args.shard_target) if args.shard_target > 1 else None
    spread = target_sharding(mesh, read_config(source)) if mesh else None
    config, target, directory = load_target(args.model, args.dtype, spread)
    own = one_copy(target, mesh)[0] if mesh else target  # What this process can read of it.
    adapters = {}
    for name, draft in drafts.items():
        if args.init_adapter:
            given = args.init_adapter / name if len(drafts) > 1 else args.init_adapter
            drafts[name], adapters[name] = _given(given, config, draft)
        else:
            adapters[name] = init_adapter(config, jax.random.key(args.seed), draft.adapter, own)
    tokenizer = load_tokenizer(directory, config.vocab_size)
    data = read_data(args, config, tokenizer)
    columns = None
    if args.draft_vocabulary is not None:
        ids = data.most_frequent(args.draft_vocabulary, config.vocab_size, config.eos_token_id or ())
        columns = jax.device_get(columns_of(own, ids))
    settings = run_settings(args, config, own) | {"training_tokens": data.tokens.all, "text": data.digest}
    args = scheduled(args, data)
    name = source_name(args.model)  # Paths are of one machine.
    run = Run(name, config, target, mesh, tokenizer, drafts, adapters, columns, data, out, args, settings)
    check_folder(run.workspace)
    return run


def _default_out(model: str, source: Path, count: int) -> Path:
    """Return where the adapters go: to the model, or to ``runs`` where it has no folder that is the user's."""
    if model in EMBEDDED or source.is_file():
        named = whole_name(source) if Path(model).is_file() else model
        parent, name = Path("runs"), f"{named}-adapter"
    else:
        parent, name = source, "adapter"  # One that ``load`` finds.
    return parent / (name if count == 1 else f"{name}s")


def _given(directory: Path, config: LlamaConfig, draft: KangarooConfig) -> tuple[KangarooConfig, Any]:
    """Return the adapter to start from, and the draft model with what that computes: its rotary base stays its own."""
    found, params = load_adapter(directory, config, "float32", draft.exit_layer)
    options = {"kind": "--adapter", "num_key_value_heads": "--kv-heads", "intermediate_size": "--mlp-width"}
    for name, option in options.items():
        value, wanted = getattr(found.adapter, name), getattr(draft.adapter, name)
        if value != wanted:
            raise ValueError(
                f"--init-adapter {directory} has the {name} {value}, and {option} is {wanted}; pass the same"
            )
    params.pop("draft_vocabulary", None)  # That of this run's data.
    if found.adapter.final_states and not draft.adapter.final_states:
        raise ValueError(f"--init-adapter {directory} reads final states; pass --final-states, too")
    draft = dataclasses.replace(draft, adapter=dataclasses.replace(draft.adapter, rope_theta=found.adapter.rope_theta))
    if draft.adapter.final_states and not found.adapter.final_states:
        params["final_proj"] = {"kernel": jnp.zeros((config.hidden_size, config.hidden_size))}  # As init_adapter does.
    return draft, params


def settle(args: argparse.Namespace, config: LlamaConfig) -> argparse.Namespace:
    """Return the options with all defaults that do not depend on the data, checked.

    Raises:
        ValueError: in one line, if a number makes no sense, or not for this target.
    """
    args = settled(args, config, jax.device_count() // max(args.shard_target, 1))
    check_options(args)
    check_against_target(args, config)
    for draft in drafts_of(args).values():
        check_draft(draft, config, "options")
    return args


def check_vacant(out: Path, names: Collection[str]) -> None:
    """Raise ValueError if something else than an adapter, or than the adapters of these names, is where they go."""
    if not out.exists():
        return
    if out.is_file():
        raise ValueError(f"--out {out} is a file; pass a folder")
    here = (out / ADAPTER_CONFIG).is_file()
    if len(names) == 1 and (here or not any(out.iterdir())):
        return
    # Names that begin with a dot are of killed processes, or of no concern.
    if len(names) > 1 and not here and {item.name for item in out.iterdir() if item.name[0] != "."} <= set(names):
        return
    kind = "an adapter" if len(names) == 1 else f"the adapters {', '.join(names)}"
    raise ValueError(f"--out {out} holds something else than {kind}; pass another folder")


def read_data(args: argparse.Namespace, config: LlamaConfig, tokenizer: Tokenizer) -> Data:
    """Return the data that the options name, in the target's tokens.

    Raises:
        ValueError: in one line, if there is none, or none of use.
    """
    check_data(args)
    shape = Shape(args.batch_size, args.length, args.seed, jax.process_index(), jax.process_count())
    ends = config.eos_token_id or ()
    if not args.data:
        training, held = ([file.data.decode() for file in side] for side in split_sources([standard_library()]))
        return text_data((training, held), tokenizer, shape, ends[0] if ends else None)
    return load_data(
        args.data,
        tokenizer,
        shape,
        model=args.model,
        eos_ids=ends,
        upstream=args.mask == "upstream",
        chat_template=args.chat_template.read_text(encoding="utf-8") if args.chat_template else None,
        limit=args.data_rows,
    )
