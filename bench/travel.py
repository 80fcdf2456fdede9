"""What goes along to a machine without a network, where each transfer is bounded: in parts, checked and joined there.

python -m bench.travel --out build/travel --file model.gguf
python -m bench.travel --out build/travel --file MODEL_DIR --file x.whl --run "make_figures --out runs/x" --back runs/x

OUT/1, OUT/2, ... are what single transfers carry beside the checkout, each with a join.sh: it checks what has arrived,
names what is damaged or not there yet, and joins in OUT every file whose parts are all there. It may be run at any time
and as often as wanted. The commands are printed in their order; wheels are installed into OUT/site by them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kangaroo_jax.files import whole_directory
from workshop.command import check_numbers, exit_status
from workshop.places import check_folder

MIB = 1 << 20
HEADER = 1 << 10
"""What an archive adds to a file: its name, and padding."""
SPARE = MIB // 4
"""Left free in a transfer, for join.sh and what archives add."""
NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)


@dataclass(frozen=True)
class Part:
    """Bytes of a file, where they lie (``2/model.gguf.002``), and how many there are."""

    path: str
    size: int

    @property
    def transfer(self) -> int:
        """Which transfer carries it, from 1."""
        return int(self.path.split("/")[0])


def cut(sizes: Mapping[str, int], room: int) -> dict[str, list[Part]]:
    """Return the parts of each file: all files behind each other, cut where a transfer is full.

    With room for 5, files of 3 and 4 bytes are ``1/a.001`` (3), and ``1/b.001`` (2) and ``2/b.002`` (2).

    Args:
        sizes: bytes of each file.
        room: bytes that a transfer holds.
    """
    parts: dict[str, list[Part]] = {}
    used = 0
    for name, size in sizes.items():
        found, left = parts.setdefault(name, []), size
        while left or not found:
            take = min(left, room - used % room)
            found.append(Part(f"{used // room + 1}/{name}.{len(found) + 1:03d}", take))
            left, used = left - take, used + take
    return parts


def transfers(parts: Mapping[str, Sequence[Part]]) -> list[int]:
    """Return the bytes of each transfer's parts."""
    found = [0] * max(part.transfer for each in parts.values() for part in each)
    for part in (part for each in parts.values() for part in each):
        found[part.transfer - 1] += part.size
    return found


def write_parts(out: Path, files: Mapping[str, Path], parts: Mapping[str, Sequence[Part]]) -> None:
    """Write every part below a folder, and join.sh beside the parts of each transfer.

    Raises:
        ValueError: if a file is shorter than its parts.
    """
    calls = list[str]()
    for name, path in files.items():
        whole, words = hashlib.sha256(), list[str]()
        with path.open("rb") as opened:
            for part in parts[name]:
                data = opened.read(part.size)
                if len(data) < part.size:
                    raise ValueError(f"{path} became shorter while it was read; wait until it is written")
                (out / part.path).parent.mkdir(parents=True, exist_ok=True)
                (out / part.path).write_bytes(data)
                whole.update(data)
                words += [part.path, hashlib.sha256(data).hexdigest()]
        calls.append(f"join {name} {whole.hexdigest()} {' '.join(words)}\n")
    script = "".join([Path(__file__).with_name("join.sh").read_text(encoding="utf-8"), *calls, "exit $status\n"])
    for number, _ in enumerate(transfers(parts), 1):
        (out / f"{number}" / "join.sh").write_text(script, encoding="utf-8")


def plan(out: str, sizes: Sequence[int], wheels: Sequence[str], runs: Sequence[str], back: str, limit: int) -> str:
    """Return the commands in their order: what is carried, what is run after it, and how results come back.

    Args:
        out: the folder of the parts, from the checkout's root.
        sizes: bytes of each transfer.
        wheels: names of wheels; the runs after the last transfer have them.
        runs: the last follow the last transfers; of more than there are transfers, the rest need nothing carried.
        back: what comes back after each run, whatever that ended in, as a tar file in parts; empty for nothing.
        limit: MiB of such a part.
    """
    out, steps, lines = shlex.quote(out), max(len(sizes), len(runs)), list[str]()
    named = " ".join(f"{out}/{name}" for name in wheels)
    install = f"python3 -m pip install -q --no-index --no-deps --upgrade --target {out}/site {named}"
    pack = f'; status=$?; tar -czf - {shlex.quote(back)} | split -d -b {limit}m - "${{OUT:?}}/back.tgz."; exit $status'
    for step, run in enumerate([*[""] * (steps - len(runs)), *runs], 1):
        command = f"sh {out}/{min(step, len(sizes))}/join.sh"
        if run:
            command += " && " if step >= len(sizes) else "; "
            command += f"{install} && export PYTHONPATH={out}/site && " if wheels and step >= len(sizes) else ""
            command += f"({run})" + (pack if back else "")
        carried = f"{out}/{step} ({sizes[step - 1] / MIB:.1f} MiB)" if step <= len(sizes) else "nothing more"
        lines.append(f"{step}. Carry {carried}; there, in the checkout's root:\n{command}")
    if back:
        lines.append("OUT is the folder whose files come back. Here, where they arrive:\ncat back.tgz.* | tar -xzf -")
    return "\n\n".join(lines)


