"""kangaroo_jax beside transformers' ``generate``: the same checkpoint, prompts and machine, greedily, in turn.

python -m bench.peers                                      joey, the built-in prompts
python -m bench.peers --model DIR --questions FILE         first turns of Spec-Bench's questions
python -m bench.peers --model vicuna-7b --hf DIR           a converted model, and the directory it was made from

transformers runs plainly, with prompt lookup (``prompt_lookup_num_tokens``), and with its own early exit
(``assistant_early_exit``: the model's first layers and its own head draft, as they are, without an adapter). It needs
torch, which kangaroo_jax does not: pip install torch. Where both use one GPU, set XLA_PYTHON_CLIENT_PREALLOCATE=false,
or JAX leaves torch no memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

import kangaroo_jax
from bench.questions import prompt_of, read_questions
from kangaroo_jax.compare import read_prompts
from kangaroo_jax.prompts import prompt_ids
from kangaroo_jax.store import resolve
from kangaroo_jax.store.files import whole_file

OURS = ("plain", "kangaroo")
THEIRS = ("transformers", "transformers-lookup", "transformers-early-exit")
Generate = Callable[[list[int]], list[int]]


def their_directory(name: str) -> Path:
    """Return the directory of a checkpoint that transformers can read.

    Raises:
        ValueError: if there is none, or it holds a converted checkpoint only.
    """
    directory = resolve(name)
    if not [*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")]:
        raise ValueError(
            f"{directory} has no weights that transformers reads (*.safetensors, pytorch_model*.bin): "
            "pass --hf with the Hugging Face directory that it was converted from"
        )
    return directory


def check_torch() -> None:
    """Raise ValueError if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError("transformers' generate needs torch, and it is not installed: pip install torch")


class Transformers:
    """A checkpoint as transformers runs it, on torch's first GPU if there is one.

    Attributes:
        device: where it runs.
        version: versions of transformers and torch.
    """

    def __init__(self, directory: Path, dtype: str) -> None:
        """Load the checkpoint; ``check_torch`` first."""
        import transformers

        transformers.logging.set_verbosity_error()  # It would warn of its own early exit's options.
        transformers.logging.disable_progress_bar()
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        # torch is transformers' own; this project imports it nowhere.
        self._torch: Any = sys.modules["torch"]
        self.device = "cuda" if self._torch.cuda.is_available() else "cpu"
        self._model.to(self.device).eval()
        self.version = f"transformers {transformers.__version__}, torch {self._torch.__version__}"

    def generate(self, ids: Sequence[int], tokens: int, eos: Sequence[int], **options: Any) -> list[int]:
        """Return the new ids of greedy decoding, EOS included; ``options`` are ``generate``'s own."""
        prompt = self._torch.tensor([list(ids)], device=self.device)
        out = self._model.generate(
            prompt,
            attention_mask=self._torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=list(eos) or None,
            pad_token_id=0,
            **options,
        )
        return out[0, len(ids) :].tolist()


