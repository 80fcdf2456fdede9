"""What a compiled decode loop depends on, and how methods of speculative decoding draft.

Prefill, verification, acceptance, commit, caches and stopping are shared. Kangaroo is one drafter
(``decode.kangaroo``); others are objects of a subclass of ``Drafter`` in ``DecodeSpec.drafter``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from kangaroo_jax.decode.accept import accept_greedy, accept_sampled
from kangaroo_jax.decode.sampling import Sampling
from kangaroo_jax.decode.state import Controls, DecodeState, Draft, Weights, newest
from kangaroo_jax.decode.tree import Tree
from kangaroo_jax.model import LlamaConfig, embed


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """What the compiled decode loop depends on; a new value of any field compiles anew.

    Attributes:
        config: shape of the target.
        drafter: how tokens are drafted.
        gamma: largest number of tokens drafted in one line, and so accepted in one round; 0 decodes plainly.
        sample: whether tokens are drawn at random, or the most likely one is taken.
        truncate: whether top_k and top_p are applied to what is drawn from, as for ``cut``.
    """

    config: LlamaConfig
    drafter: Drafter
    gamma: int
    sample: bool = False
    truncate: int = False

    @property
    def rows(self) -> int:
        """Rows of a verification: the newest token, what is drafted, and padding."""
        return self.drafter.rows(self.gamma)

    @property
    def for_prefill(self) -> DecodeSpec:
        """The spec of the prefill that serves this one, and perhaps other gammas."""
        return dataclasses.replace(self, gamma=self.drafter.prefill_gamma(self.gamma))

    def sampling(self, controls: Controls) -> Sampling | None:
        """Return how tokens are drawn; None where the most likely ones are taken."""
        return controls.sampling if self.sample else None


class Verified(struct.PyTreeNode):
    """What a verification found, for the drafter to learn from.

    Attributes:
        tokens: token of each row, the newest committed one first, ``[B, R]``.
        hidden: the last layer's states, before the final norm, ``[B, R, D]``.
        target: the target's own choice after each row, ``[B, R]``.
        path: rows of the accepted tokens, the root first; valid up to ``accepted``, ``[B, gamma + 1]``.
        accepted: accepted tokens, as far as the sequence's budget goes, ``[B]``.
        length: committed tokens before this round, ``[B]``.
    """

    tokens: Int[Array, "B R"]
    hidden: Float[Array, "B R D"]
    target: Int[Array, "B R"]
    path: Int[Array, "B G1"]
    accepted: Int[Array, " B"]
    length: Int[Array, " B"]


class Piece(struct.PyTreeNode):
    """A piece of the prompts that the prefill has just run.

    Attributes:
        tokens: the tokens, ``[B, T]``; those beyond a prompt's end are rubbish, which later tokens overwrite.
        positions: their positions, ``[B, T]``; a piece may begin with positions that an earlier one had.
        exit: states after the exit layer, ``[B, T, D]``.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    exit: Float[Array, "B T D"]


@dataclasses.dataclass(frozen=True)
class Drafter:
    """How a method drafts; frozen and hashable, since programs are compiled for it. Its weights are traced.

    What it remembers from round to round is any pytree of arrays, ``DecodeState.drafter``. A subclass has to have
    ``draft``; the other hooks do nothing here. ``DecodeSpec.gamma`` is the longest line it can draft. One of this class
    itself drafts nothing: ``PLAIN``.

    Attributes:
        exit_layer: layers that its draft model shares with the target (l); 0 if it is a model of its own, or none.
    """

    exit_layer: int = dataclasses.field(default=0, kw_only=True)

    # Which drafted tokens are accepted: where the most likely ones are taken, and where tokens are drawn. Another rule
    # is no decoding any more; it is for tests, and for measurements that force an acceptance.
    agree = staticmethod(accept_greedy)
    accept = staticmethod(accept_sampled)

    @property
    def reads_adapter(self) -> bool:
        """Whether it drafts with the adapter, ``weights["adapter"]``."""
        return False

    @property
    def confident(self) -> bool:
        """Whether it drafts lines, and the confidence of their tokens is a probability of its own."""
        return False

    @property
    def forks(self) -> bool:
        """Whether its trees are a line and tokens that follow the root: what a row sees before itself is a line."""
        return False

    def rows(self, gamma: int) -> int:
        """Return the rows of a verification: ``gamma + 1`` rounded up to a multiple of 8.

        At joey's shape a CPU's product over 8 rows is no slower than one over 4 to 7 (docs/joey.md), and where reading
        the weights takes all the time, as on a GPU, it costs the same.
        """
        return -(-(gamma + 1) // 8) * 8

    def prefill_gamma(self, gamma: int) -> int:
        """Return the gamma whose prefill serves this one; where what it remembers does not depend on gamma, fewer."""
        return gamma

    def allocate(self, spec: DecodeSpec, batch: int, slots: int, dtype: jnp.dtype) -> Any:
        """Return what it remembers before anything is read; nothing, here."""
        return None

    def read(self, spec: DecodeSpec, weights: Weights, memory: Any, piece: Piece) -> Any:
        """Return what it remembers after a piece of the prompt."""
        return memory

    def begin(self, spec: DecodeSpec, weights: Weights, memory: Any, last: Float[Array, "B 1 D"]) -> Any:
        """Return what it remembers after the prefill; ``last``: the last layer's states at the prompts' ends."""
        return memory

    def draft(self, spec: DecodeSpec, weights: Weights, state: DecodeState, controls: Controls) -> Draft:
        """Return what is to be verified."""
        raise NotImplementedError

    def learn(self, spec: DecodeSpec, weights: Weights, draft: Draft, verified: Verified) -> Any:
        """Return what it remembers after the verification of a draft; ``draft.drafter`` is what it remembered."""
        return draft.drafter


PLAIN = Drafter()
"""Drafts nothing."""


def token_draft(
    spec: DecodeSpec,
    weights: Weights,
    state: DecodeState,
    tokens: Int[Array, "B G"],
    count: Int[Array, " B"],
    memory: Any,
    tree: Tree | None = None,
    confidence: Float[Array, "B G"] | None = None,
) -> Draft:
    """Return the draft of a method that shares no layers with the target: its exit layer is 0.

    Args:
        spec: static description.
        weights: the target's are read.
        state: the state between two rounds.
        tokens: drafted tokens; at most ``spec.rows - 1``.
        count: valid ones; for a tree, its candidates.
        memory: what the drafter remembers.
        tree: as in ``Draft``.
        confidence: probability that the method gave each token; default 1.
    """
    assert spec.drafter.exit_layer == 0, "the draft model's layers are not the target's"
    newest_token = newest(state)[0]
    spare = spec.rows - 1 - tokens.shape[1]
    rows = jnp.pad(jnp.concatenate([newest_token, tokens], axis=1), ((0, 0), (0, spare)))
    sure = jnp.ones(tokens.shape, jnp.float32) if confidence is None else confidence
    return Draft(
        tokens=tokens,
        count=count.astype(jnp.int32),
        confidence=jnp.pad(sure, ((0, 0), (0, spare + 1))),
        drawn=None,
        hidden=embed(weights["target"], rows),
        caches=(),
        drafter=memory,
        tree=tree,
    )
