"""kangaroo_jax beside transformers' ``generate`` and llama.cpp: the same checkpoint and prompts, greedily, in turn.

python -m bench.peers                                      joey, the built-in prompts
python -m bench.peers --model DIR --questions FILE         first turns of Spec-Bench's questions
python -m bench.peers --model vicuna-7b --hf DIR           a converted model, and the directory it was made from
python -m bench.peers --gguf joey.gguf --threads 2         llama.cpp, too

transformers runs plainly, with prompt lookup (``prompt_lookup_num_tokens``), and with its own early exit
(``assistant_early_exit``: the model's first layers and its own head draft, as they are, without an adapter). It needs
torch, which kangaroo_jax does not: pip install torch. Where both use one GPU, set XLA_PYTHON_CLIENT_PREALLOCATE=false,
or JAX leaves torch no memory.

llama.cpp decodes plainly. It needs a GGUF file of the checkpoint, and its Python package, compiled for this machine:

CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
pip download --no-deps --no-binary llama-cpp-python llama-cpp-python    its sources have convert_hf_to_gguf.py, in
tar xf llama_cpp_python-*.tar.gz                                        vendor/llama.cpp; that needs torch
python -m bench.gguf_source --model joey --out joey-source              a tokenizer that the converter knows
python llama_cpp_python-*/vendor/llama.cpp/convert_hf_to_gguf.py joey-source --outtype bf16 --outfile joey.gguf

The fourth line is for joey and for random models of bench.shapes; other directories are converted as they are.
--outtype may be f16, too. llama.cpp rounds in other places than kangaroo_jax does, so its ids may differ.
Without torch, llama.cpp alone is compared with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import kangaroo_jax
from bench.llama_cpp_peers import KV_TYPES, LlamaCpp, check_gguf, physical_cores
from bench.peers_report import report, summary
from bench.question_set import prompt_of, read_questions
from bench.transformers_peers import Transformers, check_torch, their_directory
from kangaroo_jax.engine import prompt_ids
from kangaroo_jax.progress import progress
from kangaroo_jax.proof import read_prompts
from workshop.command import check_counts, exit_status
from workshop.places import check_file, write_figures

OURS = ("plain", "kangaroo")
THEIRS = ("transformers", "transformers-lookup", "transformers-early-exit")
Generate = Callable[[list[int]], list[int]]
Peers = dict[str, Transformers | LlamaCpp]


def methods(params: kangaroo_jax.Params, args: argparse.Namespace, theirs: Peers) -> dict[str, Generate]:
    """Return what is compared, by name: functions from a prompt's ids to new ids."""
    tokens, eos = args.max_new_tokens, params.config.eos_token_id

    def ours(method: str) -> Generate:
        return lambda ids: list(
            kangaroo_jax.generate(params, ids, method=method, max_new_tokens=tokens, eos_token_id=eos).token_ids
        )

    def other(peer: Transformers | LlamaCpp, **options: Any) -> Generate:
        return lambda ids: peer.generate(ids, tokens, eos, **options)

    found: dict[str, Generate] = {method: ours(method) for method in OURS if method == "plain" or params.draft}
    if (peer := theirs.get("transformers")) is not None:
        extra: list[dict[str, Any]] = [
            {},
            {"prompt_lookup_num_tokens": args.lookup_tokens},
            {"assistant_early_exit": args.early_exit},
        ]
        found |= {name: other(peer, **options) for name, options in zip(THEIRS, extra, strict=True)}
    if (peer := theirs.get("llama.cpp")) is not None:
        found["llama.cpp"] = other(peer)
    return found


