"""The network: pure functions of (config, params, arrays). Nothing here knows text, files or decoding.

Letters in shapes, everywhere: B sequences, T tokens of a block, S cache slots, D hidden_size, H query heads,
K key/value heads, hd head_dim, F intermediate_size, V vocab_size, N layers, G = gamma.
"""

from kangaroo_jax.model.adapter import Adapter, adapter_layers, draft_head, run_adapter, with_draft_head
from kangaroo_jax.model.cache import KVCache, init_cache, keep_path
from kangaroo_jax.model.config import FAMILIES, LOOKUP, METHODS, SIBLINGS, KangarooConfig, LlamaConfig, RopeScaling
from kangaroo_jax.model.context import Context, branch, fork, line
from kangaroo_jax.model.fresh import abstract_adapter, abstract_params, init_adapter, init_params
from kangaroo_jax.model.fused import Columns, Fused, fused_at, fused_parts
from kangaroo_jax.model.layers import RMSNorm, linear
from kangaroo_jax.model.llama import embed, final_norm, forward, head, head_kernel, logits, run_layers
from kangaroo_jax.model.numerics import standard_numerics
from kangaroo_jax.model.rope import rope_frequencies
from kangaroo_jax.model.variants import ADAPTER_KINDS, AdapterConfig

__all__ = [
    "ADAPTER_KINDS",
    "FAMILIES",
    "LOOKUP",
    "METHODS",
    "SIBLINGS",
    "Adapter",
    "AdapterConfig",
    "Columns",
    "Context",
    "Fused",
    "KVCache",
    "KangarooConfig",
    "LlamaConfig",
    "RMSNorm",
    "RopeScaling",
    "abstract_adapter",
    "abstract_params",
    "adapter_layers",
    "branch",
    "draft_head",
    "embed",
    "final_norm",
    "fork",
    "forward",
    "fused_at",
    "fused_parts",
    "head",
    "head_kernel",
    "init_adapter",
    "init_cache",
    "init_params",
    "keep_path",
    "line",
    "linear",
    "logits",
    "rope_frequencies",
    "run_adapter",
    "run_layers",
    "standard_numerics",
    "with_draft_head",
]
