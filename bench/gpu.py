"""What a GPU makes of this project, in ten minutes: for a machine that one has seldom, and not for long.

python -m bench.gpu --out runs/gpu                                all stages, in the order of their worth
python -m bench.gpu --out runs/gpu --stages facts,speed --budget 300
python -m bench.gpu --out runs/gpu --model DIR --questions question.jsonl
python -m bench.gpu --out runs/rehearsal --rehearse               every step at a tiny size, on any machine

Each stage is a process of its own and ends when its share of the time is over; OUT/STAGE.json is written anew after
every step, so that whatever ends a run leaves what was measured. The same command goes on where it stopped: steps that
failed are tried again. docs/gpu.md says how to read the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kangaroo_jax.files import whole_file
from workshop.command import exit_status
from workshop.places import check_folder, claimed, write_figures

SECONDS = {"facts": 30, "truth": 120, "speed": 240, "use": 60, "training": 90, "code": 60}
"""What each stage may take; what one leaves is the next one's."""
GRACE = 5


def finished(out: Path, stage: str) -> dict[str, Any]:
    """Return what a stage has written: figures by step, errors by step, and the step that was running.

    Raises:
        ValueError: if the file is not of this command.
    """
    file = out / f"{stage}.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"steps": {}, "errors": {}, "running": None}
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); remove it, or pass another --out") from None
    if not isinstance(found, dict) or set(found) != {"steps", "errors", "running"}:
        raise ValueError(f"{file} is not of this command; remove it, or pass another --out")
    return found


def run_stage(stage: str, args: argparse.Namespace) -> None:
    """Run the steps of a stage that are not done, one after the other, in this process."""
    from bench.gpu_stages import STAGES, Setup  # Here, since it loads JAX, and with it the card.

    setup = Setup(args.out, args.rehearse, args.model, args.questions, args.data)
    file, end = args.out / f"{stage}.json", time.monotonic() + args.budget
    state = finished(args.out, stage) | {"running": None}  # Of a run that was killed there may be a step left.
    for step in STAGES[stage]:
        left = end - time.monotonic()
        if step.name in state["steps"] or step.name in args.without:
            continue
        if left < step.seconds and not args.rehearse:
            print(f"{stage}: {step.name} left out, {left:.0f} s are left and it takes {step.seconds}", flush=True)
            continue
        state["errors"].pop(step.name, None)
        write_figures(file, state | {"running": step.name})
        began = time.monotonic()
        try:
            figures = step.run(setup)
            if figures is not None:
                state["steps"][step.name] = {"seconds": time.monotonic() - began, "figures": figures}
        except Exception:
            state["errors"][step.name] = traceback.format_exc()
        write_figures(file, state)
        said = "FAILED" if step.name in state["errors"] else "done" if figures is not None else "not asked for"
        print(f"{stage}: {step.name} {said}, {time.monotonic() - began:.1f} s", flush=True)


def watch_stage(stage: str, args: argparse.Namespace, seconds: float) -> None:
    """Run a stage in a process of its own, and again without the step that ended it, while there is time."""
    words = ["--out", str(args.out), "--stages", stage, "--inside", *(["--rehearse"] if args.rehearse else [])]
    for name in ("model", "questions", "data"):
        words += [f"--{name}", str(getattr(args, name))] if getattr(args, name) else []
    end, without = time.monotonic() + seconds, list[str]()
    while (left := end - time.monotonic()) > GRACE:
        given = [*words, "--budget", str(left), *(word for name in without for word in ("--without", name))]
        # A group of its own, to be ended with all that it has started.
        child = subprocess.Popen([sys.executable, "-m", "bench.gpu", *given], start_new_session=True)
        try:
            reason = f"ended with status {child.wait(left - GRACE)}"
        except subprocess.TimeoutExpired:
            reason = f"was ended after {left:.0f} s"
        finally:
            _end(child)
        state = finished(args.out, stage)
        if state["running"] is None:
            return
        without.append(state["running"])
        state["errors"][state["running"]] = f"the process {reason}"
        print(f"{stage}: {state['running']}: the process {reason}", flush=True)
        write_figures(args.out / f"{stage}.json", state | {"running": None})


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and its group: asked first, since a training run then keeps its state."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)


def _end_with(parent: int) -> None:
    """Let this process's group end when ``parent`` has, however that ends: two must not share the card."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _pack(out: Path) -> None:
    """Put the adapter and its checkpoints into one file, as far as they are there: easier to carry."""
    found = [path for path in (out / "adapter", out / "adapter-training") if path.exists()]
    if found:
        with whole_file(out / "adapter.tar.gz") as staged, tarfile.open(staged, "w:gz") as archive:
            for path in found:
                archive.add(path, path.name)


def run(args: argparse.Namespace) -> int:
    """Run the stages; the exit status: 1 where a step failed.

    Raises:
        ValueError: if an argument cannot be used, or a file in ``--out`` is not of this command.
    """
    unknown = [stage for stage in args.stages if stage not in SECONDS]
    if unknown:
        raise ValueError(f"--stages has {', '.join(unknown)}; choose from {', '.join(SECONDS)}")
    if args.budget <= 0:
        raise ValueError(f"--budget is {args.budget:g}; give seconds, more than 0")
    if args.inside:
        _end_with(os.getppid())
        for stage in args.stages:
            run_stage(stage, args)
        return 0
    check_folder(args.out)
    began, shares = time.monotonic(), sum(SECONDS[stage] for stage in args.stages)
    with claimed(args.out, "measures in"):
        spent = 0.0
        for stage in args.stages:
            spent += args.budget * SECONDS[stage] / shares
            watch_stage(stage, args, began + spent - time.monotonic())
        _pack(args.out)
        states = {stage: finished(args.out, stage) for stage in args.stages}
    errors = [f"{stage}: {name}" for stage, state in states.items() for name in state["errors"]]
    count = sum(len(state["steps"]) for state in states.values())
    print(f"{count} steps measured, {len(errors)} failed, {time.monotonic() - began:.0f} s; figures in {args.out}")
    for error in errors:
        print(f"failed: {error}")
    return 1 if errors else 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the figures, a file for each stage")
    add("--stages", type=lambda text: text.split(","), default=list(SECONDS), help=f"default: {','.join(SECONDS)}")
    add("--budget", type=float, default=sum(SECONDS.values()), metavar="SECONDS", help="for all (default: %(default)s)")
    add("--rehearse", action="store_true", help="tiny shapes and few turns: does every step work here?")
    add("--model", metavar="MODEL", help="a real model with an adapter, as for kangaroo_jax.load")
    add("--questions", type=Path, metavar="FILE", help="Spec-Bench's question.jsonl, for the model")
    add("--data", type=Path, metavar="FILE", help="conversations, to train the model's adapter on")
    add("--inside", action="store_true", help=argparse.SUPPRESS)
    add("--without", action="append", default=[], help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, 1 if a step failed, 2 on bad input, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: run(args), afterwards="the same command goes on where it stopped", out=args.out)


if __name__ == "__main__":
    sys.exit(main())
