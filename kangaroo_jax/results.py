"""What a generation returns: text, ids, why it ended, and what it cost."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counters and times of one generation.

    Attributes:
        method: ``"kangaroo"`` or ``"plain"``.
        gamma: largest number of tokens drafted in a round; 0 for plain decoding.
        eta: confidence below which drafting stopped.
        new_tokens: tokens generated, an EOS token included.
        accept_lengths: tokens committed in each verify round (s_k): drafts accepted + 1, cut at the end of the text.
            The first token comes from the prefill, which is not a round.
        draft_lengths: tokens drafted in each round.
        accepted: drafted tokens the target agreed with, over all rounds.
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
    accepted: int
    prefill_seconds: float
    decode_seconds: float
    compile_seconds: float

    @property
    def rounds(self) -> int:
        """Verify rounds; forward passes of the whole target, the prefill apart."""
        return len(self.accept_lengths)

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
    def ctar(self) -> tuple[float, ...]:
        """Consistent token acceptance rate: share of rounds that committed more than w tokens, w = 1..gamma."""
        rounds = max(self.rounds, 1)
        return tuple(sum(s > w for s in self.accept_lengths) / rounds for w in range(1, self.gamma + 1))

    @property
    def tokens_per_second(self) -> float:
        """New tokens over wall time, prefill included, compilation not."""
        seconds = self.prefill_seconds + self.decode_seconds
        return self.new_tokens / seconds if seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return fields and derived figures, ready for JSON."""
        derived = ("rounds", "compression_rate", "acceptance_rate", "ctar", "tokens_per_second")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generated text.

    Attributes:
        text: the new text, without the prompt and without special tokens.
        token_ids: ids of the new tokens, an EOS token included.
        finish_reason: ``"stop"`` (an EOS token) or ``"length"`` (the token budget, or the end of the context).
        stats: counters and times.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stats: Stats

    def __str__(self) -> str:
        """Return the text."""
        return self.text