def race(
    calls: Mapping[str, Generate], prompts: Sequence[list[int]], repeats: int, tick: Callable[[], Any] = lambda: None
) -> list[dict[str, Any]]:
    """Run all methods on every prompt in turn, after one unmeasured run of each.

    Args:
        calls: methods by name.
        prompts: ids of the prompts.
        repeats: measured runs of each.
        tick: called after every turn.

    Returns:
        For each prompt the ids of every method, and its wall seconds, prefill included; run i of all of them were
        neighbours.
    """
    rows = []
    for prompt in prompts:
        ids = {name: call(prompt) for name, call in calls.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(repeats):
            for name in list(calls)[:: 1 if repeat % 2 else -1]:  # In turn first, so that drift favours none.
                began = time.perf_counter()
                calls[name](prompt)
                seconds[name].append(time.perf_counter() - began)
            tick()
        rows.append({"prompt_tokens": len(prompt), "ids": ids, "seconds": seconds})
    return rows


def transformers_directory(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """Return where transformers finds the checkpoint, or None and why it is left out, if there is llama.cpp instead.

    Raises:
        ValueError: if transformers cannot run and nothing else is to be compared, or its directory was given.
    """
    try:
        check_torch()
        return their_directory(args.hf or args.model), []
    except ValueError as error:
        if args.hf or not args.gguf:
            raise
        return None, [str(error)]


def load_peers(directory: Path | None, params: kangaroo_jax.Params, args: argparse.Namespace, length: int) -> Peers:
    """Return what can be compared with, loaded; sequences have at most ``length`` tokens."""
    theirs: Peers = {}
    if args.gguf:
        theirs["llama.cpp"] = LlamaCpp(args.gguf, params.config, length, args.threads, args.kv_type)
    if directory is not None:
        theirs["transformers"] = Transformers(directory, _dtype(params))
    return theirs


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Load the model for each, race, and return the figures, as JSON has them."""
    directory, left_out = transformers_directory(args)
    if args.gguf:
        check_gguf(args.gguf)
    params = kangaroo_jax.load(args.model, dtype=args.dtype)
    args.early_exit = args.early_exit or (params.draft.exit_layer if params.draft else 2)
    if not 0 < args.early_exit < params.config.num_hidden_layers:
        most = params.config.num_hidden_layers - 1
        raise ValueError(f"--early-exit is {args.early_exit}; give one of {params.name}'s layers, 1 to {most}")
    if args.questions:
        prompts = [prompt_of(params, question, []) for question in read_questions(args.questions)]
    else:
        prompts = [prompt_ids(params, row["prompt"])[0][0] for row in read_prompts(args.prompts)]
    prompts = prompts[: args.limit]
    longest = min(max(map(len, prompts)) + args.max_new_tokens, params.config.max_position_embeddings)
    theirs = load_peers(directory, params, args, longest)
    bar = progress(total=args.repeats * len(prompts), unit="turn")
    rows = race(methods(params, args, theirs), prompts, args.repeats, bar.update)
    bar.close()
    return {
        "model": params.name,
        "dtype": _dtype(params),
        "max_new_tokens": args.max_new_tokens,
        "prompts": len(prompts),
        "repeats": args.repeats,
        "jax": jax.__version__,
        "jax_device": jax.local_devices()[0].device_kind,
        "peers": [f"{peer.version} on {peer.device}" for peer in theirs.values()],
        "left_out": left_out,
        "lookup_tokens": args.lookup_tokens,
        "early_exit": args.early_exit,
        "methods": summary(rows),
        "rows": rows,
    }


def _dtype(params: kangaroo_jax.Params) -> str:
    return str(params.dtype)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="joey", help="as for kangaroo_jax.load (default: %(default)s)")
    add("--hf", metavar="DIR", help="the same checkpoint for transformers, where --model is a converted one")
    add("--dtype", choices=("float32", "bfloat16"), help="of all weights (default: fp32 on a CPU, else bf16)")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--prompts", type=Path, metavar="FILE", help="JSON lines with a 'prompt' (default: built-in)")
    texts.add_argument("--questions", type=Path, metavar="FILE", help="Spec-Bench's questions; first turns are run")
    add("--limit", type=int, help="only so many prompts, the first ones")
    add("--max-new-tokens", type=int, default=128, help="token budget of each run (default: %(default)s)")
    add("--repeats", type=int, default=3, help="measured runs of each method on a prompt (default: %(default)s)")
    add("--lookup-tokens", type=int, default=10, help="tokens that prompt lookup drafts (default: %(default)s)")
    add("--early-exit", type=int, metavar="LAYER", help="exit of transformers' draft (default: the adapter's, or 2)")
    add("--gguf", type=Path, metavar="FILE", help="the same checkpoint for llama.cpp, which is then compared, too")
    cores = physical_cores()
    add("--threads", type=int, default=cores, help="of llama.cpp (default: %(default)s); torch has OMP_NUM_THREADS")
    add("--kv-type", choices=tuple(KV_TYPES), default="f16", help="of llama.cpp's cache (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too, with ids and times of every run")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status.

    Raises:
        ValueError: if something asked for cannot be run.
    """
    check_counts(args, "limit", "max_new_tokens", "repeats", "lookup_tokens", "threads")
    check_file("--json", args.json)
    figures = measure(args)
    print("\n".join(report(figures)))
    write_figures(args.json, figures)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status: 0, 2 on bad input, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
