"""bench.travel: files in parts that its own join.sh joins, whatever arrives first, and names what is damaged."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import travel
from bench.travel import MIB, Part, cut, plan, transfers


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Files in tmp_path/from, one in a folder, and one without bytes."""
    draw = random.Random(3)
    contents = {"a.gguf": draw.randbytes(2 * MIB + 7), "model/empty": b"", "model/b.safetensors": draw.randbytes(MIB)}
    for name, data in contents.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(data)
    return contents


def prepare(tmp_path: Path, *words: str) -> int:
    given = ["--file", str(tmp_path / "from/a.gguf"), "--file", str(tmp_path / "from/model"), "--limit", "1.75"]
    return travel.main(["--out", str(tmp_path / "kit"), *given, "--beside", "0", *words])


def arrive(tmp_path: Path, number: int) -> None:
    shutil.copytree(tmp_path / "kit" / f"{number}", tmp_path / "there" / f"{number}", dirs_exist_ok=True)


def join(tmp_path: Path, number: int) -> subprocess.CompletedProcess[str]:
    words = ["sh", str(tmp_path / "there" / f"{number}" / "join.sh")]
    return subprocess.run(words, capture_output=True, text=True)


def test_files_are_cut_where_a_transfer_is_full() -> None:
    parts = cut({"a": 3, "b": 4, "none": 0, "c": 8}, 5)
    assert parts == {
        "a": [Part("1/a.001", 3)],
        "b": [Part("1/b.001", 2), Part("2/b.002", 2)],
        "none": [Part("2/none.001", 0)],
        "c": [Part("2/c.001", 3), Part("3/c.002", 5)],
    }
    assert transfers(parts) == [5, 5, 5]


def test_what_arrives_in_any_order_is_joined(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert prepare(tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "kit").iterdir()) == ["1", "2", "3"]
    arrive(tmp_path, 2)
    first = join(tmp_path, 2)
    assert first.returncode == 2 and "a.gguf waits for 1/a.gguf.001\n" in first.stdout
    arrive(tmp_path, 1)
    second = join(tmp_path, 1)
    assert second.returncode == 2 and "a.gguf is whole\n" in second.stdout
    stamp = (tmp_path / "there/a.gguf").stat().st_mtime_ns
    arrive(tmp_path, 3)
    assert join(tmp_path, 3).returncode == join(tmp_path, 1).returncode == 0
    assert {name: (tmp_path / "there" / name).read_bytes() for name in files} == files
    assert (tmp_path / "there/a.gguf").stat().st_mtime_ns == stamp and not list((tmp_path / "there").rglob("*.new"))


def test_a_damaged_and_a_lost_part_are_named_and_can_be_carried_again(tmp_path: Path, files: dict[str, bytes]) -> None:
    prepare(tmp_path)
    for number in (1, 2, 3):
        arrive(tmp_path, number)
    damaged = tmp_path / "there/1/a.gguf.001"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (tmp_path / "there/3/model/b.safetensors.002").unlink()
    found = join(tmp_path, 3)
    assert found.returncode == 1
    assert found.stderr == (
        "a.gguf: damaged, carry again: 1/a.gguf.001\n"
        "model/b.safetensors: damaged, carry again: 3/model/b.safetensors.002\n"
    )
    assert not (tmp_path / "there/a.gguf").exists() and (tmp_path / "there/model/empty").exists()
    arrive(tmp_path, 1), arrive(tmp_path, 3)
    assert join(tmp_path, 3).returncode == 0 and (tmp_path / "there/a.gguf").read_bytes() == files["a.gguf"]


def test_a_joined_file_that_was_damaged_is_joined_again(tmp_path: Path, files: dict[str, bytes]) -> None:
    prepare(tmp_path)
    for number in (1, 2, 3):
        arrive(tmp_path, number)
    join(tmp_path, 1)
    (tmp_path / "there/a.gguf").write_bytes(b"cut")
    assert join(tmp_path, 2).returncode == 0 and (tmp_path / "there/a.gguf").read_bytes() == files["a.gguf"]


def test_the_same_command_makes_the_same_parts_again(tmp_path: Path, files: dict[str, bytes]) -> None:
    def kit() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in (tmp_path / "kit").rglob("*") if file.is_file()}

    prepare(tmp_path)
    before = kit()
    (tmp_path / "kit/4").mkdir()
    assert prepare(tmp_path) == 0 and kit() == before and not (tmp_path / "kit/4").exists()


