"""What is measured while adapters are trained: on held-out data, and in real decoding, by which the best are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from kangaroo_jax import Params
from kangaroo_jax.model import with_draft_head
from train.best import BEST, MEASURE, Best
from train.data import Data
from train.decoding import decoding_figures, held_out_prompts
from train.preparation import Run
from train.run_log import SEEN
from train.step import make_eval_step, one_copy, place, place_batch


def held_out_evaluation(
    loss: Callable[..., Any], target: Any, data: Data, mesh: Mesh | None = None, parts: int = 1
) -> Callable[[int, Any], dict[str, float]]:
    """Build ``(step, adapters) -> held-out means`` over a fixed set of batches of held-out data.

    The figures are ``held_out_loss`` and so on, of several adapters also ``NAME/held_out_loss``, and ``seen_tokens``:
    tokens trained on until then, without padding.
    """
    step_fn = make_eval_step(loss, mesh)
    batches = [place_batch(batch, mesh) for batch in data.held_out_batches(parts=parts)]

    def evaluate(step: int, adapters: Any) -> dict[str, float]:
        sums = [step_fn(adapters, target, batch) for batch in batches]
        total = {name: float(sum(part[name] for part in sums)) for name in sums[0]}
        means = {_held_out(name): total[name] / total["tokens"] for name in total if name != "tokens"}
        return means | {SEEN: data.seen(step)}

    return evaluate


class Decoding:
    """Decodes a few held-out prompts with every adapter as it is, and keeps the best one of each name.

    Attributes:
        best: where the best ones are, by name.
    """

    def __init__(self, run: Run, target: Any, writes: bool) -> None:
        folder = run.workspace / BEST
        several = len(run.drafts) > 1
        self.best = {
            name: Best(folder / name if several else folder, run.config, draft) for name, draft in run.drafts.items()
        }
        self._run, self._writes = run, writes
        # One device decodes, or those that share a copy; the share of one of a replicated target is all of it.
        self._mesh = None
        if run.mesh:
            self._target, self._mesh = one_copy(target, run.mesh)
        else:
            self._target = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, target)
        self._prompts = held_out_prompts(run.data.held_out_rows(run.options.decode_prompts))

    def evaluate(self, step: int, adapters: Any) -> dict[str, float]:
        """Return what decoding gave: the figures of the only adapter; of several those of each, as ``NAME/...``."""
        if not self._writes or not self._prompts:
            return {}
        figures = {name: self._decode(step, name, params) for name, params in adapters.items()}
        if len(figures) == 1:
            return next(iter(figures.values()))
        own = {f"{name}/{key}": value for name, found in figures.items() for key, value in found.items()}
        return own | {MEASURE: max(found[MEASURE] for found in figures.values())}

    def _decode(self, step: int, name: str, params: Any) -> dict[str, float]:
        run, dtype = self._run, self._target["norm"]["scale"].dtype
        host = jax.device_get(params)
        adapter = jax.tree.map(lambda leaf: leaf.astype(dtype), host)
        adapter = with_draft_head(self._target, run.whole(adapter))
        adapter = place(adapter, self._mesh) if self._mesh else jax.device_put(adapter)
        loaded = Params(self._target, adapter, run.config, run.drafts[name], run.tokenizer, run.name)
        figures = decoding_figures(loaded, self._prompts)
        self.best[name].offer(step, run.whole(host), figures)
        return figures


def figures_of(name: str, figures: Mapping[str, float], several: bool) -> dict[str, float]:
    """Return one adapter's own figures, under plain names, of those of a run.

    Args:
        name: of the adapter.
        figures: of the run.
        several: whether the run has more than one adapter.
    """
    if not several:
        return dict(figures)
    return {key.removeprefix(f"{name}/"): value for key, value in figures.items() if key.startswith(f"{name}/")}


def _held_out(name: str) -> str:
    """Return the name of a held-out figure: ``held_out_loss`` of ``loss``, ``x/held_out_loss`` of ``x/loss``."""
    owner, slash, key = name.rpartition("/")
    return f"{owner}{slash}held_out_{key}"
