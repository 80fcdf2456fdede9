"""A training run before its first step: options checked, target and data loaded, its folder claimed."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from kangaroo_jax.model import KangarooConfig, LlamaConfig, init_adapter
from kangaroo_jax.model.sharding import target_sharding
from kangaroo_jax.store import EMBEDDED, load_adapter, load_target
from kangaroo_jax.text import Tokenizer, load_tokenizer
from train.batches import Shape
from train.corpus import split_sources, standard_library
from train.data import Data, load_data, text_data
from train.metrics import require_libraries
from train.options import check_against_target, check_numbers
from train.record import claim, run_settings
from train.step import target_mesh


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked and loaded training run.

    Attributes:
        name: what the target is called in records.
        config: the target's shape.
        target: the target's frozen params.
        mesh: the devices that the target is spread over, or None when each has all of it.
        tokenizer: the target's.
        draft: what the adapter's config will say.
        adapter: fp32 params to start from.
        data: training and held-out data.
        out: where the adapter goes.
        settings: what a resumed run must share with the one it resumes.
    """

    name: str
    config: LlamaConfig
    target: Any
    mesh: Mesh | None
    tokenizer: Tokenizer
    draft: KangarooConfig
    adapter: Any
    data: Data
    out: Path
    settings: dict[str, Any]

    @property
    def workspace(self) -> Path:
        """Folder of checkpoints, log and settings: beside the adapter, which is replaced as a whole."""
        path = self.out.absolute()
        return path.with_name(path.name + "-training")


def prepare(args: argparse.Namespace) -> Run:
    """Check the options, load target and text, and claim the run's folder.

    Raises:
        ValueError: in one line, if something asked for cannot be.
    """
    check_numbers(args)
    require_libraries(args.wandb)
    mesh = target_mesh(args.shard_target) if args.shard_target > 1 else None
    config, target, directory = load_target(args.model, args.dtype, target_sharding(mesh) if mesh else None)
    check_against_target(args, config)
    out = args.out or (Path("runs/joey-adapter") if args.model in EMBEDDED else directory / "adapter")
    if out.exists() and not (out / "adapter_config.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"--out {out} holds something else than an adapter; pass another folder")
    adapter = init_adapter(config, jax.random.key(args.seed))
    if args.init_adapter:
        _, adapter = load_adapter(args.init_adapter, config, "float32", args.exit_layer)
    settings = run_settings(args, config, target)
    tokenizer = load_tokenizer(directory)
    data = read_data(args, config, tokenizer)
    settings |= {"training_tokens": data.tokens.all, "text": data.digest}
    name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model  # Paths are of one machine.
    draft = KangarooConfig(args.exit_layer, args.gamma, args.eta)
    run = Run(name, config, target, mesh, tokenizer, draft, adapter, data, out, settings)
    if jax.process_index() == 0:
        claim(run.workspace, settings)
    return run


def read_data(args: argparse.Namespace, config: LlamaConfig, tokenizer: Tokenizer) -> Data:
    """Return the data that the options name, in the target's tokens.

    Raises:
        ValueError: in one line, if there is none, or none of use.
    """
    if not args.data and args.model not in EMBEDDED:
        raise ValueError(f"--data is missing; pass text or conversations for {args.model}: folders, files or hub ids")
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
        chat_template=args.chat_template.read_text() if args.chat_template else None,
        limit=args.data_rows,
    )
