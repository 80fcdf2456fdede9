"""Take the adapters of the method's authors in, and give ours out in their format, ready to be published.

    python -m convert.adapter import SOURCE --target MODEL --exit-layer 2 --out DIR
    python -m convert.adapter export [ADAPTER] --target MODEL --out DIR [--format torch] [--licence mit]

Theirs is a directory with ``config.json`` (a Llama of one layer) and ``pytorch_model.bin``. Exported as safetensors it
has ``model.safetensors`` instead. What their ``config.json`` has no place for is added to it as ``kangaroo``, and
``README.md`` is a model card. Nothing is computed on the way: the elements stay what they are, bit by bit. A draft
vocabulary is left behind: the adapter drafts with the whole head then.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from convert.card import CARD, Labels, model_card
from convert.sources import locate
from kangaroo_jax.files import check_vacant, read_json, whole_directory, write_json
from kangaroo_jax.model import KangarooConfig, LlamaConfig
from kangaroo_jax.store import (
    ADAPTER,
    ADAPTER_CONFIG,
    ALIASES,
    EMBEDDED,
    EXPORTED,
    SINGLE,
    TORCH_SINGLE,
    adapter_record,
    check_kind,
    config_to_hf,
    expand,
    find_adapter,
    from_flax,
    read_adapter,
    read_config,
    resolve,
    save_adapter,
    to_flax,
    write_safetensors,
    write_torch,
)
from workshop.command import exit_status

FORMATS = {"safetensors": (SINGLE, write_safetensors), "torch": (TORCH_SINGLE, write_torch)}


def import_adapter(
    source: Path,
    config: LlamaConfig,
    out: Path,
    *,
    exit_layer: int | None = None,
    gamma: int | None = None,
    eta: float | None = None,
    force: bool = False,
) -> KangarooConfig:
    """Write the adapter directory of an adapter in the authors' format.

    Args:
        source: holds ``config.json`` and ``pytorch_model.bin`` or ``model.safetensors``.
        config: the target's config.
        out: the directory to write.
        exit_layer: the layer it was trained after; needed where the source does not say it.
        gamma: to draft with; None is what the source says, or the paper's.
        eta: the same.
        force: whether an adapter that is at ``out`` is replaced.

    Returns:
        What was written beside the tensors.

    Raises:
        ValueError: if the source is damaged, has other tensors than an adapter, or is for another target or exit layer,
            or ``out`` is in the way; nothing is written then.
    """
    if (source / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{source} is an adapter of kangaroo_jax already; load it as it is")
    check_vacant(out, force)
    stored = read_adapter(source, config, exit_layer)
    draft = dataclasses.replace(
        stored.draft,
        gamma=stored.draft.gamma if gamma is None else gamma,
        eta=stored.draft.eta if eta is None else eta,
    )
    save_adapter(out, config, draft, to_flax(config, stored.tensors, table=ADAPTER), stored.training)
    return draft


def export_adapter(
    source: Path,
    config: LlamaConfig,
    out: Path,
    form: str = "safetensors",
    labels: Labels | None = None,
    *,
    exit_layer: int | None = None,
    force: bool = False,
) -> KangarooConfig:
    """Write an adapter directory in the authors' format, with a model card, ready for the hub.

    What their format has no place for stands in its ``config.json`` as the object ``kangaroo``, which their code and
    transformers pass over.

    Args:
        source: an adapter directory of either form.
        config: the target's config.
        out: the directory to write.
        form: a key of ``FORMATS``.
        labels: what the card says beside what the adapter records.
        exit_layer: the layer it was trained after; needed where the source does not say it.
        force: whether an exported adapter that is at ``out`` is replaced.

    Returns:
        Exit layer, gamma and eta.

    Raises:
        ValueError: if the adapter is damaged, another target's or of another kind than the authors', or ``out`` is in
            the way; nothing is written then.
    """
    check_vacant(out, force)
    _check_own(out)
    name, write = FORMATS[form]
    stored = read_adapter(source, config, exit_layer)
    check_kind(stored.draft, str(source))
    # The weights draft whatever the head has; that some columns are enough is this package's alone.
    draft = dataclasses.replace(stored.draft, adapter=dataclasses.replace(stored.draft.adapter, draft_vocabulary=None))
    tensors = dict(from_flax(config, to_flax(config, stored.tensors, table=ADAPTER), ADAPTER))
    fields = config_to_hf(dataclasses.replace(config.plain, num_hidden_layers=1))
    fields |= {"torch_dtype": next(iter(tensors.values())).dtype.name}
    card = model_card(config, stored, labels or Labels())
    with whole_directory(out, replace=force) as staged:
        write(staged / name, tensors)
        write_json(staged / "config.json", fields | {EXPORTED: adapter_record(config, draft, stored.training)})
        card.save(staged / CARD)
    return stored.draft


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    defaults = KangarooConfig(1)
    parser = argparse.ArgumentParser(prog="python -m convert.adapter", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    take = commands.add_parser("import", help="the authors' format -> an adapter directory")
    take.add_argument("source", metavar="SOURCE", help="directory or hub id with config.json and pytorch_model.bin")
    take.add_argument("--gamma", type=int, help=f"default draft length (default: SOURCE's, or {defaults.gamma})")
    take.add_argument("--eta", type=float, help=f"default confidence (default: SOURCE's, or {defaults.eta})")
    take.add_argument("--revision", help="branch, tag or commit of a hub id (default: its main branch)")
    give = commands.add_parser("export", help="an adapter directory -> the authors' format and a model card")
    give.add_argument("source", metavar="ADAPTER", nargs="?", help="an adapter directory (default: MODEL's own)")
    give.add_argument("--format", choices=tuple(FORMATS), default="safetensors", help="default: %(default)s")
    give.add_argument(
        "--licence", metavar="ID", help="for the card, as the hub calls it: mit, ... (default: not stated)"
    )
    give.add_argument("--base-model", metavar="OWNER/NAME", help="MODEL's hub id, for the card (default: the alias's)")
    for command in (take, give):
        command.add_argument("--target", metavar="MODEL", required=True, help="the model it drafts for")
        command.add_argument(
            "--exit-layer", type=int, help="the layer it was trained after, if its files do not say it"
        )
        command.add_argument("--out", type=Path, required=True, help="directory to write")
        command.add_argument("--force", action="store_true", help="replace what an earlier run wrote there")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert, print what was written, and return the exit status: 0, 2 for bad input, 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    out = expand(args.out)

    def work() -> None:
        draft = _take(args, out) if args.command == "import" else _give(args, out)
        print(f"wrote {out}: exit layer {draft.exit_layer}, gamma {draft.gamma}, eta {draft.eta}")
        if args.command == "export":
            print(f"to publish it: hf upload OWNER/NAME {shlex.quote(str(out))}")

    return exit_status(work, name="adapter", afterwards="nothing was written", out=out)


def _take(args: argparse.Namespace, out: Path) -> KangarooConfig:
    config, source = read_config(resolve(args.target)), locate(args.source, args.revision)
    asked = {"exit_layer": args.exit_layer, "gamma": args.gamma, "eta": args.eta}
    return import_adapter(source, config, out, **asked, force=args.force)


def _give(args: argparse.Namespace, out: Path) -> KangarooConfig:
    target = resolve(args.target)
    source = find_adapter(target, args.source)
    if source is None:
        raise ValueError(f"{target} has no adapter of its own; give an adapter directory")
    name = args.target if args.target in (*ALIASES, *EMBEDDED) else None
    labels = Labels(name, args.base_model or ALIASES.get(args.target), args.licence)
    config, exit_layer = read_config(target), args.exit_layer
    return export_adapter(source, config, out, args.format, labels, exit_layer=exit_layer, force=args.force)


def _check_own(out: Path) -> None:
    """Raise ValueError if something is at ``out`` that an export did not write."""
    wrong = f"{out} is not an exported adapter, so --force does not replace it; choose another --out"
    if out.exists() and not out.is_dir():
        raise ValueError(wrong)
    # From the hub it comes back with .gitattributes and .cache; .git would be the history of more than an export.
    found = {item.name for item in out.iterdir()} if out.exists() else set()
    names = {name for name in found if not name.startswith(".") or name == ".git"}
    known = {"config.json", CARD, *(file for file, _ in FORMATS.values())}
    # Names alone would be those of a small model, too.
    if found and not (names <= known and EXPORTED in read_json(out / "config.json", wrong)):
        raise ValueError(wrong)


if __name__ == "__main__":
    sys.exit(main())
