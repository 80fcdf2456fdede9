"""verify_lossless: does Kangaroo write the token ids that plain decoding writes, and if not, is it rounding?

What a tie is: plain decoding computes the target's logits one row at a time, verification several, and the two may
round differently. Where the two largest logits are nearer to each other than that, rounding decides which one wins. How
far it moves the logits is measured at the very position where two texts part, never assumed. After that position they
are two different texts, of which nothing more can be compared.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kangaroo_jax.api import generate
from kangaroo_jax.engine import Generation, prompt_ids
from kangaroo_jax.params import Params, check_params
from kangaroo_jax.proof.rescore import rescore

_NAME = 32  # Characters of a prompt that stand for it in the table.


@dataclasses.dataclass(frozen=True)
class LosslessRow:
    """What the check found for one prompt. All fields from ``first_difference`` on are None where nothing differs.

    Attributes:
        name: the prompt's name, or how it begins.
        identical: whether ids and finish reason are the same.
        tokens: new tokens compared: those both texts share, and the first that differs.
        plain_finish_reason: why plain decoding ended.
        kangaroo_finish_reason: why Kangaroo ended.
        first_difference: index, among the new tokens, where the texts part.
        plain_token: plain decoding's token there; None if its text ends there.
        kangaroo_token: Kangaroo's token there; None if its text ends there.
        plain_text: text of ``plain_token``; empty for a token that stands for none.
        kangaroo_text: text of ``kangaroo_token``.
        gap: the target's logit of ``plain_token`` less that of ``kangaroo_token``, after the text both share, one row
            at a time as plain decoding computes it.
        noise: how far the target's logits there move when they are computed as in verification, several rows at a
            time: the largest absolute difference over the vocabulary.
        tie: whether both tokens lie within ``2 * noise`` of the largest logit, so that rounding can have decided
            (each of two logits may move by ``noise``). Then ``abs(gap) <= 2 * noise``.
    """

    name: str
    identical: bool
    tokens: int
    plain_finish_reason: str
    kangaroo_finish_reason: str
    first_difference: int | None = None
    plain_token: int | None = None
    kangaroo_token: int | None = None
    plain_text: str | None = None
    kangaroo_text: str | None = None
    gap: float | None = None
    noise: float | None = None
    tie: bool | None = None


@dataclasses.dataclass(frozen=True)
class LosslessReport:
    """What ``verify_lossless`` returns; printed, it is a table.

    Ask for ``lossless`` or ``identical``: the report itself is neither true nor false.

    Attributes:
        rows: one for each prompt, in order.
        model: what the model was loaded as.
        dtype: of the weights and of the arithmetic.
        gamma: largest number of tokens drafted in a round.
        eta: confidence below which drafting stopped.
    """

    rows: tuple[LosslessRow, ...]
    model: str
    dtype: str
    gamma: int
    eta: float

    def __bool__(self) -> bool:
        raise ValueError("a LosslessReport is neither true nor false; ask for report.lossless or report.identical")

    @property
    def identical(self) -> bool:
        """Whether every prompt gave the same ids and the same end."""
        return all(row.identical for row in self.rows)

    @property
    def lossless(self) -> bool:
        """Whether every prompt is identical up to ties. In fp32 a difference that is no tie is a bug."""
        return all(row.identical or bool(row.tie) for row in self.rows)

    @property
    def ties(self) -> int:
        """Prompts whose texts part at a tie."""
        return sum(bool(row.tie) for row in self.rows)

    @property
    def tokens(self) -> int:
        """New tokens compared, over all prompts."""
        return sum(row.tokens for row in self.rows)

    @property
    def tie_rate(self) -> float:
        """Ties that changed a token, per token compared; 0 when nothing was compared."""
        return self.ties / self.tokens if self.tokens else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return fields and derived figures, ready for JSON."""
        derived = ("identical", "lossless", "ties", "tokens", "tie_rate")
        fields = dataclasses.asdict(self) | {"rows": [dataclasses.asdict(row) for row in self.rows]}
        return fields | {name: getattr(self, name) for name in derived}

    def __str__(self) -> str:
        """Return a table: a line per prompt, then the sums."""
        header = ("", "tokens", "identical", "differs at", "plain", "kangaroo", "gap", "noise")
        lines = _aligned([header, *(_cells(row) for row in self.rows)])
        different = sum(not row.identical for row in self.rows)
        lines += [
            "",
            f"model       {self.model}, {self.dtype}, gamma {self.gamma}, eta {self.eta:g}",
            f"compared    {self.tokens} tokens of {len(self.rows)} prompts",
            f"identical   {'yes' if self.identical else 'NO'}",
            f"lossless    {'yes' if self.lossless else 'NO'}",
        ]
        if different:
            lines += [
                f"ties        {self.ties} of {different} differences are ties within rounding: "
                f"{self.tie_rate:.2%} of the tokens compared",
            ]
        return "\n".join(lines)


