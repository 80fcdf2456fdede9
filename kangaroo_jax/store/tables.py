"""The tables of names: which tensor of a checkpoint is which leaf of this package's params, for targets and adapters.

A row names a tensor and the place it has in the params. Matrices are transposed (torch stores ``[out, in]``), and q, k,
v and gate, up are columns of one fused kernel, biases of one fused bias. Neither shapes nor families nor kinds of
adapters nor the order of columns are in a table: the model has them (abstract params, ``fused_parts``), and a row whose
leaf it lacks is left out.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

from kangaroo_jax.model import AdapterConfig, LlamaConfig, abstract_adapter, abstract_params


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
        name: the tensor's name in the checkpoint, ``{i}`` standing for the number of the layer.
        path: the leaf of the params, in the same notation.
        transpose: whether the leaf holds the tensor transposed.
        part: the part of a fused kernel or bias that the tensor is, by its name in ``Fused``; None: all of it.
    """

    name: str
    path: str
    transpose: bool = True
    part: str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows for one kind of checkpoint.

    Attributes:
        rules: one per tensor, or per tensor of every layer.
        abstract: builds the params' tree with shapes only.
        ignored: matches names that carry nothing the model reads.
    """

    rules: tuple[Rule, ...]
    abstract: Callable[[LlamaConfig], dict[str, Any]]
    ignored: re.Pattern[str]


def _layer(name: str, path: str) -> tuple[Rule, ...]:
    fused, gate_up = f"{path}self_attn/qkv_proj/", f"{path}mlp/gate_up_proj/kernel"
    return (
        Rule(f"{name}input_layernorm.weight", f"{path}input_layernorm/scale", transpose=False),
        *(Rule(f"{name}self_attn.{part}_proj.weight", f"{fused}kernel", part=part) for part in "qkv"),
        *(Rule(f"{name}self_attn.{part}_proj.bias", f"{fused}bias", transpose=False, part=part) for part in "qkv"),
        *(
            Rule(f"{name}self_attn.{part}_norm.weight", f"{path}self_attn/{part}_norm/scale", transpose=False)
            for part in "qk"
        ),
        Rule(f"{name}self_attn.o_proj.weight", f"{path}self_attn/o_proj/kernel"),
        Rule(f"{name}post_attention_layernorm.weight", f"{path}post_attention_layernorm/scale", transpose=False),
        *(Rule(f"{name}mlp.{part}_proj.weight", gate_up, part=part) for part in ("gate", "up")),
        Rule(f"{name}mlp.down_proj.weight", f"{path}mlp/down_proj/kernel"),
    )


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_INV_FREQ = re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_HEAD_RULE = Rule(HEAD, "lm_head/kernel")

TARGET = Table(
    rules=(
        Rule(EMBEDDING, "embed_tokens/embedding", transpose=False),
        *_layer("model.layers.{i}.", "layers_{i}/"),
        Rule("model.norm.weight", "norm/scale", transpose=False),
        _HEAD_RULE,
    ),
    abstract=abstract_params,
    ignored=_INV_FREQ,
)


@functools.cache
def adapter_table(adapter: AdapterConfig) -> Table:
    """Return the table of an adapter: the authors' names, and Hugging Face's for what theirs has not."""
    rules = (
        *_layer("layers.0.", ""),
        Rule("layers.0.linear.weight", "linear/kernel"),
        Rule("layers.0.final_proj.weight", "final_proj/kernel"),
        Rule("norm.weight", "norm/scale", transpose=False),
        _HEAD_RULE,
    )
    return Table(rules, functools.partial(abstract_adapter, adapter=adapter), _INV_FREQ)


ADAPTER = adapter_table(AdapterConfig())
