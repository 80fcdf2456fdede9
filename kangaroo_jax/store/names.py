"""Names of models: the embedded one, directories, and what was converted into the home folder."""

from __future__ import annotations

import os
from pathlib import Path

EMBEDDED = ("joey",)
ALIASES = {
    "vicuna-7b": "lmsys/vicuna-7b-v1.3",
    "vicuna-13b": "lmsys/vicuna-13b-v1.3",
    "vicuna-33b": "lmsys/vicuna-33b-v1.3",
    "vicuna-7b-v1.5": "lmsys/vicuna-7b-v1.5",
    "vicuna-13b-v1.5": "lmsys/vicuna-13b-v1.5",
    "tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
}
_COMPANIONS = "bench"


def home() -> Path:
    """Return the folder of converted models, compiled programs, the chat's typed lines and what ``companion`` names.

    It is ``$KANGAROO_HOME``, by default ``~/.cache/kangaroo_jax``.
    """
    return expand(os.environ.get("KANGAROO_HOME") or "~/.cache/kangaroo_jax")


def expand(text: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` expanded; unlike ``Path.expanduser``, an unknown user's stays as it is."""
    return Path(os.path.expanduser(text))


def embedded(name: str) -> Path:
    """Return the directory of a model that is shipped inside the package.

    Raises:
        ValueError: if this installation lacks it.
    """
    directory = Path(__file__).resolve().parent.parent / "assets" / name
    if not (directory / "config.json").is_file():
        raise ValueError(f"the embedded model {name!r} is missing from {directory}; install kangaroo_jax again")
    return directory


def converted(name: str) -> Path:
    """Return where the converter puts a model by default: its name in the home folder, with "--" for "/"."""
    return home() / name.replace("/", "--")


def companion(name: str | os.PathLike[str], what: str) -> Path:
    """Return where something that a method of ``bench`` needs for a model is kept, once a command has made it.

    It is ``bench/MODEL/WHAT`` in the home folder; MODEL is the name of the model's directory.

    Args:
        name: the model, as for ``resolve``.
        what: such as ``"medusa"``.

    Raises:
        ValueError: if there is no such model.
    """
    return home() / _COMPANIONS / resolve(name).resolve().name / what


def resolve(name: str | os.PathLike[str]) -> Path:
    """Return the directory of a model.

    Args:
        name: the embedded model's name, an existing directory, or an alias, hub id or name in the home folder of a
            model that has been converted. In this order.

    Raises:
        ValueError: if there is no such model; the message says what there is and how to get one.
    """
    text = os.fspath(name)
    if text in EMBEDDED:
        return embedded(text)
    path = expand(text)
    if text.strip() and os.path.isdir(path):  # Path's own methods raise for names that are too long.
        return path
    if os.path.isfile(path):
        raise ValueError(f"{text!r} is a file; give the directory that holds it")
    is_name = text.strip() not in ("", ".", "..") and not text.startswith((".", "~", "/")) and text.count("/") <= 1
    if is_name and os.path.isdir(converted(text)):
        return converted(text)
    if text in ALIASES or (is_name and text in ALIASES.values()):
        raise ValueError(f"{text!r} is not in {home()} yet; convert it: python -m convert.hf_to_flax {text}")
    there = sorted(item.name for item in home().iterdir() if item.is_dir()) if home().is_dir() else []
    models = [item for item in there if not item.startswith(".") and item != _COMPANIONS]
    known = dict.fromkeys([*EMBEDDED, *ALIASES, *models])
    raise ValueError(
        f"unknown model {text!r:.300}; give one of {', '.join(known)}, an existing directory, "
        "or convert a hub id first: python -m convert.hf_to_flax OWNER/NAME"
    )
