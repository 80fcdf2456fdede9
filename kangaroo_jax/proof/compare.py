"""Kangaroo against plain decoding on the same prompts: are the ids the same, and how much sooner are they there?"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from kangaroo_jax.api import generate
from kangaroo_jax.engine import Generation, asked
from kangaroo_jax.params import Params

REPETITION_PERIOD = 64
REPETITION_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Pair:
    """What one prompt gave.

    Attributes:
        name: where the prompt is from.
        prompt: the prompt.
        kangaroo: the last Kangaroo run.
        plain: the last plain run.
        kangaroo_seconds: wall seconds of each Kangaroo run, prefill included, compilation not.
        plain_seconds: the same of each plain run; run i of both were neighbours in time.
        steady: whether the earlier runs of each method gave the same ids as its last.
    """

    name: str
    prompt: Any
    kangaroo: Generation
    plain: Generation
    kangaroo_seconds: tuple[float, ...]
    plain_seconds: tuple[float, ...]
    steady: bool = True

    @property
    def identical(self) -> bool:
        """Whether all runs of both methods, the unmeasured ones too, gave the same ids and the same end."""
        return self.steady and _ended(self.kangaroo) == _ended(self.plain)

    @property
    def speedup(self) -> float:
        """Median over neighbouring runs of plain time over Kangaroo time."""
        return statistics.median(
            plain / kangaroo for plain, kangaroo in zip(self.plain_seconds, self.kangaroo_seconds, strict=True)
        )

    @property
    def repeats(self) -> bool:
        """Whether the continuation is one repeated pattern, which any draft model finds easy."""
        return is_repetition(self.plain.token_ids)


def _ended(out: Generation) -> tuple[tuple[int, ...], str]:
    return out.token_ids, out.finish_reason


def is_repetition(ids: Sequence[int]) -> bool:
    """Tell whether a text's second half merely goes on with one pattern of at most 64 tokens.

    True if some period p <= 64 explains 90 % of the tokens of the second half: ``ids[i] == ids[i - p]``.
    """
    half = len(ids) // 2
    if half < 8:
        return False
    return any(
        sum(ids[i] == ids[i - period] for i in range(half, len(ids))) >= REPETITION_SHARE * (len(ids) - half)
        for period in range(1, min(REPETITION_PERIOD, half) + 1)
    )


def built_in(params: Params, shown: bool = False) -> list[dict[str, Any]]:
    """Return names and prompts for a model: questions if it answers messages, else texts that joey was not trained on.

    Args:
        params: from ``load``.
        shown: the few questions whose answers are shown, and not those that are measured; texts are all both.
    """
    if asked(params, "") == "":
        return read_prompts()
    rows = read_prompts(built_in="shown" if shown else "questions")
    return [{**row, "prompt": asked(params, row["prompt"])} for row in rows]


def read_prompts(path: Path | None = None, built_in: str = "prompts") -> list[dict[str, str]]:
    """Read prompts: JSON lines with ``prompt`` and, optionally, ``name``; default: the built-in ones of a name.

    Raises:
        ValueError: if the file is missing, empty, or a line is not such an object.
    """
    if path is None:
        name = f"built-in {built_in}"
        text = resources.files("kangaroo_jax").joinpath(f"assets/{built_in}.jsonl").read_text("utf-8")
    else:
        name = str(path)
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            raise ValueError(f"cannot read prompts from {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text; write one JSON object with a 'prompt' per line") from None
    prompts = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError(f'{name}, line {number}: expected an object like {{"prompt": "text"}}')
        prompts.append({"name": str(row.get("name", f"prompt {number}")), "prompt": row["prompt"]})
    if not prompts:
        raise ValueError(f"{name} holds no prompts; write one JSON object with a 'prompt' per line")
    return prompts


def compare(
    params: Params,
    prompts: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int = 128,
    gamma: int | None = None,
    eta: float | None = None,
    siblings: int | None = None,
    lookup: int | None = None,
    repeats: int = 3,
    tick: Callable[[], Any] = lambda: None,
) -> list[Pair]:
    """Run both methods on every prompt, in turn, after one unmeasured run of each that compiles and warms up.

    Args:
        params: from ``load``.
        prompts: a name and a prompt each, as from ``built_in`` or ``read_prompts``.
        max_new_tokens: token budget of each run.
        gamma: as for ``generate``.
        eta: as for ``generate``.
        siblings: as for ``generate``.
        lookup: as for ``generate``.
        repeats: measured runs of each method on each prompt, at least 1.
        tick: called after every measured pair of runs.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be at least 1")
    how: dict[str, Any] = {"gamma": gamma, "eta": eta, "siblings": siblings, "lookup": lookup}

    def run(method: str, prompt: Any) -> Generation:
        extra = how if method == "kangaroo" else {}
        return generate(params, prompt, method=method, max_new_tokens=max_new_tokens, **extra)

    pairs = []
    for row in prompts:
        times: dict[str, list[float]] = {"plain": [], "kangaroo": []}
        last = {method: run(method, row["prompt"]) for method in times}
        ends = {method: {_ended(out)} for method, out in last.items()}
        for repeat in range(repeats):
            for method in sorted(times, reverse=repeat % 2 == 0):  # In turn first, so that drift favours neither.
                out = last[method] = run(method, row["prompt"])
                times[method].append(out.stats.prefill_seconds + out.stats.decode_seconds)
                ends[method].add(_ended(out))
            tick()
        pairs.append(
            Pair(
                name=row["name"],
                prompt=row["prompt"],
                kangaroo=last["kangaroo"],
                plain=last["plain"],
                kangaroo_seconds=tuple(times["kangaroo"]),
                plain_seconds=tuple(times["plain"]),
                steady=all(len(found) == 1 for found in ends.values()),
            )
        )
    return pairs


def summarise(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the figures of a comparison.

    ``speedup`` is the median over prompts of the median paired ratio; prompts whose continuation is one repeated
    pattern flatter it, so ``speedup_without_repetition`` is the same without them (None when none is left).
    """
    fresh = [pair.speedup for pair in pairs if not pair.repeats]
    rounds = sum(pair.kangaroo.stats.rounds for pair in pairs)
    committed = sum(sum(pair.kangaroo.stats.accept_lengths) for pair in pairs)

    def rate(method: str) -> float:
        seconds = sum(statistics.median(getattr(pair, f"{method}_seconds")) for pair in pairs)
        return sum(len(getattr(pair, method).token_ids) for pair in pairs) / seconds if seconds else 0.0

    return {
        "plain_tokens_per_second": rate("plain"),
        "kangaroo_tokens_per_second": rate("kangaroo"),
        "speedup": statistics.median(pair.speedup for pair in pairs),
        "speedup_without_repetition": statistics.median(fresh) if fresh else None,
        "repetitive_prompts": len(pairs) - len(fresh),
        "compression_rate": committed / rounds if rounds else 1.0,
        "identical": all(pair.identical for pair in pairs),
        "prompts": len(pairs),
        "new_tokens": sum(len(pair.kangaroo.token_ids) for pair in pairs),
    }
