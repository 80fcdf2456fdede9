"""Let the target write the replies itself: data for its adapter in the target's own words.

    python -m train.regenerate --model vicuna-7b --data ShareGPT.json --out self.jsonl
    python -m train.adapter    --model vicuna-7b --data self.jsonl

The questions of a conversation stay, and every reply is written anew, turn after turn; a text is continued after its
beginning. Rows keep their form. Stopped or killed, the same command goes on. docs/training.md says more.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import kangaroo_jax
from kangaroo_jax.checks import integer, real
from kangaroo_jax.engine import Options, Plan, plan
from kangaroo_jax.files import check_vacant, whole_file
from kangaroo_jax.store import fingerprint, resolve
from train.adapter_options import check_data
from train.conversation import EXPECTED
from train.render import find_template
from train.replies import Totals, Writer
from train.reply_rows import COMPLETE, Row, beginning, in_their_form, read_rows
from train.rows import BadRows
from train.training_loop import deferred_stops
from train.workspace import source_name
from workshop.command import Terminated, exit_status
from workshop.held_out import split_sources, standard_library
from workshop.journal import Journal
from workshop.places import claimed
from workshop.provenance import weights_digest

_SAMPLING = ("temperature", "top_k", "top_p", "seed")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m train.regenerate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="target: joey, an alias, a Hugging Face or converted directory, or a GGUF file")
    data = "folders (.py .txt .md .jsonl .parquet), files (.json, too) or hub ids OWNER/NAME[:SPLIT]; tables have text"
    library = "default: for joey, the training side of the standard library"
    add("--data", nargs="+", metavar="PATH", help=f"{data} or conversations ({library})")
    add("--data-rows", type=int, metavar="N", help="read no more rows of each table (default: all)")
    part = "write every N-th row alone, from the K-th on, so that N processes on N devices share the work"
    add("--part", type=_part, metavar="K/N", default=(1, 1), help=f"{part} (default: 1/1)")
    add("--chat-template", type=Path, metavar="FILE", help="Jinja, for conversations (default: the model's own)")
    add("--out", type=Path, required=True, metavar="FILE", help=".jsonl file to write; FILE.partial until it is done")
    add("--force", action="store_true", help="replace a file that is already there (default: refuse)")
    add("--prompt-tokens", type=int, default=128, metavar="N", help="of a text that are kept (default: %(default)s)")
    add("--max-new-tokens", type=int, default=512, metavar="N", help="limit of a reply (default: %(default)s)")
    add("--batch-size", type=int, default=16, metavar="N", help="replies written at a time (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32 on a CPU, else bfloat16)")
    add("--adapter", type=Path, metavar="DIR", help="adapter to draft with (default: the model's own, if it has one)")
    layer = "layer the adapter was trained after, where it does not say it"
    add("--exit-layer", type=int, metavar="N", help=f"{layer} (default: as it says)")
    add("--plain", action="store_true", help="draft nothing (default: draft if there is an adapter)")
    add("--gamma", type=int, metavar="N", help="most tokens drafted in a round (default: the adapter's)")
    add("--eta", type=float, metavar="P", help="confidence below which drafting stops (default: the adapter's)")
    add = parser.add_argument_group("sampling", "Tokens are drawn at random if any of these is given.").add_argument
    add("--temperature", type=float, metavar="T", help=f"divides the logits (default: {Options.temperature:g})")
    add("--top-k", type=int, metavar="N", help=f"only the N likeliest tokens, 0 for all (default: {Options.top_k})")
    top_p = "only the likeliest tokens that sum to P"
    add("--top-p", type=float, metavar="P", help=f"{top_p} (default: {Options.top_p:g})")
    add("--seed", type=int, metavar="N", help="a reply is a function of it, the row and the turn (default: 0)")
    return parser


def regenerate(args: argparse.Namespace) -> str:
    """Write the file that the options describe, and return what was done as lines of text.

    Raises:
        ValueError: in one line, if something asked for cannot be.
        KeyboardInterrupt: after Ctrl-C, with all finished batches kept.
        Terminated: likewise after SIGTERM.
    """
    rows, bad = _rows(args)
    if bad.counts:  # Before hours of work, not after it alone.
        print(bad, file=sys.stderr)
    template = args.chat_template.read_text(encoding="utf-8") if args.chat_template else None
    params = kangaroo_jax.load(args.model, adapter=args.adapter, exit_layer=args.exit_layer, dtype=args.dtype)
    checked = plan(params, _options(args, params))
    for row in rows:
        row.text = beginning(row.text, params.tokenizer, args.prompt_tokens) if row.messages is None else ""
    if any(row.messages is not None for row in rows):
        find_template(params.tokenizer, params.name, template)
    journal = Journal(partial_of(args.out), settings_of(args, params, checked, rows, template))
    writer = Writer(params, checked, rows, journal, template)
    with deferred_stops() as stops:
        writer.run(args.batch_size, lambda: heed(stops))
        written = [row for row in rows if row.replies]
        for row in rows:
            if not row.replies:
                bad.add(row.place, str(row.ended))
        if not written:
            _nothing(args, bad)
        with whole_file(args.out) as staged, staged.open("w", encoding="utf-8") as file:
            for line in in_their_form(rows, args.data or (), args.data_rows):
                file.write(json.dumps(line, default=str) + "\n")
    journal.path.unlink()
    return summary(args, written, bad, writer.totals)


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError in one line if an option makes no sense or the file is there; before anything is loaded."""
    for name, least in (("data_rows", 1), ("prompt_tokens", 1), ("max_new_tokens", 1), ("batch_size", 1), ("gamma", 1)):
        if (value := getattr(args, name)) is not None:
            integer(f"--{name.replace('_', '-')}", value, least)
    for name in ("top_k", "seed"):
        if (value := getattr(args, name)) is not None:
            integer(f"--{name.replace('_', '-')}", value, 0)
    for name, most in (("eta", None), ("temperature", None), ("top_p", 1)):
        if (value := getattr(args, name)) is not None:
            real(f"--{name.replace('_', '-')}", value, "0 or more" if most is None else "a share from 0 to 1", 0, most)
    check_out(args.out, args.force)
    check_data(args)
    resolve(args.model)


