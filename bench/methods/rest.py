"""REST: drafts what followed the text's longest suffix in a datastore, as a tree of the most frequent continuations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

import kangaroo_jax
from bench.datastore import COMMAND, load_datastore
from bench.methods.base import Method, Ready
from kangaroo_jax import decode as dec
from kangaroo_jax.checks import integer

SHORTEST_SPAN = 2
"""Shortest suffix that is looked for, as in the published code."""
FEW = 256
"""Matches that take little time to look at: mostly there are fewer."""


class Datastore(struct.PyTreeNode):
    """Texts, one after the other, and the places of all their suffixes in lexicographic order.

    Attributes:
        tokens: unsigned, ``[N]``.
        suffixes: places in ``tokens``, ``[N]``.
    """

    tokens: Int[Array, " N"]
    suffixes: Int[Array, " N"]

    def at(self, places: Int[Array, "*P"]) -> Int[Array, "*P"]:
        """Return the tokens at places; -1, which comes before all tokens, beyond the end."""
        return jnp.where(places < len(self.tokens), self.tokens[places].astype(jnp.int32), -1)


class Prefixes(struct.PyTreeNode):
    """The most frequent beginnings of continuations, parents before their children.

    Attributes:
        token: the last token of each, ``[C]``.
        parent: which prefix it continues, as row of the tree: 0 is the root, i + 1 is prefix i, ``[C]``.
        depth: its length, ``[C]``.
        count: how many continuations begin with it; 0 is no prefix, ``[C]``.
    """

    token: Int[Array, " C"]
    parent: Int[Array, " C"]
    depth: Int[Array, " C"]
    count: Int[Array, " C"]


@dataclasses.dataclass(frozen=True)
class Rest(dec.Drafter):
    """Drafts from ``weights["drafter"]``, a ``Datastore``; the longest continuation is ``DecodeSpec.gamma``.

    Attributes:
        num_draft: drafted tokens.
        max_token_span: longest suffix that is looked for.
        matches: places of the suffix that are looked at.
    """

    num_draft: int
    max_token_span: int
    matches: int

    def rows(self, gamma: int) -> int:
        """Return the root and ``num_draft`` rows, rounded up to a multiple of 8."""
        return super().rows(self.num_draft)

    def draft(
        self, spec: dec.DecodeSpec, weights: dec.Weights, state: dec.DecodeState, controls: dec.Controls
    ) -> dec.Draft:
        """Return a tree of continuations; an empty one where no suffix is in the datastore."""
        store: Datastore = weights["drafter"]

        def one(text: tuple[Int[Array, " S"], Int[Array, ""]]) -> Prefixes:
            match = longest_match(store, *text, self.max_token_span)

            def of(matches: int) -> Prefixes:
                return frequent_prefixes(*continuations(store, *match, matches, spec.gamma), self.num_draft)

            few = min(FEW, self.matches)
            return jax.lax.cond(match[1] <= few, lambda: of(few), lambda: of(self.matches))

        prefixes = jax.lax.map(one, (state.tokens, state.length))  # vmap would look at all matches each time.
        rows = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (1, spec.rows - 1 - self.num_draft))), prefixes)
        candidate = rows.count > 0
        tree = dec.tree_of(rows.parent, rows.depth, candidate, spec.gamma)
        return dec.token_draft(spec, weights, state, rows.token[:, 1:], candidate.sum(1), None, tree)


def longest_match(
    store: Datastore, tokens: Int[Array, " S"], length: Int[Array, ""], max_token_span: int
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Find the longest suffix of a text, of ``max_token_span`` to 2 tokens, that is in the datastore.

    Two binary searches for each of these suffixes, all at once.

    Returns:
        Where in ``store.suffixes`` those that begin with it start, their number (0 if there is none), and its length.
    """
    spans = jnp.arange(max_token_span, SHORTEST_SPAN - 1, -1)
    index = jnp.arange(max_token_span)[None]
    queries = tokens[jnp.clip(length - spans[:, None] + index, 0, len(tokens) - 1)]
    size = len(store.suffixes)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # [2, spans]: the first suffix that is not less than the query, and the first beyond it.
        middle = low + (high - low) // 2  # The sum may be more than an int32 holds.
        start = store.suffixes[jnp.minimum(middle, size - 1)]
        differ = store.at(start[..., None] + index[None]) - queries[None]
        differ = jnp.where((index < spans[:, None])[None], differ, 0)
        where = jnp.argmax(differ != 0, axis=-1, keepdims=True)
        order = jnp.take_along_axis(differ, where, axis=-1)[..., 0]
        right = (low < high) & (order < jnp.array([[0], [1]]))
        return jnp.where(right, middle + 1, low), jnp.where(right | (low >= high), high, middle)

    zero = jnp.zeros((2, len(spans)), jnp.int32)
    first, beyond = jax.lax.fori_loop(0, size.bit_length(), halve, (zero, zero + size))[0]
    found = jnp.where(spans <= length, beyond - first, 0)
    best = jnp.argmax(found > 0)
    return first[best], found[best], spans[best]


