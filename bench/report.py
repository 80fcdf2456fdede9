"""Figures and tables of benchmarks, like the paper's, from result files: pictures, and sections of a Markdown page.

python -m bench.report runs/spec_bench/joey runs/ablate/joey/grid runs/ablate/joey/adapters
python -m bench.report runs/spec_bench/vicuna-7b --out report

The folders are those of bench.spec_bench and bench.ablate. A section stands in the page between two marks, such as
<!-- methods --> and <!-- /methods -->; what is written around them stays, and a page that is not there is begun.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import figures
from bench.ablate import ABLATION
from bench.folder import IN_IDENTITY, RECORD, check_fields, read_folder, read_record
from bench.result_tables import made_by, markdown, number, share, tables, with_interval
from bench.run_bench import results_of
from bench.summary import confidences
from kangaroo_jax.files import read_json, whole_file
from workshop.command import exit_status

PAGE = "benchmarks.md"


def methods_section(folder: Path, pictures: Path, prefix: str) -> str:
    """Draw the figures of a ``bench.spec_bench`` folder; return the section with them and all tables.

    Args:
        folder: the folder.
        pictures: where pictures go.
        prefix: what their names begin with.
    """
    record, answers = read_folder(folder)
    results = results_of(answers, record["costs"])
    figures.draw_speedups(results, pictures / f"{prefix}speedups.png")
    lines = [_picture(pictures, prefix, "speedups", "Speedup of each method over plain decoding, by task")]
    if any(found["ctar"] for found in results["overall"].values()):
        figures.draw_ctar(results, pictures / f"{prefix}ctar.png")
        figures.draw_accept_lengths(results, pictures / f"{prefix}accept_lengths.png")
        lines.append(_picture(pictures, prefix, "ctar", "CTAR over w, by task"))
        lines.append(_picture(pictures, prefix, "accept_lengths", "Tokens committed in a round, by method"))
    # Without the second early exit every draft is as long as the others, and none is left out for being unsure.
    if drafting := [name for name in ("kangaroo-fixed", "kangaroo") if name in answers]:
        of_task = {
            task: confidences(answer for answer in answers[drafting[0]] if answer.task == task and answer.run == 1)
            for task in results["tasks"]
        }
        figures.draw_confidences(of_task, pictures / f"{prefix}confidence.png")
        title = f"Confidence of accepted and rejected drafts of {drafting[0]}, by task"
        lines.append(_picture(pictures, prefix, "confidence", title))
    return "\n\n".join([tables(record, results).rstrip("\n"), *lines])


def grid_section(found: Mapping[str, Any], pictures: Path, prefix: str) -> str:
    """Draw an ablation over gamma and eta; return the section with it."""
    rows = found["rows"]
    figures.draw_grid(rows, pictures / f"{prefix}grid.png")
    etas, gammas = sorted({row["eta"] for row in rows}), sorted({row["gamma"] for row in rows})
    by_setting = {(row["gamma"], row["eta"]): row for row in rows}

    def table(figure: str) -> str:
        lines = [
            (f"gamma {gamma}", *(number(by_setting.get((gamma, eta), {}).get(figure)) for eta in etas))
            for gamma in gammas
        ]
        return markdown(("", *(f"eta {eta:g}" for eta in etas)), lines)

    best = max(rows, key=lambda row: row["speedup"])
    return "\n\n".join(
        [
            _picture(pictures, prefix, "grid", "Compression rate, drafted tokens and speedup over eta, by gamma"),
            f"Speedup (fastest: gamma {best['gamma']}, eta {best['eta']:g}, {best['speedup']:.2f}x):",
            table("speedup"),
            "Compression rate:",
            table("compression_rate"),
            made_by(found["record"], rows[0]["questions"]),
        ]
    )


def adapters_section(found: Mapping[str, Any], pictures: Path, prefix: str) -> str:
    """Return the section of an ablation over adapters: a table, and over exit layers a figure."""
    rows = found["rows"]
    head = ("exit layer", "adapter", "parameters", "compression rate", "drafted/round", "acceptance", "speedup [95 %]")
    lines = [
        (
            str(row["exit_layer"]),
            row["adapter"],
            f"{row['parameters']:,}",
            number(row["compression_rate"]),
            number(row["drafted_per_round"]),
            share(row["acceptance_rate"]),
            with_interval(row["speedup"], row["speedup_interval"]),
        )
        for row in rows
    ]
    parts = [markdown(head, lines), made_by(found["record"], rows[0]["questions"])]
    for kind in sorted({row["adapter"] for row in rows}):
        of_kind = [row for row in rows if row["adapter"] == kind]
        if len(of_kind) > 1:
            figures.draw_exit_layers(of_kind, pictures / f"{prefix}exits_{kind}.png")
            title = f"Compression rate and speedup over the exit layer, adapter {kind}"
            parts.insert(0, _picture(pictures, prefix, f"exits_{kind}", title))
    return "\n\n".join(parts)


def read_ablation(file: Path) -> dict[str, Any]:
    """Return what an ablation has found.

    Raises:
        ValueError: if the file is damaged, or lacks something that tables show.
    """
    found = read_json(file, "run python -m bench.ablate again")
    check_fields(file, found, ("kind", "record", "rows"))
    check_fields(file, found["record"], ("identity", "command", "commits", "cores"))
    check_fields(file, found["record"]["identity"], IN_IDENTITY)
    return found


def write_page(page: Path, sections: Mapping[str, str]) -> None:
    """Put sections between their marks in a Markdown page; those that have none yet go to its end.

    Args:
        page: the page; begun if it is not there.
        sections: text by name of the mark.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else "# Benchmarks\n"
    for name, section in sections.items():
        block = f"<!-- {name} -->\n\n{section}\n\n<!-- /{name} -->"
        pattern = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.DOTALL)
        if old := pattern.search(text):
            text = text[: old.start()] + block + text[old.end() :]
        else:
            text = f"{text.rstrip()}\n\n{block}\n"
    with whole_file(page) as staged:
        staged.write_text(text, encoding="utf-8")


def report(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write the page and its pictures; return what was written.

    Raises:
        ValueError: if a folder holds no results.
    """
    pictures, sections, before = out / "figures", {}, _stamps(out)
    for folder in folders:
        if (folder / ABLATION).is_file():
            found = read_ablation(folder / ABLATION)
            name = f"{found['record']['identity']['model']} {folder.name}"
            draw = grid_section if found["kind"] == "grid" else adapters_section
            sections[name] = draw(found, pictures, f"{name.replace(' ', '_')}_")
        elif (folder / RECORD).is_file():
            name = f"{read_record(folder)['identity']['model']} methods"
            if name in sections:
                name = f"{name} {folder.name}"
            sections[name] = methods_section(folder, pictures, f"{name.replace(' ', '_')}_")
        else:
            raise ValueError(
                f"{folder} holds neither {RECORD} nor {ABLATION}; pass a folder of bench.spec_bench or bench.ablate"
            )
    write_page(out / PAGE, sections)
    return sorted(path for path, stamp in _stamps(out).items() if before.get(path) != stamp)


def _stamps(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [out / PAGE, *out.glob("figures/*.png")] if path.exists()}


def _picture(pictures: Path, prefix: str, name: str, title: str) -> str:
    return f"![{title}]({pictures.name}/{prefix}{name}.png)"


def main(argv: Sequence[str] | None = None) -> int:
    """Write figures and tables; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders with results")
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), metavar="DIR", help=f"folder of {PAGE} (default: %(default)s)"
    )
    args = parser.parse_args(argv)

    def run() -> None:
        for path in report(args.folders, args.out):
            print(path)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
