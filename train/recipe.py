"""What a run does where its options are silent: the paper's recipe, or the one of an embedded model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kangaroo_jax.checks import INT32
from kangaroo_jax.model import AdapterConfig, KangarooConfig, LlamaConfig
from train.data import Data

KIND = AdapterConfig().kind
WARMUP = 2000
"""Steps of the paper's warm-up; of a run of fewer than 20,000 steps, a tenth."""

AT_A_TIME = 4 * 2048
"""Tokens that a device computes at a time unless asked otherwise: the paper's batch on 8 devices."""

PAPER: Mapping[str, Any] = MappingProxyType(
    {"batch_size": 32, "length": 2048, "learning_rate": 5e-5, "epochs": 10.0, "gamma": 6, "eta": 0.6}
)
"""Section 4 of the paper and the authors' code, for targets of 7B and more: 4 rows on each of 8 devices."""

EMBEDDED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "joey": {
            "exit_layer": (2,),
            "batch_size": 8,
            "length": 512,
            "learning_rate": 3e-3,
            "steps": 1500,
            "gamma": 7,
            "eta": 0.2,
        }
    }
)
"""What small targets want instead (``docs/joey.md``)."""


def settled(args: argparse.Namespace, config: LlamaConfig, copies: int = 1) -> argparse.Namespace:
    """Return the options with everything filled in that does not depend on the data.

    Args:
        args: from ``train.adapter_options.build_parser``; what was not asked for is None.
        config: the target's.
        copies: of the target on the devices; each takes its share of a batch.

    Raises:
        ValueError: if both epochs and steps are asked for.
    """
    if args.epochs is not None and args.steps is not None:
        raise ValueError(f"--epochs is {args.epochs:g} and --steps is {args.steps}; pass one of them")
    recipe = {**PAPER, "exit_layer": (-(-config.num_hidden_layers // 16),), **EMBEDDED.get(args.model, {})}
    recipe["length"] = min(recipe["length"], config.max_position_embeddings)
    if args.epochs is not None or args.steps is not None:  # One number decides how long the run is.
        recipe |= {"epochs": None, "steps": None}
    elif "steps" in recipe:
        recipe["epochs"] = None
    filled = {name: value for name, value in recipe.items() if getattr(args, name) is None}
    settled = argparse.Namespace(**{**vars(args), **filled})
    if settled.accumulate is None:
        settled.accumulate = _parts(settled.batch_size // max(copies, 1), settled.length)
    return settled


def scheduled(args: argparse.Namespace, data: Data) -> argparse.Namespace:
    """Return settled options with the numbers of steps that the data asks for.

    Raises:
        ValueError: if there are too many, or the warm-up is as long as the run, or longer.
    """
    steps = args.steps if args.steps is not None else max(round(args.epochs * data.epoch_steps), 1)
    if steps > INT32:
        raise ValueError(f"--epochs is {args.epochs:g}, that is {steps} steps; it must be {INT32} steps at most")
    warmup = args.warmup if args.warmup is not None else min(WARMUP, steps // 10)
    if not 0 <= warmup < steps:
        raise ValueError(f"--warmup is {warmup}; it must be from 0 to below --steps ({steps})")
    return argparse.Namespace(**{**vars(args), "steps": steps, "warmup": warmup})


def _parts(rows: int, length: int) -> int:
    """Return in how many parts so many rows are computed, if a part is to have no more tokens than the paper's."""
    fitting = (parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts * length <= AT_A_TIME)
    return next(fitting, max(rows, 1))


def drafts_of(args: argparse.Namespace) -> dict[str, KangarooConfig]:
    """Return the draft models that are trained, by name: one for each exit layer and kind of adapter."""
    drafts = {}
    for layer in args.exit_layer:
        for kind in args.adapter:
            name = f"exit{layer}" if args.adapter == (KIND,) else f"exit{layer}-{kind}"
            adapter = AdapterConfig(
                kind,
                num_key_value_heads=args.kv_heads,
                intermediate_size=args.mlp_width,
                draft_vocabulary=args.draft_vocabulary,
                final_states=args.final_states,
            )
            drafts[name] = KangarooConfig(layer, args.gamma, args.eta, adapter)
    return drafts