def verify_lossless(
    params: Params,
    prompts: Any,
    *,
    max_new_tokens: int = 128,
    gamma: int | None = None,
    eta: float | None = None,
    siblings: int | None = None,
    lookup: int | None = None,
    names: Sequence[str] | None = None,
    tick: Callable[[], Any] = lambda: None,
) -> LosslessReport:
    """Run plain decoding and Kangaroo, both greedy, on every prompt, and say where their ids first differ and why.

    ::

        plain a b c d e      Kangaroo a b x y      first difference 2: c against x; 3 tokens compared

    The target's logits are computed anew only where texts differ, and there only of one position.

    Args:
        params: from ``load``.
        prompts: one prompt or a list of them, as for ``generate``.
        max_new_tokens: token budget of each run.
        gamma: as for ``generate``.
        eta: as for ``generate``.
        siblings: as for ``generate``.
        lookup: as for ``generate``.
        names: what to call the prompts in the report; default: how they begin.
        tick: called after every prompt.

    Returns:
        A report: ``lossless`` and ``identical`` say what was found, ``rows`` has the details, printed it is a table.

    Raises:
        ValueError: as ``generate``, or if there are not as many names as prompts.
    """
    check_params(params)
    given, _ = prompt_ids(params, prompts)
    if names is not None and len(names) != len(given):
        raise ValueError(f"names has {len(names)} entries for {len(given)} prompts; pass one for each")
    rows, kangaroo = [], None
    how: dict[str, Any] = {"gamma": gamma, "eta": eta, "siblings": siblings, "lookup": lookup}
    for index, prompt in enumerate(given):
        kangaroo = generate(params, prompt, max_new_tokens=max_new_tokens, method="kangaroo", **how)
        plain = generate(params, prompt, max_new_tokens=max_new_tokens, method="plain")
        name = _beginning(params, prompt) if names is None else names[index]
        rows.append(_compare(params, name, prompt, max_new_tokens, plain, kangaroo, lookup))
        tick()
    assert kangaroo is not None
    dtype = str(params.dtype)
    return LosslessReport(tuple(rows), params.name, dtype, kangaroo.stats.gamma, kangaroo.stats.eta)


def _beginning(params: Params, prompt: list[int]) -> str:
    return beginning(params.tokenizer.decode(prompt[: 8 * _NAME]))


def beginning(text: str) -> str:
    """Return how a text begins, on one line, without what a terminal would take for a command."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * _NAME]).split()) or "(blank)"
    return line if len(line) <= _NAME else line[: _NAME - 3] + "..."


def _compare(
    params: Params,
    name: str,
    prompt: list[int],
    budget: int,
    plain: Generation,
    kangaroo: Generation,
    lookup: int | None,
) -> LosslessRow:
    """Compare two results for one prompt; where a token differs, compute the logits behind it."""
    first, second = plain.token_ids, kangaroo.token_ids
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    row = LosslessRow(
        name=name,
        identical=(first, plain.finish_reason) == (second, kangaroo.finish_reason),
        tokens=common,
        plain_finish_reason=plain.finish_reason,
        kangaroo_finish_reason=kangaroo.finish_reason,
    )
    if first == second:
        return row
    plain_token, kangaroo_token = (ids[common] if common < len(ids) else None for ids in (first, second))
    row = dataclasses.replace(
        row,
        tokens=common + 1,
        first_difference=common,
        plain_token=plain_token,
        kangaroo_token=kangaroo_token,
        plain_text=None if plain_token is None else params.tokenizer.decode([plain_token]),
        kangaroo_text=None if kangaroo_token is None else params.tokenizer.decode([kangaroo_token]),
        tie=False,
    )
    if plain_token is None or kangaroo_token is None:  # A text that merely ends sooner: no logit explains that.
        return row
    assert params.draft is not None
    looked = params.draft.lookup if lookup is None else lookup
    plain_logits, *verified = rescore(params, prompt, first[:common], budget, kangaroo.stats.gamma, looked)
    noise = max(float(np.abs(found - plain_logits).max()) for found in verified)
    chosen = plain_logits[[plain_token, kangaroo_token]]
    return dataclasses.replace(
        row,
        gap=float(chosen[0] - chosen[1]),
        noise=noise,
        tie=bool(plain_logits.max() - chosen.min() <= 2 * noise),
    )


def _cells(row: LosslessRow) -> tuple[str, ...]:
    """Return a row's line of the table."""

    def token(token: int | None, text: str | None, reason: str) -> str:
        if token is None:
            return f"ends: {reason}"
        return repr(text) if text else f"<{token}>"

    cells = (row.name, str(row.tokens), "yes" if row.identical else "tie" if row.tie else "NO")
    if row.identical:
        return (*cells, "", "", "", "", "")
    return (
        *cells,
        "end" if row.first_difference is None else str(row.first_difference),
        token(row.plain_token, row.plain_text, row.plain_finish_reason),
        token(row.kangaroo_token, row.kangaroo_text, row.kangaroo_finish_reason),
        *("" if figure is None else f"{figure:.2g}" for figure in (row.gap, row.noise)),
    )


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines with their cells in columns; empty columns are left out."""
    filled = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in filled]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in zip(*filled, strict=True)]
