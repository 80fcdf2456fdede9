"""How methods of speculative decoding draft; prefill, verification, acceptance, commit, caches and stopping are shared.

Kangaroo is one drafter (``decode.draft``). Others are objects of a subclass of ``Drafter`` in ``DecodeSpec.drafter``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from kangaroo_jax.decode.state import Controls, DecodeState, Weights, newest
from kangaroo_jax.model import KVCache, embed

if TYPE_CHECKING:
    from kangaroo_jax.decode.spec import DecodeSpec


class Tree(struct.PyTreeNode):
    """How the rows of a verification hang together, when they are more than one line of tokens.

    Row 0 is the newest committed token, the root. A row that is no candidate is computed, and never committed.

    Attributes:
        parent: row that each row follows; that of the root, and of rows that are none, is 0, ``[B, R]``.
        depth: distance from the root, ``[B, R]``.
        visible: which rows each row sees: itself and its ancestors, ``[B, R, R]``.
        candidate: rows that hold a drafted token; never the root, ``[B, R]``.
    """

    parent: Int[Array, "B R"]
    depth: Int[Array, "B R"]
    visible: Bool[Array, "B R R"]
    candidate: Bool[Array, "B R"]


class Draft(struct.PyTreeNode):
    """What one drafting phase leaves for verification.

    Attributes:
        tokens: drafted tokens, ``[B, G]``; valid up to ``count``. Of a tree: the tokens of rows 1 to R - 1.
        count: tokens drafted for each sequence, ``[B]``; of a tree, its candidates.
        confidence: top-1 probability of the draft model at each drafted token, ``[B, R]``; valid up to ``count``.
        log_q: log-probabilities each token was drawn with, ``[B, G, V]``; None when the most likely one is taken.
        hidden: ``hidden_states[l]`` of the newest committed token and of every drafted one, ``[B, R, D]``; R is
            ``DecodeSpec.rows``, rows beyond ``count`` are zeros or stale.
        caches: the shallow layers' caches, written at all those positions.
        drafter: what the drafter remembers; Kangaroo's adapter cache is written at all those positions, too.
        tree: how the rows hang together; None is a line, each row after the one before it.
    """

    tokens: Int[Array, "B G"]
    count: Int[Array, " B"]
    confidence: Float[Array, "B R"]
    log_q: Float[Array, "B G V"] | None
    hidden: Float[Array, "B R D"]
    caches: tuple[KVCache, ...]
    drafter: Any
    tree: Tree | None = None


class Verified(struct.PyTreeNode):
    """What a verification found, for the drafter to learn from.

    Attributes:
        tokens: token of each row, the newest committed one first, ``[B, R]``.
        hidden: the last layer's states, before the final norm, ``[B, R, D]``.
        target: the target's own choice after each row, ``[B, R]``.
        path: rows of the accepted tokens, the root first; valid up to ``accepted``, ``[B, gamma + 1]``.
        accepted: accepted tokens, ``[B]``.
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
    ``draft``; the other hooks do nothing here. ``DecodeSpec.gamma`` is the longest line it can draft.
    """

    @property
    def confident(self) -> bool:
        """Whether it drafts lines, and the confidence of their tokens is a probability of its own."""
        return False

    def rows(self, gamma: int) -> int:
        """Return the rows of a verification: ``gamma + 1`` rounded up to a multiple of 8.

        At joey's shape a CPU's product over 8 rows is no slower than one over 4 to 7 (docs/joey.md), and where reading
        the weights takes all the time, as on a GPU, it costs the same.
        """
        return -(-(gamma + 1) // 8) * 8

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

    def learn(self, spec: DecodeSpec, weights: Weights, memory: Any, verified: Verified) -> Any:
        """Return what it remembers after a verification."""
        return memory


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
    assert spec.exit_layer == 0, "the draft model's layers are not the target's"
    newest_token = newest(state)[0]
    spare = spec.rows - 1 - tokens.shape[1]
    rows = jnp.pad(jnp.concatenate([newest_token, tokens], axis=1), ((0, 0), (0, spare)))
    sure = jnp.ones(tokens.shape, jnp.float32) if confidence is None else confidence
    return Draft(
        tokens=tokens,
        count=count.astype(jnp.int32),
        confidence=jnp.pad(sure, ((0, 0), (0, spare + 1))),
        log_q=None,
        hidden=embed(weights["target"], rows),
        caches=(),
        drafter=memory,
        tree=tree,
    )


def tree_of(parent: Int[Array, "B R"], depth: Int[Array, "B R"], candidate: Bool[Array, "B R"], deepest: int) -> Tree:
    """Return the tree in which each row follows its parent; parents come before their children.

    Args:
        parent: row that each row follows.
        depth: distance from the root.
        candidate: rows that hold a drafted token.
        deepest: bound of ``depth``.
    """
    rows = parent.shape[1]
    visible = jnp.broadcast_to(jnp.eye(rows, dtype=bool), (*parent.shape, rows))
    ancestor = parent
    for _ in range(deepest):
        visible |= jax.nn.one_hot(ancestor, rows, dtype=bool)
        ancestor = jnp.take_along_axis(parent, ancestor, axis=1)
    return Tree(parent, depth, visible, candidate)
