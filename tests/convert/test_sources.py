"""Where a checkpoint comes from: what is asked of the hub, and what is said when it gives nothing."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from convert.hf_to_flax import main
from convert.sources import locate

COMMON = [
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "generation_config.json",
    "README.md",
    "training_args.bin",
]
SAFE = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
TORCH = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
OTHER = ["consolidated.safetensors", "original/model.safetensors", "onnx/model.onnx", "tf_model.h5"]


class Hub:
    """A hub with one repository; remembers what it was asked for."""

    def __init__(self, files: list[str], cache: Path) -> None:
        self.files, self.cache, self.revisions = files, cache, []

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns):
        assert repo_id == "me/mine"
        self.revisions.append(revision)
        for name in self.files:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                (self.cache / name).write_text(name)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a function that puts a hub with these files into place."""

    def put(*files):
        made = Hub([name for group in files for name in group], tmp_path / "snapshot")
        made.cache.mkdir()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
        return made

    return put


def fetched(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("files", "weights"),
    [((SAFE,), SAFE), ((TORCH,), TORCH), ((SAFE, TORCH), SAFE)],
    ids=["safetensors", "torch", "both"],
)
def test_weights_are_fetched_once_and_safetensors_preferred(hub, files, weights):
    made = hub(COMMON, OTHER, *files)
    assert fetched(locate("me/mine")) == sorted([*weights, *COMMON[:4]])
    assert set(made.revisions) == {None}


def test_the_revision_is_passed_on(hub):
    made = hub(COMMON, TORCH)
    locate("me/mine", "v2")
    assert made.revisions == ["v2", "v2"]


@pytest.mark.parametrize("source", ["joey", "."])
def test_a_local_source_has_no_revision(source):
    with pytest.raises(ValueError, match=r"revision is 'v2', but .* is local; revisions are those of hub ids"):
        locate(source, "v2")


def test_a_repository_without_weights(hub):
    hub(COMMON, OTHER)
    with pytest.raises(
        ValueError, match=r"me/mine has neither model\*\.safetensors nor pytorch_model\*\.bin on the hub"
    ):
        locate("me/mine")


BOTH_WAYS = "either unset HF_HUB_OFFLINE and run this once with a network, or fetch the files elsewhere and give their"


def test_offline_without_the_weights_in_the_cache(hub, monkeypatch):
    hub(COMMON)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(ValueError, match=f"in the hub's cache, and HF_HUB_OFFLINE is set; {BOTH_WAYS}"):
        locate("me/mine")


def test_offline_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match="no directory 'me/mine', HF_HUB_OFFLINE is set, and its revision 'v2' is not in"
    ) as caught:
        locate("me/mine", "v2")
    assert BOTH_WAYS in str(caught.value) and "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 300 + ".gguf", "./" + "x" * 300, "a\0b.gguf"])
def test_a_name_that_no_file_can_have_is_a_line(name, capsys):
    assert main([name, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "no directory" in said and said.count("\n") == 1