def test_links_are_followed_as_in_a_folder_of_a_download_cache(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/model.gguf").symlink_to(tmp_path / "from/a.gguf")
    found = travel.find_files([tmp_path / "snapshot"])
    assert {name: path.read_bytes() for name, path in found.items()} == {"snapshot/model.gguf": files["a.gguf"]}


def test_the_plan_has_runs_behind_the_last_transfers() -> None:
    assert plan("kit", [3 * MIB, MIB], [], ["make a"], "", 15) == (
        "1. Carry kit/1 (3.0 MiB); there, in the checkout's root:\nsh kit/1/join.sh\n\n"
        "2. Carry kit/2 (1.0 MiB); there, in the checkout's root:\nsh kit/2/join.sh && (make a)"
    )
    found = plan("kit", [MIB, MIB], ["x.whl"], ["make a", "make b", "make c"], "", 15).split("\n")
    install = "python3 -m pip install -q --no-index --no-deps --upgrade --target kit/site kit/x.whl"
    assert found[1] == "sh kit/1/join.sh; (make a)"
    assert found[4] == f"sh kit/2/join.sh && {install} && export PYTHONPATH=kit/site && (make b)"
    assert found[6].startswith("3. Carry nothing more;") and found[7].endswith("&& (make c)")


def test_what_comes_back_is_packed_in_parts_and_unpacked_by_the_printed_commands(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    figures = random.Random(5).randbytes(2 * MIB)
    (tmp_path / "runs/figures.json").write_bytes(figures)
    lines = plan("kit", [MIB], [], ["exit 3"], "runs", 1).split("\n")
    (tmp_path / "kit/1").mkdir(parents=True)
    (tmp_path / "kit/1/join.sh").write_text("exit 0\n")
    out = tmp_path / "out"
    out.mkdir()
    there = subprocess.run(["sh", "-c", lines[1]], cwd=tmp_path, env={"OUT": str(out), "PATH": "/usr/bin:/bin"})
    assert there.returncode == 3  # The run's own.
    assert len(list(out.iterdir())) == 3 and max(file.stat().st_size for file in out.iterdir()) <= MIB
    subprocess.run(["sh", "-c", lines[-1]], cwd=out, check=True)
    assert (out / "runs/figures.json").read_bytes() == figures


def test_only_what_git_ignores_is_a_place_for_parts(tmp_path: Path, monkeypatch, capsys, files) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("build/\nfrom/\n")
    (tmp_path / "code.py").write_bytes(bytes(MIB))
    monkeypatch.chdir(tmp_path)
    words = ["--file", "from/a.gguf", "--limit", "3"]
    assert travel.main(["--out", "kit", *words]) == 2
    assert capsys.readouterr().err.startswith("error: --out is kit, and git does not ignore it: ")
    assert travel.main(["--out", "build/kit", *words]) == 0
    assert capsys.readouterr().out.startswith(
        "2 transfers of at most 3 MiB, 1.0 of them the checkout's own\n\n1. Carry "
    )
    assert travel.main(["--out", "build/kit", "--file", "from/a.gguf", "--limit", "1"]) == 2
    assert capsys.readouterr().err == "error: --limit is 1, and 1.0 MiB travel anyway; there is no room\n"


def test_bad_input_is_refused_in_one_line(tmp_path: Path, capsys, files) -> None:
    def refused(*words: str) -> str:
        assert travel.main(["--beside", "0", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    out, file = ["--out", str(tmp_path / "kit")], ["--file", str(tmp_path / "from/a.gguf")]
    (tmp_path / "from/a b").touch()
    (tmp_path / "from/3").touch()
    assert refused(*out) == "error: there is nothing to carry; name it with --file"
    assert "absent, and there is no such file or folder" in refused(*out, "--file", str(tmp_path / "absent"))
    assert "'a b'; rename it" in refused(*out, "--file", str(tmp_path / "from/a b"))
    assert "'3', and that name is taken" in refused(*out, "--file", str(tmp_path / "from/3"))
    assert "'a.gguf', and that name is taken" in refused(*out, *file, *file)
    assert "--limit is nan; it must be above 0 and finite" in refused(*out, *file, "--limit", "nan")
    assert "--back-limit is 0; it must be at least 1" in refused(*out, *file, "--back-limit", "0")
    assert "holds what is not of this command" in refused("--out", str(tmp_path / "from"), *file)
    assert not (tmp_path / "kit").exists()
