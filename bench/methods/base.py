"""A method of decoding, ready to run: how it drafts, its settings, and what it adds to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import kangaroo_jax
from kangaroo_jax import decode as dec
from kangaroo_jax.engine import Kept, Options, Run, plan
from kangaroo_jax.kernels import Packed


@dataclasses.dataclass(frozen=True)
class Ready:
    """A method with its weights on a loaded model. All of them run on one engine and differ in how they draft.

    Attributes:
        name: the method's name in tables and files.
        params: the model.
        spec: how it decodes; ``gamma`` 0 is plain.
        eta: confidence below which drafting stops, for drafters that look at it.
        weights: weights of its own, beside the target's and the adapter's.
        added_parameters: parameters that it adds to the target.
        settings: its settings by name, for the record.
        fewest_rows: rows of a verification where nothing was drafted.
    """

    name: str
    params: kangaroo_jax.Params
    spec: dec.DecodeSpec
    eta: float = 0.0
    weights: Any = None
    added_parameters: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fewest_rows: int = 1

    def generate(self, prompt: Sequence[int], max_new_tokens: int, *more: Any, **given: Any) -> kangaroo_jax.Generation:
        """Continue one prompt greedily; arguments as for ``begin``."""
        run = self.begin(prompt, max_new_tokens, *more, **given)
        while not run.finished:
            run.advance()
        return run.results()[0]

    def begin(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        eos_token_id: Any = None,
        stop_strings: Any = None,
        kept: Kept | None = None,
    ) -> Run:
        """Return a generation after its prefill.

        Args:
            prompt: token ids.
            max_new_tokens: token budget.
            eos_token_id: as for ``kangaroo_jax.generate``.
            stop_strings: as for ``kangaroo_jax.generate``.
            kept: as for ``Run``.
        """
        options = Options(
            max_new_tokens=max_new_tokens, method="plain", eos_token_id=eos_token_id, stop_strings=stop_strings
        )
        checked = plan(self.params, options)
        settings = tuple(dataclasses.replace(each, eta=self.eta) for each in checked.settings)
        own = dataclasses.replace(
            checked, method=self.name, spec=self.spec, settings=settings, drafter_weights=self.weights
        )
        return Run(self.params, [list(prompt)], own, kept)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method that can be asked for by name.

    Attributes:
        name: what it is called on the command line, in files and in tables.
        about: a line on how it drafts.
        source: where it was published.
        defaults: its settings, as published unless ``about`` says otherwise; None is chosen by the model.
        make: puts it on a model; takes the model and the settings.
        needs: what has to be made first, as a command; "" if nothing.
        companion: what that command makes, by its name for ``kangaroo_jax.store.companion``; "" for an adapter.
        candidates: settings that may be faster on another machine than the published ones (``bench.fit``).
        published: what was published, where that is not in ``defaults``.
    """

    name: str
    about: str
    source: str
    defaults: Mapping[str, Any]
    make: Callable[[kangaroo_jax.Params, Mapping[str, Any]], Ready]
    needs: str = ""
    companion: str = ""
    candidates: Sequence[Mapping[str, Any]] = ()
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def count_parameters(tree: Any) -> int:
    """Return how many numbers a tree of weights holds; ``jax.ShapeDtypeStruct`` leaves count like arrays.

    Packed matrices count without their padding. Of an adapter with a draft vocabulary neither its ids nor the columns
    of the target's head for them count.
    """
    if "draft_vocabulary" in tree:
        tree = {name: part for name, part in tree.items() if name not in ("lm_head", "draft_vocabulary")}
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Packed))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)
