"""Take the adapters of the method's authors in, and give ours out in their format.

    python -m convert.adapter import SOURCE --target MODEL --exit-layer 2 --out DIR
    python -m convert.adapter export [ADAPTER] --target MODEL --out DIR [--format torch]

Theirs is a directory with ``config.json`` (a Llama of one layer) and ``pytorch_model.bin``. Exported as safetensors it
has ``model.safetensors`` instead. Nothing is computed on the way: the elements stay what they are, bit by bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path

import jax

from convert.sources import locate
from kangaroo_jax.model import KangarooConfig, LlamaConfig
from kangaroo_jax.store import find_adapter, from_flax, load_adapter, read_config, resolve, save_adapter, to_flax
from kangaroo_jax.store.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from kangaroo_jax.store.files import check_vacant, whole_directory, write_json
from kangaroo_jax.store.hf import SINGLE, TORCH_SINGLE, stored_tensors, weight_files, write_safetensors
from kangaroo_jax.store.mapping import ADAPTER, common_dtype
from kangaroo_jax.store.names import expand
from kangaroo_jax.store.torch_file import write_torch

FORMATS = {"safetensors": (SINGLE, write_safetensors), "torch": (TORCH_SINGLE, write_torch)}
# What an adapter shares with its target; tensors of the right shape would compute something else with another value.
_SHARED = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
)
_IGNORED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")


def import_adapter(source: Path, config: LlamaConfig, draft: KangarooConfig, out: Path, *, force: bool = False) -> None:
    """Write the adapter directory of an adapter in the authors' format.

    Args:
        source: holds ``config.json`` and ``pytorch_model.bin`` or ``model.safetensors``.
        config: the target's config.
        draft: the exit layer it was trained for, and the gamma and eta to draft with.
        out: the directory to write.
        force: whether an adapter that is at ``out`` is replaced.

    Raises:
        ValueError: if the source is damaged, has other tensors than an adapter, or is for another target, or ``out``
            is in the way; nothing is written then.
    """
    if (source / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{source} is an adapter of kangaroo_jax already; load it as it is")
    check_vacant(out, force)
    theirs = read_config(source)
    if other := [name for name in _SHARED if getattr(theirs, name) != getattr(config, name)]:
        details = ", ".join(f"{name} {getattr(theirs, name)} instead of {getattr(config, name)}" for name in other)
        raise ValueError(f"{source / 'config.json'} has {details}; use the adapter trained for this target")
    stored = [tensor for file in weight_files(source) for tensor in stored_tensors(file)]
    tensors = [(tensor.name, tensor) for tensor in stored if not _IGNORED.fullmatch(tensor.name)]
    params = to_flax(config, tensors, table=ADAPTER)
    save_adapter(out, config, draft, params, {"imported_from": source.resolve().name})


def export_adapter(
    adapter: Path, config: LlamaConfig, out: Path, form: str = "safetensors", *, force: bool = False
) -> KangarooConfig:
    """Write an adapter directory in the authors' format.

    Args:
        adapter: as ``save_adapter`` or ``import_adapter`` wrote it.
        config: the target's config.
        out: the directory to write.
        form: a key of ``FORMATS``.
        force: whether an exported adapter that is at ``out`` is replaced.

    Returns:
        What their format has no place for: exit layer, gamma and eta.

    Raises:
        ValueError: if the adapter is damaged or another target's, or ``out`` is in the way; nothing is written then.
    """
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{adapter} has no {ADAPTER_CONFIG}; give an adapter directory")
    check_vacant(out, force)
    name, write = FORMATS[form]
    own = {"config.json", *(file for file, _ in FORMATS.values())}
    if out.exists() and not (out.is_dir() and own >= {item.name for item in out.iterdir()}):
        raise ValueError(f"{out} is not an exported adapter, so --force does not replace it; choose another --out")
    dtype = common_dtype(tensor.dtype for tensor in stored_tensors(adapter / ADAPTER_WEIGHTS))
    draft, params = load_adapter(adapter, config, dtype)
    tensors = dict(from_flax(config, jax.device_get(params), ADAPTER))
    fields = dataclasses.replace(config.plain, num_hidden_layers=1).to_hf() | {"torch_dtype": dtype.name}
    with whole_directory(out, replace=force) as staged:
        write(staged / name, tensors)
        write_json(staged / "config.json", fields)
    return draft


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    defaults = KangarooConfig(1)
    parser = argparse.ArgumentParser(prog="python -m convert.adapter", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    take = commands.add_parser("import", help="the authors' format -> an adapter directory")
    take.add_argument("source", metavar="SOURCE", help="directory or hub id with config.json and pytorch_model.bin")
    take.add_argument("--exit-layer", type=int, required=True, help="the layer it was trained after (7B: 2, 13B: 3)")
    take.add_argument("--gamma", type=int, default=defaults.gamma, help="default draft length (default: %(default)s)")
    take.add_argument("--eta", type=float, default=defaults.eta, help="default confidence (default: %(default)s)")
    take.add_argument("--revision", help="branch, tag or commit of a hub id (default: its main branch)")
    give = commands.add_parser("export", help="an adapter directory -> the authors' format")
    give.add_argument("source", metavar="ADAPTER", nargs="?", help="an adapter directory (default: MODEL's own)")
    give.add_argument("--format", choices=tuple(FORMATS), default="safetensors", help="default: %(default)s")
    for command in (take, give):
        command.add_argument("--target", metavar="MODEL", required=True, help="the model it drafts for")
        command.add_argument("--out", type=Path, required=True, help="directory to write")
        command.add_argument("--force", action="store_true", help="replace what an earlier run wrote there")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert, print what was written, and return the exit status: 0, 2 for bad input, 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    out = expand(args.out)
    try:
        target = resolve(args.target)
        config = read_config(target)
        if args.command == "import":
            draft = KangarooConfig(args.exit_layer, args.gamma, args.eta)
            import_adapter(locate(args.source, args.revision), config, draft, out, force=args.force)
        else:
            adapter = find_adapter(target, args.source)
            if adapter is None:
                raise ValueError(f"{target} has no adapter of its own; give an adapter directory")
            draft = export_adapter(adapter, config, out, args.format, force=args.force)
    except ValueError as error:
        print(f"adapter: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"adapter: {error}; is {out} a place that can be written?", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nadapter: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"wrote {out}: exit layer {draft.exit_layer}, gamma {draft.gamma}, eta {draft.eta}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