def check_out(out: Path, force: bool) -> None:
    """Raise ValueError in one line if rows cannot be written there."""
    if out.suffix != ".jsonl":
        raise ValueError(f"--out {out} does not end in .jsonl, by which its form is known; pass another name")
    check_vacant(out, force)
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; pass the name of a file")


def partial_of(out: Path) -> Path:
    """Return where finished replies are kept until all are there."""
    return out.with_name(f"{out.name}.partial")


def settings_of(
    args: argparse.Namespace, params: kangaroo_jax.Params, checked: Plan, rows: Sequence[Row], template: str | None
) -> dict[str, Any]:
    """Return what decides the replies; the batch size does not, so a run that lacks memory can go on with another."""
    asked = [row.text if row.messages is None else row.messages for row in rows]
    spec, settings = checked.spec, checked.settings[0]
    drawn = spec.sampling(checked.controls(1))
    return {
        "target": fingerprint(params.config),
        "target_weights": weights_digest(params.target),
        "dtype": params.dtype.name,
        "data": [source_name(name) for name in args.data] if args.data else ["standard library"],
        "data_rows": args.data_rows,
        "part": list(args.part),
        "text": hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16],
        "prompt_tokens": args.prompt_tokens,
        "chat_template": template and hashlib.sha256(template.encode()).hexdigest()[:16],
        "max_new_tokens": args.max_new_tokens,
        "method": checked.method,
        "gamma": spec.gamma,
        "eta": settings.eta,
        "exit_layer": spec.drafter.exit_layer if spec.gamma else params.config.num_hidden_layers,
        "adapter_weights": weights_digest(params.adapter) if spec.gamma else None,
        "sampling": drawn and {name: float(getattr(drawn, name)[0]) for name in ("temperature", "top_k", "top_p")},
        "seed": settings.seed if drawn else None,
    }


def summary(args: argparse.Namespace, written: Sequence[Row], bad: BadRows, totals: Totals) -> str:
    """Return what was written and what was not, as lines of text."""
    rate = "" if totals.rounds == 0 else f", compression rate {totals.compression_rate:.2f}"
    lines = [
        f"{len(written):,} rows written to {args.out}: {totals.replies:,} replies, {totals.tokens:,} tokens, "
        f"{totals.speed:,.0f} tokens/s{rate}"
    ]
    shortened = collections.Counter(row.ended for row in written if row.ended != COMPLETE)
    lines += [f"{count:,} rows end early: {reason}" for reason, count in shortened.most_common()]
    return "\n".join([*lines, *([str(bad)] if bad.counts else [])])


def main(argv: list[str] | None = None) -> int:
    """Write (or go on with) the file that the options describe, and return the exit status."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        check_options(args)
        with claimed(partial_of(args.out), "is writing", file=True):
            print(regenerate(args))

    return exit_status(work, afterwards="the same command goes on from the last batch", refused=1)


def _rows(args: argparse.Namespace) -> tuple[list[Row], BadRows]:
    if args.data:
        rows, bad = read_rows(args.data, args.data_rows)
    else:
        files = split_sources([standard_library()])[0][: args.data_rows]
        rows, bad = [Row(file.name, text=file.data.decode()) for file in files], BadRows()
    bad.seen = max(bad.seen, len(rows) + bad.counts.total())  # Text files are no rows of a table.
    part, parts = args.part
    rows = rows[part - 1 :: parts]
    if not rows:
        _nothing(args, bad)
    return rows, bad


def _part(text: str) -> tuple[int, int]:
    """Read "2/8"."""
    part, _, parts = text.partition("/")
    if part.isascii() and parts.isascii() and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts):
        return int(part), int(parts)
    raise argparse.ArgumentTypeError(f"{text!r} is no part such as 1/8, 2/8 ... 8/8")


def _nothing(args: argparse.Namespace, bad: BadRows) -> NoReturn:
    raise ValueError(f"no usable row in --data {' '.join(args.data or [])}: {bad}; needed are {EXPECTED}")


def _options(args: argparse.Namespace, params: kangaroo_jax.Params) -> Options:
    sampling = {name: value for name in _SAMPLING if (value := getattr(args, name)) is not None}
    drawn = {"do_sample": True, "seed": 0, **sampling} if sampling else {}
    method = "plain" if args.plain or params.draft is None else None
    return Options(max_new_tokens=args.max_new_tokens, gamma=args.gamma, eta=args.eta, method=method, **drawn)


def heed(stops: Sequence[int]) -> None:
    """Raise what the first of the signals asks for."""
    if stops:
        raise KeyboardInterrupt if stops[0] == signal.SIGINT else Terminated


if __name__ == "__main__":
    sys.exit(main())