def methods(params: kangaroo_jax.Params, theirs: Transformers, args: argparse.Namespace) -> dict[str, Generate]:
    """Return what is compared, by name: functions from a prompt's ids to new ids."""
    tokens, eos = args.max_new_tokens, params.config.eos_token_id

    def ours(method: str) -> Generate:
        return lambda ids: list(
            kangaroo_jax.generate(params, ids, method=method, max_new_tokens=tokens, eos_token_id=eos).token_ids
        )

    options: dict[str, dict[str, Any]] = {"transformers": {}}
    options["transformers-lookup"] = {"prompt_lookup_num_tokens": args.lookup_tokens}
    options["transformers-early-exit"] = {"assistant_early_exit": args.early_exit}
    found: dict[str, Generate] = {method: ours(method) for method in OURS if method == "plain" or params.draft}
    for name in THEIRS:
        found[name] = lambda ids, extra=options[name]: theirs.generate(ids, tokens, eos, **extra)  # type: ignore[misc]
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


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each method tokens per second, on how many prompts its ids are plain's, and median paired ratios.

    A ratio is a base's time over the method's, on prompts for which both gave the same ids: as many tokens.
    """

    def against(base: str, name: str) -> float | None:
        ratios = [
            statistics.median(a / b for a, b in zip(row["seconds"][base], row["seconds"][name], strict=True))
            for row in rows
            if row["ids"][base] == row["ids"][name]
        ]
        return statistics.median(ratios) if ratios else None

    return {
        name: {
            "tokens_per_second": sum(len(row["ids"][name]) for row in rows)
            / sum(statistics.median(row["seconds"][name]) for row in rows),
            "identical": sum(row["ids"][name] == row["ids"]["plain"] for row in rows),
            "against_transformers": against("transformers", name),
            "against_plain": against("plain", name),
        }
        for name in rows[0]["ids"]
    }


def report(figures: Mapping[str, Any]) -> list[str]:
    """Return the figures as lines of text."""
    lines = [
        f"{figures['model']}, {figures['dtype']}, greedy, up to {figures['max_new_tokens']} tokens, prefill included; "
        f"{figures['prompts']} prompts, {figures['repeats']} runs",
        f"jax {figures['jax']} on {figures['jax_device']}; {figures['peers']} on {figures['torch_device']}",
        f"{'':24}{'tokens/s':>9}{'x transformers':>16}{'x plain':>9}   ids as plain's",
    ]
    for name, row in figures["methods"].items():
        ratios = (row["against_transformers"], row["against_plain"])
        texts = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        rate = f"{row['tokens_per_second']:.{0 if row['tokens_per_second'] >= 100 else 1}f}"
        lines.append(f"{name:24}{rate:>9}{texts[0]:>16}{texts[1]:>9}   {row['identical']} of {figures['prompts']}")
    return lines


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Load the model twice, race, and return the figures, as JSON has them."""
    check_torch()
    directory = their_directory(args.hf or args.model)
    params = kangaroo_jax.load(args.model, dtype=args.dtype)
    dtype = str(params.target["embed_tokens"]["embedding"].dtype)
    theirs = Transformers(directory, dtype)
    args.early_exit = args.early_exit or (params.draft.exit_layer if params.draft else 2)
    if not 0 < args.early_exit < params.config.num_hidden_layers:
        most = params.config.num_hidden_layers - 1
        raise ValueError(f"--early-exit is {args.early_exit}; give one of {params.name}'s layers, 1 to {most}")
    if args.questions:
        prompts = [prompt_of(params, question, []) for question in read_questions(args.questions)]
    else:
        prompts = [prompt_ids(params, row["prompt"])[0][0] for row in read_prompts(args.prompts)]
    prompts = prompts[: args.limit]
    bar = tqdm(total=args.repeats * len(prompts), unit="turn", disable=not sys.stderr.isatty())
    rows = race(methods(params, theirs, args), prompts, args.repeats, bar.update)
    bar.close()
    return {
        "model": params.name,
        "dtype": dtype,
        "max_new_tokens": args.max_new_tokens,
        "prompts": len(prompts),
        "repeats": args.repeats,
        "jax": jax.__version__,
        "jax_device": jax.local_devices()[0].device_kind,
        "peers": theirs.version,
        "torch_device": theirs.device,
        "lookup_tokens": args.lookup_tokens,
        "early_exit": args.early_exit,
        "methods": summary(rows),
        "rows": rows,
    }


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
    add("--json", type=Path, metavar="FILE", help="write the figures there, too, with ids and times of every run")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        for name in ("limit", "max_new_tokens", "repeats", "lookup_tokens"):
            if (value := getattr(args, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        figures = measure(args)
        print("\n".join(report(figures)))
        if args.json:
            with whole_file(args.json) as staged:
                staged.write_text(json.dumps(figures) + "\n")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
