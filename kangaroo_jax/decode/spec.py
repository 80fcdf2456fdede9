"""What a compiled decode loop depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxtyping import Array

from kangaroo_jax.decode.accept import accept_greedy, accept_sampled
from kangaroo_jax.decode.drafter import Drafter
from kangaroo_jax.decode.kangaroo import KANGAROO, Propose, propose
from kangaroo_jax.model import AdapterConfig, LlamaConfig


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """What the compiled decode loop depends on; a new value of any field compiles anew.

    Attributes:
        config: shape of the target.
        exit_layer: layers the draft model shares with the target (l); 0 if it is a model of its own, or none.
        gamma: largest number of tokens drafted in one line, and so accepted in one round; 0 decodes plainly.
        adapter: what the adapter computes; None if there is none.
        sample: whether tokens are drawn at random, or the most likely one is taken.
        truncate: whether top_k and top_p are applied to what is drawn from.
        propose: drafts from a hidden state; replaced in tests by an oracle and a fool.
        accept: the rule of acceptance when tokens are drawn; replaced in tests by wrong ones.
        agree: the rule of acceptance when the most likely tokens are taken; replaced where a measurement forces it.
        drafter: how tokens are drafted; Kangaroo's way unless told otherwise.
    """

    config: LlamaConfig
    exit_layer: int
    gamma: int
    adapter: AdapterConfig | None = dataclasses.field(default_factory=AdapterConfig)
    sample: bool = False
    truncate: bool = False
    propose: Propose = propose
    accept: Callable[..., tuple[Array, Array]] = accept_sampled
    agree: Callable[..., Array] = accept_greedy
    drafter: Drafter = KANGAROO

    @property
    def rows(self) -> int:
        """Rows of a verification: the newest token, what is drafted, and padding."""
        return self.drafter.rows(self.gamma)

    @property
    def adapter_used(self) -> bool:
        """Whether anything is drafted with an adapter."""
        return self.gamma > 0 and self.adapter is not None

    @property
    def adapter_cached(self) -> bool:
        """Whether a state has a cache for the adapter."""
        return self.adapter_used and self.adapter is not None and self.adapter.made_of.cached

    @property
    def for_prefill(self) -> DecodeSpec:
        """The spec of the prefill that serves this one: the same for each gamma above 0 with as many rows."""
        if self.drafter is not KANGAROO:
            return self
        return dataclasses.replace(self, gamma=max(self.rows - 8, 1) if self.gamma else 0)
