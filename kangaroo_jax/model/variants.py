"""The kinds of adapter: the paper's own, and those it is compared with."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class AdapterKind:
    """What an adapter is made of.

    Attributes:
        parts: what is added to the hidden state, one after the other: "attention", "mlp" (the gated one of the target's
            width), "linear" (one square matrix). All but a first one are of the normalised state.
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
