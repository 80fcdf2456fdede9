"""The kinds of adapter: the paper's own, and those it is compared with."""

from __future__ import annotations

import dataclasses

from kangaroo_jax.checks import INT32, brief, check_integer, positive


@dataclasses.dataclass(frozen=True)
class AdapterKind:
    """What an adapter is made of.

    Attributes:
        parts: what is added to the hidden state, one after the other: "attention", "mlp" (a gated one), "linear" (one
            square matrix). All but a first one are of the normalised state.
        input_norm: whether the first part, too, is.
        own_head: whether draft logits come from an LM head of the adapter's own, not the target's.
    """

    parts: tuple[str, ...]
    input_norm: bool = True
    own_head: bool = False

    @property
    def cached(self) -> bool:
        """Whether it looks at earlier positions, so that decoding keeps a cache for it."""
        return "attention" in self.parts


ADAPTER_KINDS = {
    "kangaroo": AdapterKind(("attention",)),
    "with-mlp": AdapterKind(("attention", "mlp")),
    "mlp-only": AdapterKind(("mlp",)),
    "linear": AdapterKind(("linear",)),
    "no-input-norm": AdapterKind(("attention",), input_norm=False),
    "own-head": AdapterKind(("attention",), own_head=True),
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What an adapter computes, beside the target's shape; hashable, as ``LlamaConfig``.

    Attributes:
        kind: a key of ``ADAPTER_KINDS``.
        rope_theta: base of the rotary frequencies, which are not scaled then; None has the target's base and scaling.
        num_key_value_heads: key/value heads of its attention; None has as many as the target.
        intermediate_size: width of its gated MLP; None is the target's.
        draft_vocabulary: number of tokens that it can draft, whose ids lie beside its weights: draft logits are those
            of these columns of the head (FR-Spec, arXiv 2502.14856); None is the whole vocabulary.
        final_states: whether the target's last state, after the final norm, of the token before is added to what the
            adapter reads, times a matrix: what the whole target made of the text so far (features of EAGLE, arXiv
            2401.15077). While it drafts, its own output is taken for that state.
    """

    kind: str = "kangaroo"
    rope_theta: float | None = None
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    draft_vocabulary: int | None = None
    final_states: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in ADAPTER_KINDS:
            raise ValueError(f"adapter is {brief(self.kind)}; it must be one of {', '.join(ADAPTER_KINDS)}")
        if self.rope_theta is not None:
            # The class is frozen.
            object.__setattr__(self, "rope_theta", positive("rope_theta", self.rope_theta))
        if type(self.final_states) is not bool:
            raise ValueError(f"final_states is {brief(self.final_states)}; it must be true or false")
        for name, part in (
            ("num_key_value_heads", "attention"),
            ("intermediate_size", "mlp"),
            ("draft_vocabulary", None),
        ):
            if (value := getattr(self, name)) is None:
                continue
            check_integer(name, value, most=INT32)
            if part is not None and part not in self.made_of.parts:
                raise ValueError(f"{name} is {value}, but an adapter of kind {self.kind!r} has no {part}")
        if self.draft_vocabulary is not None and self.made_of.own_head:
            raise ValueError(
                f"draft_vocabulary is {self.draft_vocabulary}, but an adapter of kind {self.kind!r} has its own head"
            )

    @property
    def made_of(self) -> AdapterKind:
        """What the ``kind`` is made of."""
        return ADAPTER_KINDS[self.kind]
