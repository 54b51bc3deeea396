"""`python -m scripts.compare_runs [--against base] FOLDER ...`: one table of several methods and seeds.

It reads the `scores.json` files of train.py and valid.py, wherever they lie below the folders, and the files of
--per_image beside them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from utils import program_parser
from utils.errors import UserError, did_you_mean, run_entry_point


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser("scripts.compare_runs", "Compare methods over seeds and domains.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="run folders, or scores.json files")
    parser.add_argument("--against", default="", metavar="METHOD", help="what differences are taken from [the first]")
    text = "whose scores are compared: last (the default), best_source, best_TARGET, graph, exported or predictions"
    parser.add_argument("--checkpoint", action="append", metavar="NAME", help=f"{text}; may be given several times")
    text = "write the tables too: FILE.md, .html, .csv or .tex; FILE.png plots them"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

from evaluation.compare import Comparison, Mean, read_scores
from evaluation.page import template
from utils import format_csv, format_table
from utils.files import write_text
from utils.logs import write_line
from utils.pictures import new_figure, save_png
from utils.pictures import render as render_figure

SUFFIXES = (".md", ".html", ".csv", ".tex", ".png")
LEVEL = 0.05
NOTE = "Mean IoU in %, mean ± deviation over seeds."
DIFFERENCE_NOTE = """Bold: the best mean of a column; †: p < 0.05. Differences in points, paired by seed. p: paired
t-test over seeds, two-sided, not corrected for several comparisons; - below two seeds or without spread."""
INTERVAL_NOTE = """95 % over images, of a mean in brackets: percentile bootstrap, 1,000 draws of each domain's images,
the same for all methods and seeds. It holds for these weights: what another seed would change is not in it."""


def mean_table(found: Comparison) -> list[list[str]]:
    """Return heading and one line per method: seeds, then each column; the best in bold, as Markdown has it.

    Where columns have different numbers of seeds, the least and the most of those that have any are given.
    """
    rows = {method: [found.mean(method, column) for column in found.shown] for method in found.methods}
    best = [
        max((fmean(mean.values) for mean in column if mean.values), default=0)
        for column in zip(*rows.values(), strict=True)
    ]
    table = [["method", "seeds", *found.shown]]
    for method, means in rows.items():
        seeds = sorted({len(mean.values) for mean in means if mean.values})
        cells = [method, " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))]
        for column, mean, top in zip(found.shown, means, best, strict=True):
            p = found.difference(method, column).p if (method, column) in found.compared else None
            mark = "†" if p is not None and p < LEVEL else ""
            interval = " [{:.2f}, {:.2f}]".format(*(100 * end for end in mean.interval)) if mean.interval else ""
            bold = "**" if len(rows) > 1 and mean.values and fmean(mean.values) == top else ""
            cells.append(f"{bold}{mean.text()}{mark}{bold}{interval}")
        table.append(cells)
    return table


def difference_table(found: Comparison) -> list[list[str]]:
    """Return heading and a line per other method and column; intervals over images where a line has them."""
    table = [[f"difference from {found.against}", "on", "seeds", "mean", "better in", "p", "95 % over images"]]
    for method, column in found.compared:
        mean = found.difference(method, column)
        p = "-" if mean.p is None else f"{mean.p:.3f}" if mean.p >= 0.001 else "< 0.001"
        better = sum(value > 0 for value in mean.values)
        interval = "{:+.2f} to {:+.2f}".format(*(100 * end for end in mean.interval)) if mean.interval else ""
        table.append([method, column, str(len(mean.values)), mean.text(sign="+"), str(better), p, interval])
    return table if any(row[-1] for row in table[1:]) else [row[:-1] for row in table]


def to_csv(found: Comparison) -> str:
    """Return a line per method and column, values as fractions; differences are empty for `against` itself."""
    numbers = ["seeds", "mean", "deviation", "image_low", "image_high"]
    heading = ["method", "on", "target", *numbers, "against", *(f"difference_{name}" for name in numbers), "p"]
    table = [heading]
    for method, column in product(found.methods, found.shown):
        target = "yes" if found.columns.get(column, True) else "no"
        cells: list[Any] = [method, column, target, *_numbers(found.mean(method, column))]
        if (method, column) in found.compared:
            difference = found.difference(method, column)
            cells += [found.against, *_numbers(difference), difference.p]
        table.append([*cells, *[""] * (len(heading) - len(cells))])
    return format_csv(table)


def _numbers(mean: Mean) -> list[float | None]:
    value = fmean(mean.values) if mean.values else None
    return [len(mean.values), value, mean.deviation, *(mean.interval or (None, None))]


def plot(found: Comparison) -> Any:
    """Return a figure of each target, and their mean, against the source: means and deviations over seeds.

    Without a source the first column takes its place.
    """
    source = next((column for column, is_target in found.columns.items() if not is_target), found.shown[0])
    others = [column for column in found.shown if column != source] or [source]
    figure = new_figure(4.2 * len(others), 4.2)
    panels, drawn = figure.subplots(1, len(others), squeeze=False)[0], dict[str, Any]()
    for panel, column in zip(panels, others, strict=True):
        for number, method in enumerate(found.methods):
            across, up = (found.mean(method, name) for name in (source, column))
            if across.values and up.values:
                spread = [100 * (mean.deviation or 0) for mean in (across, up)]
                values = [100 * fmean(mean.values) for mean in (across, up)]
                label = f"{method} ({len(up.values)})"
                style = {"fmt": "osD^vPX*"[number % 8], "color": f"C{number}", "capsize": 3, "label": label}
                drawn.setdefault(method, panel.errorbar(*values, xerr=spread[0], yerr=spread[1], **style))
        panel.set(title=column, xlabel=f"{source}: mean IoU in %")
    panels[0].set_ylabel("mean IoU in %")
    handles = [drawn[method] for method in found.methods if method in drawn]
    title = "mean and deviation over seeds (their number)"
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), title=title, frameon=False)
    return figure


def render(found: Comparison, tables: Sequence[Sequence[Sequence[str]]], note: str, *, suffix: str) -> str:
    """Return the content of a file of a suffix among SUFFIXES."""
    if suffix == ".csv":
        return to_csv(found)
    if suffix == ".html":
        return str(template("comparison.html.j2").render(tables=tables, note=note, methods=found.methods))
    if suffix == ".md":
        return "\n\n".join([*(format_table(table, "markdown") for table in tables), note]) + "\n"
    text = "\n\n".join(format_table(table, "latex") for table in tables)
    text = text.replace("±", r"$\pm$").replace("†", r"$^\dagger$")
    comments = "".join(f"% {line}\n" for line in [r"needs \usepackage{booktabs}", *note.splitlines()])
    return comments + re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.out is not None and args.out.suffix not in SUFFIXES:
        raise UserError(f"--out {args.out}: must end with {', '.join(SUFFIXES)}; name another file")
    cells = read_scores(args.paths, checkpoints=args.checkpoint or ["last"])
    methods = Comparison(cells, "").methods
    if len(methods) == 1 and args.against:
        raise UserError(f"--against {args.against}: there is one method only, {methods[0]}")
    if args.against not in ("", *methods):
        raise UserError(
            f"--against {args.against}: not among {', '.join(methods)}{did_you_mean(args.against, methods)}"
        )
    found = Comparison(cells, (args.against or methods[0]) if len(methods) > 1 else "")
    tables, notes = [mean_table(found)], [NOTE]
    if found.against:
        tables.append(difference_table(found))
        notes.append(DIFFERENCE_NOTE)
    if any(cell.place for cell in cells.values()):
        notes.append(INTERVAL_NOTE)
    note = "\n".join(notes)
    if args.out is not None and args.out.suffix == ".png":
        save_png(render_figure(plot(found)), args.out)
    elif args.out is not None:
        write_text(args.out, render(found, tables, note, suffix=args.out.suffix))
    plain = [[[cell.replace("**", "") for cell in line] for line in table] for table in tables]
    write_line("\n\n".join([*map(format_table, plain), note]))


if __name__ == "__main__":
    run_entry_point(main)
