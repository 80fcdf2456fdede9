"""What Kangaroo is compared with and what has weights of its own; nothing else of the package knows them."""

from kangaroo_jax.baselines.medusa_heads import (
    MEDUSA_CONFIG,
    MEDUSA_HEADS,
    abstract_medusa,
    count_heads,
    init_medusa,
    load_medusa,
    medusa_logits,
    medusa_states,
    one_head,
    save_medusa,
)

__all__ = [
    "MEDUSA_CONFIG",
    "MEDUSA_HEADS",
    "abstract_medusa",
    "count_heads",
    "init_medusa",
    "load_medusa",
    "medusa_logits",
    "medusa_states",
    "one_head",
    "save_medusa",
]
