"""python -m convert.hf_to_flax: what it writes is what read_hf reads; what it refuses leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from orbax.checkpoint.experimental import v1

from convert import conversion, hf_to_flax
from kangaroo_jax.files import resumable_directory
from kangaroo_jax.model import KangarooConfig, init_adapter
from kangaroo_jax.store import checkpoint, home, load_adapter, load_target, read_config, read_hf, save_adapter, write_hf
from kangaroo_jax.store.hf import StoredTensor
from kangaroo_jax.store.mapping import flatten

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama"
LEAVES = 3 + 3 * 6  # Of the source below.


@pytest.fixture(autouse=True)
def home_folder(tmp_path, monkeypatch):
    """A home folder of its own, and no hub."""

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path):
    """A checkpoint with everything beside its weights."""
    directory = Path(shutil.copytree(FIXTURES / "gqa", tmp_path / "source" / "tiny"))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).write_text(name)
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    (directory / "README.md").write_text("not copied")
    config = read_config(directory)
    save_adapter(directory / "adapter", config, KangarooConfig(1), init_adapter(config, jax.random.key(0)), {})
    return directory


@pytest.fixture
def written(monkeypatch):
    """Paths of the leaves that are written, one at a time, in order."""
    paths = []
    save = v1.partial.save

    def recorded(path, state):
        paths.extend(flatten(state))
        save(path, state)

    monkeypatch.setattr(checkpoint, "BATCH_BYTES", 1)
    monkeypatch.setattr(v1.partial, "save", recorded)
    return paths


def failed(capsys, *argv):
    """Run the command, which must fail with one line; return it."""
    assert hf_to_flax.main(list(map(str, argv))) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line and not line.startswith("converting")]
    assert captured.out == "" and len(lines) == 1 and lines[0].startswith("hf_to_flax: "), captured
    return lines[0]


def tree_of(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("case", ["mha", "gqa", "llama3-old", "tied", "sharded", "wide-heads"])
def test_converted_equals_read(case, tmp_path):
    assert hf_to_flax.main([str(FIXTURES / case), "--out", str(tmp_path / "out")]) == 0
    config, params = read_hf(FIXTURES / case)
    dtype = jax.tree.leaves(params)[0].dtype
    converted_config, converted, _ = load_target(tmp_path / "out", dtype)
    assert converted_config == config
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(converted), params)
    stored = json.loads((tmp_path / "out" / "params" / "_METADATA").read_text())
    assert stored["tree_metadata"]
    assert tree_of(tmp_path) == ["out"]


def test_what_is_written_and_said(source, home_folder, capsys, monkeypatch):
    monkeypatch.setattr("kangaroo_jax.progress.EVERY", 0.001)
    assert hf_to_flax.main([str(source), "--dtype", "float32"]) == 0
    out = home_folder / "tiny"
    assert tree_of(home_folder) == ["tiny"]
    text = ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"]
    assert tree_of(out) == sorted([*text, "generation_config.json", "config.json", "params", "adapter"])
    config, params, directory = load_target("tiny")
    assert directory == out and config.eos_token_id == (2, 3)
    assert load_adapter(out / "adapter", config)[0] == KangarooConfig(1)
    captured = capsys.readouterr()
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = dict(line.split(maxsplit=1) for line in captured.out.splitlines()[:5])
    assert rows == {
        "tensors": "30",
        "parameters": f"{count:,}",
        "bytes": f"{4 * count:,}",
        "dtype": "float32",
        "destination": str(out),
    }
    assert 'python -m kangaroo_jax --model tiny "' in captured.out
    assert f"{4 * count // 1000}" in captured.err and "100%" in captured.err


def test_the_next_step_of_a_model_without_an_adapter_is_plain(source, home_folder, tmp_path, capsys):
    alone = shutil.copytree(source, tmp_path / "alone")
    shutil.rmtree(alone / "adapter")
    assert hf_to_flax.main([str(alone)]) == 0
    assert 'python -m kangaroo_jax --model alone --method plain "' in capsys.readouterr().out


def test_dtype_of_the_source_is_kept(source, tmp_path, capsys):
    assert hf_to_flax.main([str(source), "--out", str(tmp_path / "my out")]) == 0
    captured = capsys.readouterr().out
    assert "bfloat16" in captured and f"--model '{tmp_path / 'my out'}'" in captured


def test_an_existing_destination_is_refused_unless_forced(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert hf_to_flax.main([str(source), "--out", str(out)]) == 0
    capsys.readouterr()
    (out / "marker").write_text("old")
    assert "out exists; choose another --out, or replace it with --force" in failed(capsys, source, "--out", out)
    assert (out / "marker").is_file()
    assert hf_to_flax.main([str(source), "--out", str(out), "--force"]) == 0
    assert not (out / "marker").exists()
    assert tree_of(tmp_path) == ["out", "source"]


def test_force_does_not_cost_anything_else(source, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    assert "not a converted directory" in failed(capsys, source, "--out", tmp_path / "thesis", "--force")
    assert "holds the source" in failed(capsys, source, "--out", source, "--force")
    assert "holds the source" in failed(capsys, source, "--out", source.parent, "--force")
    assert "is inside the source" in failed(capsys, source, "--out", source / "config.json", "--force")
    assert "is inside the source" in failed(capsys, source, "--out", source / "adapter" / "x")
    assert (tmp_path / "thesis" / "chapter1.txt").is_file()
    read_hf(source)


@pytest.mark.parametrize(
    "old", [pytest.param(False, id="new", marks=pytest.mark.full), pytest.param(True, id="replacing")]
)
@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (OSError("No space left on device"), 2)])
def test_what_is_interrupted_goes_on_where_it_stopped(
    source, tmp_path, monkeypatch, capsys, written, error, status, old
):
    out = tmp_path / "there" / "out"
    argv = [str(source), "--out", str(out), "--force"]
    if old:
        assert hf_to_flax.main(argv) == 0
        before = tree_of(out)
        written.clear()

    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(conversion.shutil, "copytree", fail)
        assert hf_to_flax.main(argv) == status
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("hf_to_flax: ") and "the same command goes on" in message.lower()
    assert tree_of(tmp_path / "there") == [".out.partial", *(["out"] if old else [])]
    if old:
        assert tree_of(out) == before
    assert hf_to_flax.main(argv) == 0
    assert tree_of(tmp_path / "there") == ["out"] and (not old or tree_of(out) == before)
    assert len(written) == len(set(written)) == LEAVES


@pytest.mark.full
def test_killed_it_goes_on_with_what_is_finished(source, tmp_path, written, capsys):
    """Killed twice; leaves that the journal names are not written again."""
    out = tmp_path / "out"
    script = (
        "import sys; from kangaroo_jax.store import checkpoint; checkpoint.BATCH_BYTES = 1\n"
        "from convert import hf_to_flax; sys.exit(hf_to_flax.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, str(source), "--out", str(out)]
    journal = tmp_path / ".out.partial" / "parts" / "saved.jsonl"
    for lines in (3, 9):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (journal.is_file() and len(journal.read_text().splitlines()) >= lines):
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert tree_of(tmp_path) == [".out.partial", ".out.partial.lock", "source"]
    finished = {leaf for line in journal.read_text().splitlines() for leaf in json.loads(line)["leaves"]}
    assert 9 <= len(finished) < LEAVES
    assert hf_to_flax.main(command[3:]) == 0
    assert not finished & set(written) and len(finished) + len(written) == LEAVES
    assert tree_of(tmp_path) == ["out", "source"]
    params = read_hf(source)[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(load_target(out, "bfloat16")[1]), params)


def test_killed_between_a_part_and_its_line_in_the_journal_it_goes_on(source, tmp_path, monkeypatch, capsys, written):
    argv = [str(source), "--out", str(tmp_path / "out")]
    for stop in (1, 5):  # Orbax collects its first part elsewhere than the others.
        with monkeypatch.context() as patched:
            record, count = checkpoint.ParamsWriter._record, [0]

            def killed(self, line, record=record, count=count, stop=stop):
                count[0] += 1
                if count[0] == stop:
                    raise KeyboardInterrupt
                record(self, line)

            patched.setattr(checkpoint.ParamsWriter, "_record", killed)
            assert hf_to_flax.main(argv) == 130
    assert hf_to_flax.main(argv) == 0
    params = read_hf(source)[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(load_target(tmp_path / "out", "bfloat16")[1]), params)


def test_what_a_killed_run_has_left_is_cleared_up(source, tmp_path, capsys, monkeypatch):
    out, partial, old = tmp_path / "out", tmp_path / ".out.partial", tmp_path / ".out.old"
    argv = [str(source), "--out", str(out), "--force"]
    with monkeypatch.context() as patched:
        patched.setattr(conversion.shutil, "copytree", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        assert hf_to_flax.main(argv) == 130
    (partial / "parts").mkdir()
    (partial / ".config.json-123").write_text("{")
    old.mkdir()
    (old / "params").mkdir()  # Killed while it replaced an older one, which was put back and is now replaced.
    assert hf_to_flax.main(argv) == 0
    assert tree_of(tmp_path) == ["out", "source"]
    names = ["adapter", "config.json", "generation_config.json", "params"]
    assert [name for name in tree_of(out) if "token" not in name and "chat" not in name] == names


def test_what_comes_to_the_destination_meanwhile_stays(source, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    real = conversion.shutil.copytree

    def intruder(*args, **kwargs):
        out.mkdir()
        (out / "notes.txt").write_text("precious")
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(conversion.shutil, "copytree", intruder)
        assert "has appeared in the meantime; move it away" in failed(capsys, source, "--out", out)
    assert tree_of(out) == ["notes.txt"]
    out.rename(tmp_path / "moved")
    assert hf_to_flax.main([str(source), "--out", str(out)]) == 0


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_where_it_would_grow_is_left_alone(source, tmp_path, capsys, kind):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    if kind == "file":
        (tmp_path / ".out.partial").write_text("precious")
    else:
        (tmp_path / ".out.partial").symlink_to(tmp_path / "mine")
    assert ".out.partial is in the way, where" in failed(capsys, source, "--out", tmp_path / "out")
    assert tree_of(tmp_path / "mine") == ["notes.txt"]


def test_odd_destinations(source, tmp_path, capsys):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "is a link that leads nowhere" in failed(capsys, source, "--out", tmp_path / "dangling")
    assert "holds the source" in failed(capsys, source, "--out", "/", "--force")
    assert "--dry-run makes nothing" in failed(capsys, source, "--dry-run", "--check")


def test_values_too_large_for_a_dtype_are_refused(tmp_path, capsys):
    config, params = read_hf(FIXTURES / "gqa", "float32")
    params["norm"]["scale"][3] = 1e6
    write_hf(tmp_path / "large", config, params)
    argv = (tmp_path / "large", "--out", tmp_path / "out", "--dtype")
    assert "model.norm.weight has values too large for float16; choose bfloat16" in failed(capsys, *argv, "float16")
    assert hf_to_flax.main([*map(str, argv), "bfloat16"]) == 0


def test_what_an_older_format_has_begun_begins_anew(source, tmp_path, monkeypatch, capsys, written):
    argv = [str(source), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patched:  # All params are written, and their columns in another order.
        patched.setattr(conversion, "config_to_hf", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert hf_to_flax.main(argv) == 130
    marker = tmp_path / ".out.partial" / ".work.json"
    work = json.loads(marker.read_text())
    assert work.pop("format") == 2 and len(written) == LEAVES
    marker.write_text(json.dumps(work))
    written.clear()
    assert hf_to_flax.main(argv) == 0
    assert len(written) == LEAVES


def test_another_source_begins_anew(source, tmp_path, monkeypatch, capsys, written):
    argv = [str(source), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patched:
        patched.setattr(conversion, "_write_params", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert hf_to_flax.main(argv) == 130
    stray = tmp_path / ".out.partial" / "params"
    stray.mkdir()
    weights = source / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert hf_to_flax.main(argv) == 0
    assert len(written) == LEAVES
    params = read_hf(source)[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(load_target(tmp_path / "out", "bfloat16")[1]), params)


def test_a_dry_run_says_what_would_happen(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(StoredTensor, "__array__", lambda *args: pytest.fail("an element is read"))
    assert hf_to_flax.main([str(source), "--dry-run", "--dtype", "float32", "--out", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-3:] == ["in", "float32", "bytes"]
    assert any(line.startswith("model.layers.0-2.self_attn.v_proj.weight") for line in lines)
    assert "bytes written  213,120" in lines
    (source / "model.safetensors").unlink()
    assert "has none of model.safetensors" in failed(capsys, source, "--dry-run")
    assert tree_of(tmp_path) == ["source"]


def test_a_conversion_is_checked_against_a_reference(source, tmp_path, capsys):
    golden = FIXTURES / "gqa" / "golden.npz"
    assert hf_to_flax.main([str(source), "--out", str(tmp_path / "out"), "--check", str(golden)]) == 0
    captured = capsys.readouterr()
    assert "check passed: " in captured.err and str(tmp_path / "out") in captured.out
    assert "no.npz" in failed(capsys, source, "--out", tmp_path / "again", "--check", tmp_path / "no.npz")
    with np.load(golden) as stored:
        np.savez(tmp_path / "wrong.npz", **{**stored, "logits": np.roll(stored["logits"], 1, axis=-1)})
    assert hf_to_flax.main([str(source), "--out", str(tmp_path / "bad"), "--check", str(tmp_path / "wrong.npz")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("check FAILED: ") and "so nothing was written" in lines[-1]
    assert tree_of(tmp_path) == ["out", "source", "wrong.npz"]


def test_two_at_once(source, tmp_path, capsys):
    with resumable_directory(tmp_path / "out", {}) as staged:
        (staged / "theirs").write_text("theirs")
        assert "another process is writing" in failed(capsys, source, "--out", tmp_path / "out")
    assert tree_of(tmp_path / "out") == ["theirs"]


def test_a_disk_without_room_is_refused_before_anything_is_written(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    line = failed(capsys, source, "--out", tmp_path / "out")
    assert "has 5.00B free and the converted model takes 107kB; make room" in line
    assert tree_of(tmp_path) == ["source"]


def test_unusable_sources(source, tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "empty has no config.json" in failed(capsys, tmp_path / "empty", *out)
    assert "no directory '/no/such/model'; give an existing" in failed(capsys, "/no/such/model", *out)
    assert "is a file; give the directory" in failed(capsys, source / "config.json", *out)
    assert "no directory 'kangaru'; give an existing directory, a hub id" in failed(capsys, "kangaru", *out)
    assert "no directory '~nobody-at-all'" in failed(capsys, "~nobody-at-all", *out)
    assert "no directory ''" in failed(capsys, "", *out)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "not a complete safetensors file" in failed(capsys, source, *out)
    shutil.copyfile(FIXTURES / "tied" / "model.safetensors", weights)
    assert "1 tensors are missing: lm_head.weight" in failed(capsys, source, *out)
    (source / "config.json").write_text('{"model_type": "gpt2"}')
    assert "model_type = 'gpt2'" in failed(capsys, source, *out)
    assert tree_of(tmp_path) == ["empty", "source"]


def test_a_converted_directory_is_not_converted_again(source, tmp_path, capsys):
    assert hf_to_flax.main([str(source), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert "out is converted already" in failed(capsys, tmp_path / "out", "--out", tmp_path / "again")


@pytest.mark.parametrize(("name", "hub_id"), [("vicuna-7b", "lmsys/vicuna-7b-v1.3"), ("me/mine", "me/mine")])
def test_aliases_and_hub_ids_are_downloaded(name, hub_id, source, home_folder, monkeypatch, capsys):
    line = failed(capsys, name)
    assert f"no directory '{hub_id}', and downloading it from the hub failed" in line
    assert "(ConnectionError: no route to host)" in line
    assert "either check name, network" in line and "or fetch the files elsewhere and give their directory" in line
    assert not home().exists()
    asked = []

    def download(repo_id, revision, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hf_to_flax.main([name]) == 0
    assert [repo_id for repo_id, _ in asked] == [hub_id]
    assert {"model*.safetensors", "model*.safetensors.index.json", "config.json", "tokenizer.json"} <= set(asked[0][1])
    assert tree_of(home_folder) == [name.replace("/", "--")]
    assert load_target(name)[2] == home_folder / name.replace("/", "--")


def test_an_unknown_dtype_is_refused_by_the_parser(source, capsys):
    with pytest.raises(SystemExit) as caught:
        hf_to_flax.main([str(source), "--dtype", "int4"])
    assert caught.value.code == 2
    assert "invalid choice: 'int4'" in capsys.readouterr().err
