"""Where a checkpoint to convert comes from: the embedded model, a directory, a GGUF file, an alias or the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kangaroo_jax.files import first_line
from kangaroo_jax.gguf import is_gguf
from kangaroo_jax.store import ALIASES, EMBEDDED, embedded, expand, installing, packaged

# What the tokenizer and the end of a generation are read from; copied beside the converted params; patterns.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
# Not "*.safetensors": some repositories hold the model a second time, as consolidated.safetensors.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TWO_WAYS = (
    "either unset HF_HUB_OFFLINE and run this once with a network, "
    "or fetch the files elsewhere and give their directory"
)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def locate(source: str, revision: str | None = None) -> Path:
    """Return the local directory or GGUF file of a checkpoint, downloading what ``source`` names on the hub.

    Args:
        source: the embedded model, a directory, a GGUF file, an alias or a hub id.
        revision: branch, tag or commit of a hub repository; None is its main branch.

    Raises:
        ValueError: if there is no such source, it cannot be downloaded, or it is local and a revision is asked for.
    """
    path = expand(source)
    there = source.strip() and (os.path.isdir(path) or is_gguf(path))  # Path's own methods raise for odd names.
    local = embedded(source) if source in EMBEDDED else path if there else packaged(source)
    if local is not None:
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {source!r} is local; revisions are those of hub ids")
        return local
    if os.path.isfile(path):
        raise ValueError(f"{source!r} is a file; give the directory that holds it, or a GGUF file")
    hub_id = ALIASES.get(source, source)
    if _HUB_ID.fullmatch(hub_id):
        return _download(hub_id, revision, installing(source))
    known = ", ".join((*EMBEDDED, *ALIASES))
    raise ValueError(f"no directory {source!r}; give an existing directory, a hub id OWNER/NAME, or one of {known}")


def _download(hub_id: str, revision: str | None, before: str = "") -> Path:
    """Fetch weights, config and tokenizer of a hub repository into the hub's own cache.

    The safetensors are asked for first, and torch's files only where there are none: never both.

    Args:
        hub_id: the repository.
        revision: branch, tag or commit, or None.
        before: another way to the model, as the half sentence that a message about a failure begins its advice with.
    """
    import huggingface_hub  # Not at the top: local sources do without it.

    for pattern in _WEIGHTS:
        patterns = [pattern, f"{pattern}.index.json", "config.json", *TEXT_FILES]
        try:
            path = Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
        except Exception as error:  # Those of the hub and of its HTTP library have no common base.
            raise ValueError(_no_download(hub_id, revision, error, before)) from error
        if any(path.glob(pattern)):
            return path
    lacking = f"{hub_id} has neither {' nor '.join(_WEIGHTS)}"
    if huggingface_hub.is_offline_mode():
        raise ValueError(f"{lacking} in the hub's cache, and HF_HUB_OFFLINE is set; {_TWO_WAYS}")
    raise ValueError(
        f"{lacking} on the hub; save it again (transformers: model.save_pretrained) and give that directory"
    )


def _no_download(hub_id: str, revision: str | None, error: Exception, before: str) -> str:
    """Return the message for a failed download; the ways out are in it."""
    import huggingface_hub

    what = "it" if revision is None else f"its revision {revision!r}"
    if huggingface_hub.is_offline_mode():
        return (
            f"no directory {hub_id!r}, HF_HUB_OFFLINE is set, and {what} is not in the hub's cache; {before}{_TWO_WAYS}"
        )
    return (
        f"no directory {hub_id!r}, and downloading {what} from the hub failed ({type(error).__name__}: "
        f"{first_line(error)}); {before}either check name, network and `hf auth login` (gated models), or fetch "
        "the files elsewhere and give their directory"
    )