def find_files(given: Sequence[Path]) -> dict[str, Path]:
    """Return the files to carry by the names that they will have; of a folder, all that is in it, below its name.

    Raises:
        ValueError: if one is not there, has a name that a shell could misread, or two have the same.
    """
    found: dict[str, Path] = {}
    for path in given:
        if not path.exists():
            raise ValueError(f"--file is {path}, and there is no such file or folder")
        for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
            name = Path(os.path.abspath(file)).relative_to(Path(os.path.abspath(path)).parent).as_posix()
            if not NAME.fullmatch(name):
                raise ValueError(f"--file has {name!r}; rename it: letters, digits, . _ + and - are allowed")
            if name in found or name.split("/")[0].isdigit():
                raise ValueError(f"--file has {name!r}, and that name is taken; rename one of them")
            found[name] = file
    if not found:
        raise ValueError("there is nothing to carry; name it with --file")
    return found


def checkout_bytes(root: Path) -> int:
    """Return what a checkout weighs in an archive: all files that git does not ignore; 0 outside of one."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    paths = [root / name for name in listed.stdout.split("\0") if name] if listed else []
    return sum(path.stat().st_size + HEADER for path in paths if path.is_file())


def check_out(out: Path, root: Path) -> None:
    """Raise ValueError if a folder cannot be written, holds something else, or would travel with the checkout."""
    check_folder(out)
    if out.exists() and any(out.iterdir()) and not (out / "1" / "join.sh").is_file():
        raise ValueError(f"--out is {out}, and holds what is not of this command; choose another")
    ignored = _git(root, "check-ignore", "-q", str(out.absolute() / "1"))
    if ignored and ignored.returncode == 1:
        raise ValueError(
            f"--out is {out}, and git does not ignore it: all of it would travel each time; try build/travel"
        )


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[str] | None:
    """Run git; None if it is not there or fails: this is no checkout, or the path is outside of it."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done if done.returncode in (0, 1) else None


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.travel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the parts, in the checkout, ignored by git")
    add("--file", type=Path, action="append", default=[], metavar="PATH", help="file or folder; may be repeated")
    add("--limit", type=float, default=64.0, metavar="MiB", help="of a transfer (default: %(default)g)")
    beside = "of it, what goes along each time anyway (default: what git does not ignore of the checkout)"
    add("--beside", type=float, metavar="MiB", help=beside)
    run = "run there after the last transfer; of several, the last ones follow the last transfers"
    add("--run", action="append", default=[], metavar="COMMAND", help=run)
    add("--back", default="", metavar="PATH", help="file or folder that comes back after each --run")
    add("--back-limit", type=int, default=15, metavar="MiB", help="of a file that comes back (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0, or 2 on bad input."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        check_numbers(
            args,
            ("limit", 0 < args.limit < 1e9, "above 0 and finite"),
            ("beside", args.beside is None or 0 <= args.beside < 1e9, "at least 0 and finite"),
            ("back_limit", args.back_limit >= 1, "at least 1"),
        )
        root = Path.cwd()
        check_out(args.out, root)
        files = find_files(args.file)
        beside = checkout_bytes(root) if args.beside is None else round(args.beside * MIB)
        room = round(args.limit * MIB) - beside - SPARE - HEADER * len(files)
        if room < 1:
            raise ValueError(f"--limit is {args.limit:g}, and {beside / MIB:.1f} MiB travel anyway; there is no room")
        parts = cut({name: path.stat().st_size for name, path in files.items()}, room)
        with whole_directory(args.out, replace=True) as staged:
            write_parts(staged, files, parts)
        sizes, wheels = transfers(parts), [name for name in files if name.endswith(".whl")]
        print(f"{len(sizes)} transfers of at most {args.limit:g} MiB, {beside / MIB:.1f} of them the checkout's own\n")
        print(plan(args.out.as_posix(), sizes, wheels, args.run, args.back, args.back_limit))

    return exit_status(work, out=args.out, afterwards="give the same command again")


if __name__ == "__main__":
    sys.exit(main())
