"""tune: which gamma, eta and adapter are fastest here, by a cost model that real runs then check."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kangaroo_jax.api import generate
from kangaroo_jax.checks import integer, real
from kangaroo_jax.engine import Generation, Options, plan, prompt_ids
from kangaroo_jax.params import Params, with_adapter
from kangaroo_jax.proof import built_in
from kangaroo_jax.store import find_adapter
from kangaroo_jax.tuning.outcome import Setting, Tuning
from kangaroo_jax.tuning.predict import COST_REPEATS, predict
from kangaroo_jax.version import versions

ETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def tune(
    params: Params,
    prompts: Any = None,
    *,
    adapters: Sequence[str | os.PathLike[str]] = (),
    exit_layer: int | None = None,
    max_new_tokens: int = 128,
    max_gamma: int = 15,
    etas: Sequence[float] = ETAS,
    candidates: int = 3,
    repeats: int = 3,
    tick: Callable[[], Any] = lambda: None,
) -> Tuning:
    """Find the gamma and eta, and of several adapters the one, that decode these prompts fastest on this machine.

    One run for each prompt drafts ``max_gamma`` tokens at every position; from it follow the rounds of every gamma and
    eta, exactly (``kangaroo_jax.tuning.replay``). What a round and a drafted token take is measured
    (``kangaroo_jax.tuning.costs``). Both give the time of every setting. The ones that look best are then run for real,
    in turn with plain decoding, and the fastest of them is chosen. Greedy decoding of one sequence is what is tuned.

    >>> tuning = kangaroo_jax.tune(params)                              # doctest: +SKIP
    >>> print(tuning)                                                   # doctest: +SKIP
    >>> kangaroo_jax.generate(tuning.params, "def fibonacci(n):")       # doctest: +SKIP
    >>> tuning.save("adapter-dir")  # load() uses the choice from now on  # doctest: +SKIP

    Args:
        params: from ``load``.
        prompts: as for ``generate``, one or several; they should be like those to come. Default: the built-in ones.
        adapters: adapter directories to compare, of any exit layers; default: the adapter that ``params`` have.
        exit_layer: the layer these were trained after, where they do not say it.
        max_new_tokens: tokens to generate for each prompt, at least 2.
        max_gamma: the largest gamma to look at. A verification has rows for 7, 15, 23, ... drafted tokens.
        etas: the thresholds to look at; an adapter's own is added.
        candidates: how many settings to measure, each of another gamma or adapter; the best of every adapter comes on
            top, and so does what the first adapter had, unless its gamma is above ``max_gamma``.
        repeats: measured runs of each of them on each prompt.
        tick: called ``steps(...)`` times, for a progress bar.

    Returns:
        The choice, and all settings with predicted and measured speedup.

    Raises:
        ValueError: if there is no adapter, an argument is out of range, or no prompt gives more than one token.
    """
    integer("max_new_tokens", max_new_tokens, 2)
    integer("max_gamma", max_gamma, 1, params.config.max_position_embeddings if isinstance(params, Params) else None)
    integer("candidates", candidates, 1)
    integer("repeats", repeats, 1)
    etas = [real("etas", eta, "probability thresholds of 0 or more") for eta in etas]
    paths = _paths(params, adapters)
    models = [params if path is None else with_adapter(params, path, exit_layer) for path in paths]
    texts = [row["prompt"] for row in built_in(params)] if prompts is None else prompts
    ids, _ = prompt_ids(params, texts)

    found = [predict(index, model, ids, max_gamma, etas, max_new_tokens, tick) for index, model in enumerate(models)]
    settings = [setting for predicted, _ in found for setting in predicted]
    first = models[0].draft
    assert first is not None
    before = (first.gamma, float(first.eta))
    short = _shortlist(settings, candidates, before)
    measured, plain, identical = _measure(models, short, ids, max_new_tokens, repeats, tick)
    settings = [dataclasses.replace(setting, measured=measured.get(setting)) for setting in settings]
    chosen = max((setting for setting in settings if setting.measured), key=lambda setting: setting.measured or 0.0)
    return Tuning(
        params=_with_choice(models[chosen.adapter], chosen),
        chosen=chosen,
        settings=tuple(sorted(settings, key=lambda setting: -setting.predicted)),
        before=before,
        adapters=tuple(paths),
        costs=tuple(cost for _, cost in found),
        plain_tokens_per_second=sum(len(out.token_ids) for out in plain) / sum(_seconds(out) for out in plain),
        identical=identical,
        prompts=len(ids),
        new_tokens=sum(len(out.token_ids) for out in plain),
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        versions=versions(("kangaroo_jax", "jax")),
    )


def steps(prompts: int, adapters: int = 1, repeats: int = 3) -> int:
    """Return how often ``tune`` calls ``tick`` for so many prompts, adapters and repeats."""
    return adapters * (prompts + COST_REPEATS) + prompts * (1 + repeats)


def _paths(params: Params, adapters: Sequence[str | os.PathLike[str]]) -> list[Path | None]:
    """Return the directories of the adapters to compare; None is the one that the model has.

    Raises:
        ValueError: if it is no model, one has no adapter, or a directory is missing.
    """
    if isinstance(adapters, str | os.PathLike):
        raise ValueError(f"adapters is {adapters!r:.60}; pass a list of adapter directories")
    plan(params, Options(method="plain" if len(adapters) else "kangaroo"))  # Is it a model, and is there an adapter?
    return [find_adapter(Path(), adapter) for adapter in adapters] or [None]


def _with_choice(model: Params, chosen: Setting) -> Params:
    """Return the model with the chosen defaults; plain decoding where the fastest setting is no faster."""
    assert model.draft is not None
    method = "kangaroo" if chosen.pays else "plain"
    return model.replace(draft=dataclasses.replace(model.draft, gamma=chosen.gamma, eta=chosen.eta, method=method))


def _shortlist(settings: Sequence[Setting], candidates: int, before: tuple[int, float]) -> list[Setting]:
    """Return the settings to measure.

    Neighbouring eta of one gamma are often the same run, so each gamma of an adapter is there with its best eta alone.
    ``before``, the first adapter's gamma and eta, is there too, if it is among the settings: a gamma above those looked
    at is not.
    """
    ranked = sorted(settings, key=lambda setting: -setting.predicted)
    best: dict[Any, Setting] = {}
    for setting in ranked:
        best.setdefault((setting.adapter, setting.gamma), setting)
    short = list(best.values())[:candidates]
    for adapter in {setting.adapter for setting in settings}:
        short.append(next(setting for setting in ranked if setting.adapter == adapter))
    short += [setting for setting in settings if setting.adapter == 0 and (setting.gamma, setting.eta) == before]
    return list(dict.fromkeys(short))


def _measure(
    models: Sequence[Params],
    short: Sequence[Setting],
    prompts: list[list[int]],
    max_new_tokens: int,
    repeats: int,
    tick: Callable[[], Any],
) -> tuple[dict[Setting, float], list[Generation], bool]:
    """Run plain decoding and the settings in turn, after one unmeasured run of each that compiles and warms up.

    Returns:
        The speedup of every setting, a plain generation of every prompt, and whether all ids were the same.
    """

    def run(setting: Setting | None, prompt: list[int]) -> Generation:
        if setting is None:
            return generate(models[0], prompt, method="plain", max_new_tokens=max_new_tokens)
        how: dict[str, Any] = {"method": "kangaroo", "gamma": setting.gamma, "eta": setting.eta}
        return generate(models[setting.adapter], prompt, max_new_tokens=max_new_tokens, **how)

    runners: list[Setting | None] = [None, *short]
    plain_seconds, seconds, plain, identical = 0.0, dict.fromkeys(short, 0.0), [], True
    for prompt in prompts:
        warm = [run(setting, prompt) for setting in runners]
        identical &= len({out.token_ids for out in warm}) == 1
        tick()
        times: dict[Setting | None, list[float]] = {setting: [] for setting in runners}
        for repeat in range(repeats):
            for setting in runners[:: -1 if repeat % 2 else 1]:  # In turn first, so that drift favours none.
                out = run(setting, prompt)
                times[setting].append(_seconds(out) / len(out.token_ids))  # Ties of narrow dtypes may end a text early.
                if setting is None:
                    last = out
            tick()
        plain.append(last)
        weight = len(last.token_ids) * statistics.median(times[None])
        plain_seconds += weight
        for setting in short:
            ratio = statistics.median(p / s for p, s in zip(times[None], times[setting], strict=True))
            seconds[setting] += weight / ratio
    return {setting: plain_seconds / total for setting, total in seconds.items()}, plain, identical


def _seconds(out: Generation) -> float:
    return out.stats.prefill_seconds + out.stats.decode_seconds