def continuations(
    store: Datastore, first: Int[Array, ""], found: Int[Array, ""], span: Int[Array, ""], matches: int, longest: int
) -> tuple[Int[Array, "K L"], Int[Array, ""]]:
    """Return up to ``longest`` tokens that followed each of ``found`` places, in lexicographic order.

    Of more than ``matches`` places as many are taken, evenly; the published code takes the first, which are those whose
    continuation begins with the smallest ids.

    Returns:
        The tokens, -1 beyond the datastore's end, and how many of the K rows are valid.
    """
    index = jnp.arange(matches)
    # index * found / matches, without the large product.
    spread = index * (found // matches) + index * (found % matches) // matches
    chosen = first + jnp.where(found > matches, spread, index)
    start = store.suffixes[jnp.minimum(chosen, len(store.suffixes) - 1)] + span
    return store.at(start[:, None] + jnp.arange(longest)[None]), jnp.minimum(found, matches)


def frequent_prefixes(tokens: Int[Array, "K L"], valid: Int[Array, ""], number: int) -> Prefixes:
    """Return the most frequent prefixes of sorted continuations; of equally frequent ones, the shorter, then the first.

    Equal prefixes stand one after the other::

        a b c        a (3)   a b (2)   a b c (1)
        a b d                          a b d (1)
        a e f                a e (1)   a e f (1)        of these, number 3:  a, a b, a e

    A prefix is at least as frequent as what continues it, and goes first where it is not more so: the parent of a
    prefix that is chosen is always chosen, too.

    Args:
        tokens: continuations in lexicographic order, -1 where one has ended.
        valid: how many there are.
        number: prefixes to return.
    """
    rows, longest = tokens.shape
    tokens, row = tokens.T, jnp.arange(rows)[None]  # A depth is a line.
    changes = jnp.pad(tokens[:, 1:] != tokens[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    begins = jnp.stack([changes[: depth + 1].any(0) for depth in range(longest)]) | (row >= valid)
    # Where the next run begins: the smallest index of a beginning after this row.
    ends = jax.lax.cummin(jnp.where(begins, row, rows), axis=1, reverse=True)
    ends = jnp.pad(ends[:, 1:], ((0, 0), (0, 1)), constant_values=rows)
    runs = jnp.where(begins & (row < valid) & (tokens >= 0), ends - row, 0)
    # Of equal values top_k takes the first: the shorter prefix. It is far slower on integers than on floats (CPU).
    count, chosen = jax.lax.top_k(runs.astype(jnp.float32).reshape(-1), min(number, rows * longest))
    count, depth, row = count.astype(jnp.int32), chosen // rows, chosen % rows
    is_parent = (depth[:, None] == depth[None] - 1) & (row[:, None] <= row[None]) & (row[None] < (row + count)[:, None])
    parent = jnp.where(is_parent.any(0), jnp.argmax(is_parent, axis=0) + 1, 0)
    leaves = (tokens[depth, row], parent, depth + 1, count)
    missing = (0, number - len(chosen))
    return Prefixes(*(jnp.pad(jnp.where(count > 0, leaf, 0), missing).astype(jnp.int32) for leaf in leaves))


def rest(params: kangaroo_jax.Params, settings: Mapping[str, Any]) -> Ready:
    """Return REST on a model with its datastore.

    Raises:
        ValueError: if a setting is out of range, or there is no datastore for this model.
    """
    context = params.config.max_position_embeddings
    bounds = {
        "num_draft": (1, context),
        "max_token_span": (SHORTEST_SPAN, context),
        "matches": (1, 2**15),
        "continuation": (1, context),
    }
    used = {name: integer(f"rest: {name}", settings[name], *bound) for name, bound in bounds.items()}
    tokens, suffixes, record = load_datastore(params)
    gamma = min(used["continuation"], used["num_draft"])
    drafter = Rest(used["num_draft"], used["max_token_span"], used["matches"])
    spec = dec.DecodeSpec(params.config, drafter, gamma)
    size = {"datastore_tokens": len(tokens), "datastore_bytes": tokens.nbytes + suffixes.nbytes}
    store = Datastore(jnp.asarray(tokens), jnp.asarray(suffixes))
    return Ready("rest", params, spec, weights=store, settings=used | size | {"datastore": record["data"]})


METHODS = (
    Method(
        "rest",
        "what followed the longest suffix of the text in a datastore, as a tree; matches are sampled evenly",
        "He et al. 2023, arXiv 2311.08252; settings of Spec-Bench and of draftretriever",
        {"num_draft": 64, "max_token_span": 16, "matches": 5000, "continuation": 10},
        rest,
        COMMAND,
        "rest",
        [{"num_draft": number, "matches": 500} for number in (2, 3, 5, 7, 15)],
    ),
)
