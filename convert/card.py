"""The model card of an exported adapter: ``README.md`` in the form the Hugging Face hub shows and searches.

It says what the adapter's files record. What they do not record is called not recorded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from kangaroo_jax.model import LlamaConfig
from kangaroo_jax.store import EMBEDDED, StoredAdapter, fingerprint

CARD = "README.md"
TAGS = ["kangaroo", "speculative-decoding", "early-exit", "jax"]
_MISSING = "not recorded"
# Figures that train.adapter records, and what they are.
_FIGURES = {
    "held_out_acceptance": "expected acceptance on held-out text, sum_v min(p_v, q_v)",
    "held_out_top1": "share of held-out positions where adapter and target agree on the likeliest token",
    "acceptance": "expected acceptance on training text, at the last step",
    "top1": "share of training positions where both agree on the likeliest token, at the last step",
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_MARKUP = re.compile(r"[\\`*_\[\]<>&|~$#!@]|:(?=//)")  # What begins markup inside a line; ":" of a bare link.
_LONGEST = 200
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a card says and an adapter does not.

    Attributes:
        name: what the target is loaded as anywhere: an alias or an embedded model. None: what the training recorded.
        base_model: the target's hub id.
        licence: identifier of a licence on the hub, such as "mit"; None: not stated.
    """

    name: str | None = None
    base_model: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if self.base_model is not None and not _HUB_ID.fullmatch(self.base_model):
            raise ValueError(f"base_model is {self.base_model!r}; give the target's hub id, OWNER/NAME")
        if self.licence is not None and not _LICENCE.fullmatch(self.licence):
            raise ValueError(
                f"licence is {self.licence!r}; give one of the hub's identifiers, such as mit or apache-2.0"
            )


def model_card(config: LlamaConfig, stored: StoredAdapter, labels: Labels) -> ModelCard:
    """Return the card of an adapter.

    Args:
        config: the target's config.
        stored: the adapter.
        labels: what is to be said beside what the adapter records.
    """
    data = ModelCardData(
        license=labels.licence or "other",
        license_name=None if labels.licence else "not-stated",
        base_model=labels.base_model,
        base_model_relation="adapter" if labels.base_model else None,
        library_name="kangaroo_jax",
        tags=TAGS,
    )
    name = labels.name or stored.training.get("model") or labels.base_model
    title = f"Kangaroo adapter for {_shown(name)}" if name else "Kangaroo adapter"
    sections = (
        f"# {title}",
        "The draft model of [Kangaroo](https://arxiv.org/abs/2404.18911), lossless self-speculative decoding with "
        f"double early exit: the first {stored.draft.exit_layer} of the target's {config.num_hidden_layers} layers, "
        "this adapter and the target's own LM head draft tokens; the remaining layers verify them. It is of use with "
        "this target only.",
        _facts(config, stored, labels, _shown(name) if name else _MISSING),
        "## Training",
        _training(stored.training),
        "## Use",
        _use(labels.name or labels.base_model or "MODEL"),
        "## Licence",
        f"{labels.licence or 'Not stated by who exported the adapter'}. The target has a licence of its own.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _facts(config: LlamaConfig, stored: StoredAdapter, labels: Labels, name: str) -> str:
    size = sum(math.prod(tensor.shape) for _, tensor in stored.tensors)
    kinds = ", ".join(sorted({tensor.dtype.name for _, tensor in stored.tensors}))
    hub = f", on the hub [{labels.base_model}](https://huggingface.co/{labels.base_model})" if labels.base_model else ""
    return _bullets(
        {
            "target": f"{name}{hub}; {config.model_type}, {config.num_hidden_layers} layers, hidden size "
            f"{config.hidden_size}, fingerprint `{fingerprint(config)}`",
            "exit layer": str(stored.draft.exit_layer),
            "gamma, the most tokens drafted in a round": str(stored.draft.gamma),
            "eta, the confidence below which drafting stops": str(stored.draft.eta),
            "parameters": f"{size:,} ({kinds})",
        }
    )


def _training(training: dict[str, Any]) -> str:
    origin = {"imported from": _shown(training["imported_from"])} if "imported_from" in training else {}
    start = {"started from the adapter": _shown(training["init_adapter"])} if training.get("init_adapter") else {}
    lines = {key: _shown(training.get(key)) for key in ("data", "tokens", "steps")}
    figures = {what: _shown(training[key]) for key, what in _FIGURES.items() if training.get(key) is not None}
    note = "All that is recorded is in `config.json`, under `kangaroo`, `training`."
    return _bullets(origin | lines | start | (figures or {"acceptance": _MISSING})) + f"\n\n{note}"


def _use(model: str) -> str:
    convert = "" if model in EMBEDDED else f"    python -m convert.hf_to_flax {model}   # once\n"
    return (
        "With kangaroo_jax, OWNER/NAME being this repository"
        f"{', MODEL the directory or hub id of the target' if model == 'MODEL' else ''}:\n\n"
        f"    hf download OWNER/NAME --local-dir DIR\n{convert}"
        f"    python -m kangaroo_jax --model {model} --adapter DIR --compare   # speed against plain decoding, here\n\n"
        "```python\n"
        "import kangaroo_jax\n\n"
        f'params = kangaroo_jax.load("{model}", adapter="DIR")\n'
        'print(kangaroo_jax.generate(params, "Once upon a time", max_new_tokens=128).text)\n'
        "```\n\n"
        "`config.json` and weights are also in the format of the method's authors."
    )


def _bullets(facts: dict[str, str]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def _shown(value: Any) -> str:
    """Return a recorded value as Markdown that shows it as it is: on one line, without markup, shortened."""
    line = " ".join(_as_text(value).split())
    line = "".join(character for character in line if character.isprintable())
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
    return _MARKUP.sub(r"\\\g<0>", line) or _MISSING


def _as_text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if type(value) is int:
        return f"{value:,}"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
