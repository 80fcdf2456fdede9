"""Kangaroo against itself: over gamma and eta, over exit layers, over kinds of adapter.

python -m bench.ablate grid                              joey: gamma 1 to 8, eta 0 to 0.9, with its own adapter
python -m bench.ablate grid --gammas 2,4,6 --etas 0,0.6  these only
python -m bench.ablate adapters runs/exits/*             adapters of one target, each with its exit layer and kind

Everything is measured as python -m bench.spec_bench measures methods: in turn on each question, against plain decoding
beside it, ids compared. Settings of one gamma, and all adapters, are one such run; a run that was stopped goes on when
the same command is given again. ablation.json holds the figures, python -m bench.report draws them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kangaroo_jax
from bench.benchmark_record import new_record
from bench.differences import PLAIN
from bench.folder import GOES_ON, WRITING, Folder
from bench.methods import Ready, count_parameters, make
from bench.question_set import JOEY_QUESTIONS, read_questions, select
from bench.result_tables import number
from bench.run_bench import fitting, measure, now
from bench.summary import summarise
from kangaroo_jax.engine import LINES
from kangaroo_jax.files import write_json
from kangaroo_jax.params import with_adapter
from kangaroo_jax.store import EMBEDDED
from workshop.command import exit_status
from workshop.places import claimed

ABLATION = "ablation.json"
KINDS = ("grid", "adapters")


def variants(params: kangaroo_jax.Params, args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Ready]]]:
    """Yield what is measured side by side: a name for the group, and its variants by name, plain decoding first.

    Raises:
        ValueError: if the model has no adapter, a setting is out of range, or an adapter is for another target.
    """
    plain = make(PLAIN, params)
    if args.kind == "grid":
        for gamma in args.gammas:
            settings = ({"gamma": gamma, "eta": eta, **LINES} for eta in args.etas)
            found = {f"gamma-{gamma}-eta-{one['eta']:g}": make("kangaroo", params, one) for one in settings}
            yield f"gamma-{gamma}", {PLAIN: plain, **found}
    else:
        found = {}
        for directory in args.adapters:
            other = with_adapter(params, directory)
            ready = make("kangaroo", other, {"gamma": args.gamma, "eta": args.eta, **LINES})
            assert other.draft is not None
            adapter = other.draft.adapter
            name = f"exit-{ready.spec.drafter.exit_layer}-{adapter.kind}{'-final' * adapter.final_states}"
            if name in found:
                raise ValueError(f"{directory} is a second adapter {name}; give each exit layer and kind once")
            found[name] = ready
        yield "adapters", {PLAIN: plain, **found}


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Measure all groups, write ``ablation.json`` and print it as a table; the exit status.

    Raises:
        ValueError: if something asked for cannot be run.
    """
    params = kangaroo_jax.load(args.model, dtype=args.dtype)
    questions = select(read_questions(args.questions), per_category=args.per_category)
    questions = fitting(params, questions, False)
    groups = dict(variants(params, args))
    rows, status, records = [], 0, []
    with claimed(args.out, WRITING):
        for place, (name, readies) in enumerate(groups.items(), 1):
            print(f"{name} ({place} of {len(groups)})", file=sys.stderr)
            record = new_record(
                params,
                readies,
                args.questions,
                max_new_tokens=args.max_new_tokens,
                repeats=args.repeats,
                command=["bench.ablate", *command],
            )
            folder = Folder(args.out / name, record | {"began": now(), "ended": None}, args.force)
            measure(folder, params, readies, questions, args)
            folder.record["ended"] = now()
            folder.save()
            results = summarise(folder.answers())
            status = max(status, int(bool(results["differences"]) and record["identity"]["dtype"] == "float32"))
            for each in results["differences"]:
                print(f"NOT LOSSLESS: {each}", file=sys.stderr)
            rows += [row(key, ready, results["overall"][key]) for key, ready in readies.items() if key != PLAIN]
            records.append(folder.record)
        found = {"kind": args.kind, "record": _merged(records), "rows": rows}
        write_json(args.out / ABLATION, found)
    for each in rows:
        print(
            f"{each['name']:24} compression rate {number(each['compression_rate'])}, "
            f"{number(each['drafted_per_round'])} drafted a round, speedup {each['speedup']:.2f}x"
        )
    print(f"written to {args.out}")
    return status


