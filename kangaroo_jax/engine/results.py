"""What a generation returns: text, ids, why it ended, and what it cost."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from kangaroo_jax.engine.notebook import tinted_html


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counters and times of one generation.

    A round that drafted k tokens, of which the target accepted a, has judged the first a + 1 of them at most: what
    follows a rejected token is neither accepted nor rejected.

    Attributes:
        method: ``"kangaroo"`` or ``"plain"``.
        gamma: largest number of tokens drafted in a round; 0 for plain decoding.
        eta: confidence below which drafting stopped.
        new_tokens: tokens generated, an EOS token included.
        accept_lengths: tokens committed in each verify round (s_k): drafts accepted + 1, cut at the end of the text.
            The first token comes from the prefill, which is not a round, so their sum is ``new_tokens`` - 1.
        draft_lengths: tokens drafted in each round; 0 in plain decoding.
        accepted_drafts: drafted tokens of each round that the target accepted, before the text's end cut the block.
        confidence: confidence of each drafted token, by round.
        prompt_tokens: tokens of the prompt.
        prefilled_tokens: tokens of the prompt that the prefill ran; fewer than ``prompt_tokens`` when a chat kept its
            caches.
        batch_size: sequences that shared the device loop; the times are the whole batch's.
        prefill_seconds: wall time of the prefill, compilation apart.
        decode_seconds: wall time of the rounds, compilation apart.
        compile_seconds: time spent compiling in this call; 0 when everything was compiled before.
    """

    method: str
    gamma: int
    eta: float
    new_tokens: int
    accept_lengths: tuple[int, ...]
    draft_lengths: tuple[int, ...]
    accepted_drafts: tuple[int, ...]
    confidence: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    prefilled_tokens: int
    batch_size: int
    prefill_seconds: float
    decode_seconds: float
    compile_seconds: float

    @property
    def rounds(self) -> int:
        """Verify rounds; forward passes of the whole target, the prefill apart."""
        return len(self.accept_lengths)

    @property
    def accepted(self) -> int:
        """Drafted tokens the target agreed with, over all rounds."""
        return sum(self.accepted_drafts)

    @property
    def compression_rate(self) -> float:
        """Mean tokens committed per round (CR); 1 for plain decoding."""
        return sum(self.accept_lengths) / self.rounds if self.rounds else 1.0

    @property
    def acceptance_rate(self) -> float:
        """Share of drafted tokens the target agreed with."""
        drafted = sum(self.draft_lengths)
        return self.accepted / drafted if drafted else 0.0

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """Share of the rounds that drafted a w-th token in which the target accepted it, w = 1, 2, ...

        A token that follows a rejected one was not accepted, as in vLLM's rates per position; only rounds whose draft
        ended before w are left out. The tuple ends with the longest draft, so it may be shorter than gamma.
        """
        rounds = list(zip(self.draft_lengths, self.accepted_drafts, strict=True))
        longest = max(self.draft_lengths, default=0)
        outcomes = ([accepted >= w for drafted, accepted in rounds if drafted >= w] for w in range(1, longest + 1))
        return tuple(sum(found) / len(found) for found in outcomes)

    @property
    def confidence_accepted(self) -> tuple[float, ...]:
        """Confidence of the drafted tokens that the target accepted."""
        rounds = zip(self.confidence, self.accepted_drafts, strict=True)
        return tuple(itertools.chain.from_iterable(values[:accepted] for values, accepted in rounds))

    @property
    def confidence_rejected(self) -> tuple[float, ...]:
        """Confidence of the drafted tokens that the target rejected: one at most in a round, which ends its draft."""
        rounds = zip(self.confidence, self.accepted_drafts, strict=True)
        return tuple(itertools.chain.from_iterable(values[accepted : accepted + 1] for values, accepted in rounds))

    @property
    def ctar(self) -> tuple[float, ...]:
        """Consistent token acceptance rate: share of rounds that committed more than w tokens, w = 1..gamma."""
        rounds = max(self.rounds, 1)
        return tuple(sum(s > w for s in self.accept_lengths) / rounds for w in range(1, self.gamma + 1))

    @property
    def tokens_per_second(self) -> float:
        """New tokens of this sequence over wall time, prefill included, compilation not.

        The rows of a batch share its time: its throughput is the sum over its rows.
        """
        seconds = self.prefill_seconds + self.decode_seconds
        return self.new_tokens / seconds if seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return fields and derived figures as JSON has them: numbers, strings, and lists of numbers."""
        fields = [field.name for field in dataclasses.fields(self)]
        derived = [name for name, value in vars(Stats).items() if isinstance(value, property)]
        return {name: _as_lists(getattr(self, name)) for name in (*fields, *derived)}

    def summary(self) -> str:
        """Return the figures that matter as one line; rates only if something was drafted.

        Example: ``"128 tokens, 951 tokens/s, 32 rounds, compression rate 3.97, acceptance rate 0.71"``.
        """
        speed = f"{self.tokens_per_second:.{0 if self.tokens_per_second >= 10 else 1}f} tokens/s"
        shared = f" in a batch of {self.batch_size}" if self.batch_size > 1 else ""
        parts = [_count(self.new_tokens, "token"), speed + shared, _count(self.rounds, "round")]
        if any(self.draft_lengths):
            parts.append(f"compression rate {self.compression_rate:.2f}")
            parts.append(f"acceptance rate {self.acceptance_rate:.2f}")
        return ", ".join(parts)

    def __repr__(self) -> str:
        """Return settings and summary; ``as_dict`` has the value of every round."""
        return f"Stats({self.method}, gamma {self.gamma}, eta {self.eta:g}: {self.summary()})"


Spans = tuple[tuple[str, bool], ...]


class Piece(str):
    """A piece of a text that is being written.

    Attributes:
        spans: it in runs of one origin, as ``Generation.spans`` has the whole text.
    """

    spans: Spans

    def __new__(cls, spans: Spans) -> Piece:
        """Join the runs."""
        piece = super().__new__(cls, "".join(text for text, _ in spans))
        piece.spans = spans
        return piece

    def __getnewargs__(self) -> tuple[Spans]:  # type: ignore[override]
        """Return what copies are made of; of a plain string that is its text."""
        return (self.spans,)


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generated text.

    Attributes:
        text: the new text, without the prompt and without special tokens.
        token_ids: ids of the new tokens, an EOS token included.
        finish_reason: ``"stop"`` (an EOS token, a stop string, or the special token that one names) or ``"length"``
            (the token budget, or the end of the context).
        stats: counters and times.
        token_texts: text that each new token added; joined, they are ``text``. ``""`` for a special token, for one
            that lies behind the text's end, and for one that held only part of a character: that character belongs to
            the token that completed it.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stats: Stats
    token_texts: tuple[str, ...]

    @property
    def origins(self) -> tuple[bool, ...]:
        """Tell of each new token whether it was drafted and accepted (True) or the target's own (False).

        The first token is the prefill's. A round then commits its accepted drafts and one token of the target's,
        unless the text ended before that one: accepted 2, committed 3 is ``True True False``; committed 2,
        ``True True``.
        """
        return origins(self.stats.accept_lengths, self.stats.accepted_drafts)[: self.stats.new_tokens]

    def spans(self) -> Spans:
        """Return the text in runs of one origin: ``(text, drafted)``; joined, they are ``text``."""
        return spans(self.token_texts, self.origins)

    def __str__(self) -> str:
        """Return the text."""
        return self.text

    def __repr__(self) -> str:
        """Return the beginning of the text, why it ended, and what it cost."""
        text = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        return f"Generation({text!r}, finish_reason={self.finish_reason!r}, {self.stats.summary()})"

    def _repr_html_(self) -> str:
        """Return the text for a notebook: drafted and accepted tokens tinted, the figures below."""
        stats, drafted = self.stats, sum(self.origins)
        counts = (drafted, stats.new_tokens - drafted) if stats.gamma else None
        kept = f"{stats.prefilled_tokens} of " if stats.prefilled_tokens < stats.prompt_tokens else ""
        times = (
            f"prefill {_duration(stats.prefill_seconds)} ({kept}{_count(stats.prompt_tokens, 'prompt token')}), "
            f"decode {_duration(stats.decode_seconds)}, compile {_duration(stats.compile_seconds)}"
        )
        return tinted_html(self.spans(), counts, (f"{stats.summary()}, finish reason: {self.finish_reason}", times))


def origins(accept_lengths: Sequence[int], accepted_drafts: Sequence[int]) -> tuple[bool, ...]:
    """Return ``Generation.origins`` of so many rounds: of the prefill's token, and of those that each committed."""
    rounds = zip(accept_lengths, accepted_drafts, strict=True)
    return (False, *(place < accepted for committed, accepted in rounds for place in range(committed)))


def spans(texts: Iterable[str], origins: Iterable[bool]) -> Spans:
    """Return texts in runs of one origin; empty ones are left out."""
    pairs = [pair for pair in zip(texts, origins, strict=True) if pair[0]]
    runs = itertools.groupby(pairs, key=lambda pair: pair[1])
    return tuple(("".join(text for text, _ in run), drafted) for drafted, run in runs)


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
