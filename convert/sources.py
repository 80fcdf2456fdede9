"""Where a checkpoint to convert comes from: the embedded model, a local directory, an alias or the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from kangaroo_jax.store.files import first_line
from kangaroo_jax.store.names import ALIASES, EMBEDDED, embedded, expand

# What the tokenizer and the end of a generation are read from; copied beside the converted params.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "config.json", *TEXT_FILES)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def locate(source: str) -> Path:
    """Return the local directory of a checkpoint, downloading it when ``source`` is an alias or a hub id.

    Raises:
        ValueError: if there is no such source, or it cannot be downloaded.
    """
    if source in EMBEDDED:
        return embedded(source)
    path = expand(source)
    if source.strip() and path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"{source!r} is a file; give the directory that holds it")
    hub_id = ALIASES.get(source, source)
    if _HUB_ID.fullmatch(hub_id):
        return _download(hub_id)
    known = ", ".join((*EMBEDDED, *ALIASES))
    raise ValueError(f"no directory {source!r}; give an existing directory, a hub id OWNER/NAME, or one of {known}")


def _download(hub_id: str) -> Path:
    """Fetch the safetensors, config and tokenizer of a hub repository into the hub's own cache."""
    import huggingface_hub  # Not at the top: local sources do without it.

    try:
        path = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # Those of the hub and of its HTTP library have no common base.
        raise ValueError(
            f"no directory {hub_id!r}, and downloading it from the hub failed ({type(error).__name__}: "
            f"{first_line(error)}); either check name, network and `hf auth login` (gated models), or fetch the files "
            "elsewhere and give their directory"
        ) from error
    if not any(path.glob("*.safetensors")):
        raise ValueError(
            f"{hub_id} has no safetensors on the hub; save it as safetensors (transformers: model.save_pretrained) and "
            "give that directory"
        )
    return path