def row(name: str, ready: Ready, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return a variant's settings and figures, as ``ablation.json`` has them."""
    assert ready.params.draft is not None
    adapter = ready.params.draft.adapter
    kept = (
        "speedup",
        "speedup_interval",
        "speedup_without_repetition",
        "compression_rate",
        "acceptance_rate",
        "drafted_per_round",
        "ctar",
        "questions",
        "new_tokens",
    )
    return {
        "name": name,
        "exit_layer": ready.spec.drafter.exit_layer,
        "adapter": adapter.kind,
        "final_states": adapter.final_states,
        "parameters": count_parameters(ready.params.adapter),
        "gamma": ready.spec.gamma,
        "eta": ready.eta,
        **{key: figures[key] for key in kept},
    }


def _merged(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the record that all groups share, with the commits of all."""
    commits = dict.fromkeys(commit for record in records for commit in record["commits"])
    names = ("command", "identity", "cores", "load_average")
    first = {name: records[0][name] for name in names}
    identity = {name: value for name, value in first["identity"].items() if name != "methods"}
    times = {"began": records[0]["began"], "ended": records[-1]["ended"]}
    return first | {"identity": identity, "commits": list(commits)} | times


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("kind", choices=KINDS, help="what is varied")
    add("adapters", nargs="*", type=Path, metavar="DIR", help="adapter directories, for adapters")
    add("--model", default="joey", help="as for kangaroo_jax.load (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32 on a CPU, else bfloat16)")
    add("--gammas", type=_numbers(int), default=list(range(1, 9)), metavar="N,N", help="for grid (default: 1 to 8)")
    tenths = [tenth / 10 for tenth in range(10)]
    add("--etas", type=_numbers(float), default=tenths, metavar="P,P", help="for grid (default: 0 to 0.9)")
    add("--gamma", type=int, metavar="N", help="for adapters: most tokens drafted in a round (default: each one's own)")
    add("--eta", type=float, metavar="P", help="for adapters: confidence that ends a draft (default: each one's own)")
    add("--questions", type=Path, default=None, metavar="FILE", help="as for bench.spec_bench (joey has its own)")
    add("--per-category", type=int, default=4, metavar="N", help="questions of each category (default: %(default)s)")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="token budget (default: %(default)s)")
    add("--repeats", type=int, default=2, metavar="N", help="runs (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help="where everything goes (default: runs/ablate/MODEL/KIND)")
    add("--force", action="store_true", help="remove the answers that --out holds, and begin anew")
    return parser


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the model, and refuse what cannot be run before one is loaded.

    Raises:
        ValueError: if questions or adapters are missing, or a number is out of range.
    """
    if args.questions is None and args.model not in EMBEDDED:
        raise ValueError(f"no questions for {args.model}; pass --questions FILE, such as Spec-Bench's question.jsonl")
    if (args.kind == "adapters") != bool(args.adapters):
        wanted = (
            "adapters needs adapter directories" if args.kind == "adapters" else "grid takes no adapter directories"
        )
        raise ValueError(f"{wanted}; see --help")
    for name, least in (("max_new_tokens", 2), ("repeats", 1), ("per_category", 1)):  # The prefill gives one token.
        if (value := getattr(args, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    args.questions = args.questions or JOEY_QUESTIONS
    args.out = args.out or Path("runs", "ablate", Path(args.model).resolve().name, args.kind)
    return args


def _numbers(kind: Any) -> Any:
    """Return a reader of numbers with commas between them."""

    def read(text: str) -> list[Any]:
        try:
            return [kind(word) for word in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,2,3") from None

    return read


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit status: 0, 1 if float32 ids differed, 2 on bad input, 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    return exit_status(lambda: run(checked(args), words), afterwards=GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
