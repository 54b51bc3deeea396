"""`python -m scripts.compare_runs [--against base] FOLDER ...`: one table of several methods and seeds.

It reads the `scores.json` files of train.py and valid.py, wherever they lie below the folders, and the files of
--per_image beside them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from utils import program_parser
from utils.errors import UserError, did_you_mean, run_entry_point


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser("scripts.compare_runs", "Compare methods over seeds and domains.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="run folders, or scores.json files")
    parser.add_argument("--against", default="", metavar="METHOD", help="what differences are taken from [the first]")
    parser.add_argument("--checkpoint", default="last", metavar="NAME", help="last, best_source or best_TARGET")
    text = "write the tables too: FILE.md, .html, .csv or .tex; FILE.png plots them"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

import numpy as np

from evaluation.bootstrap import Place, Places, image_interval
from evaluation.page import template
from evaluation.report import PER_IMAGE_FILE
from utils.files import read_whole, write_text
from utils.logs import write_line
from utils.pictures import new_figure, save_png
from utils.pictures import render as render_figure
from utils.tables import format_table, no_formula

UNSEEN = "mean over targets"
SUFFIXES = (".md", ".html", ".csv", ".tex", ".png")
LEVEL = 0.05
NOTE = "Mean IoU in %, mean ± deviation over seeds."
DIFFERENCE_NOTE = """Bold: the best mean of a column; †: p < 0.05. Differences in points, paired by seed. p: paired
t-test over seeds, two-sided, not corrected for several comparisons; - below two seeds or without spread."""
INTERVAL_NOTE = """95 % over images, of a mean in brackets: percentile bootstrap, 1,000 draws of each domain's images,
the same for all methods and seeds. It holds for these weights: what another seed would change is not in it."""
Scores = dict[str, dict[str, dict[int, float]]]  # method -> column (a domain and split) -> seed -> mean IoU, a fraction


def read_scores(paths: Sequence[Path], *, checkpoint: str) -> tuple[Scores, dict[str, bool], Places]:
    """Return the scores of one kind of checkpoint (last, best_source, ...), and whether each column is a target.

    The third are the counts of single images, of the scores that have them.

    Raises `UserError` at files without such scores, numbers on different images or classes, two numbers for one cell,
    and a method with several networks or sources.
    """
    files: dict[Path, None] = {}
    for path in paths:
        below = sorted(path.rglob("scores.json")) if path.is_dir() else [path] * path.is_file()
        if not below:
            raise UserError(f"{path}: no scores.json there; give run folders of train.py or --out folders of valid.py")
        files.update(dict.fromkeys(below))
    scores, columns, places = Scores(), dict[str, bool](), Places()
    first = dict[tuple[str | int, ...], tuple[str | float, Path]]()
    for file in files:
        for row in _rows(file, checkpoint=checkpoint):
            method, column, seed, value = row.method, row.column, row.seed, row.value
            classes = ", ".join(row.place.classes)
            alike = {  # what rows must share: value, verb, preposition, remedy
                (method, "made"): (row.made, f"{method} is ", "", "compare them apart"),
                (column, "images"): (row.images, f"{column} was evaluated ", "on ", "evaluate both alike"),
                (column, "classes"): (classes, f"{column} is scored ", "over ", "evaluate both alike"),
            }
            for key, (found, verb, preposition, remedy) in alike.items():
                known, other = first.setdefault(key, (found, file))
                if known != found:
                    both = f"{verb}{preposition}{found}, but in {other} {preposition}{known}"
                    raise UserError(f"{file}: {both}; {remedy}")
            if value is None:
                raise UserError(f"{file}: {column} has no labelled pixel; leave it out")
            known, other = first.setdefault((method, column, seed), (value, file))
            if known != value:
                raise UserError(
                    f"{file} and {other} both score {method}, seed {seed}, on {column}; leave one of them out"
                )
            scores.setdefault(method, {}).setdefault(column, {})[seed] = value
            columns[column] = row.is_target
            if row.place.file.is_file():
                places[method, column, seed] = row.place
    if not scores:
        raise UserError(f"--checkpoint {checkpoint}: none of the {len(files)} score files is of such a checkpoint")
    return scores, columns, places


class _Row(NamedTuple):
    """A domain's main score in a file."""

    method: str
    made: str  # the network and its source
    seed: int
    column: str
    is_target: bool
    images: str  # and how they were evaluated
    value: float | None  # mean IoU
    place: Place


def _rows(file: Path, *, checkpoint: str) -> list[_Row]:
    try:
        content, rows = json.loads(read_whole(file)), []
        about = content["weights"]
        for row in content["domains"] if about["checkpoint"] == checkpoint else ():
            protocol, is_source = row["protocol"], row["is_source"]
            split = "" if protocol["split"] == "val" else f" {protocol['split']}"
            column = f"{row['domain']}{split}{' (source)' if is_source else ''}"
            images = f"list {protocol['list_hash']}, {protocol['transform']}, scales {protocol['scales']}"
            images += f", {protocol['classes']} classes"
            value = row["scores"]["mean_iou"]
            if not row["subset"] and not row.get("corruption"):  # a published file does not know its seed
                place = Place(file.with_name(PER_IMAGE_FILE), row["domain"], tuple(row["scores"].get("iou", ())))
                made = f"{about.get('network', '')} trained on {about.get('source', '')}"
                seed = about.get("seed") or 0
                rows.append(_Row(about["method"], made, seed, column, not is_source, images, value, place))
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not a score file of train.py or valid.py ({reason}); leave it out") from error


class Mean(NamedTuple):
    """Values of one method in one column, or differences from another's, one per seed, as fractions."""

    values: list[float]
    interval: tuple[float, float] | None  # 95 % over images

    def __str__(self) -> str:
        return self.text()

    def text(self, *, sign: str = "") -> str:
        """Return mean and sample deviation in percent; `-` without a value."""
        if not self.values:
            return "-"
        deviation = "" if self.deviation is None else f" ± {100 * self.deviation:.2f}"
        return f"{100 * fmean(self.values):{sign}.2f}{deviation}"

    @property
    def deviation(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def p(self) -> float | None:
        """Of the two-sided paired t-test over seeds; None below two seeds and where all differences are equal."""
        from scipy.stats import ttest_1samp

        if len(self.values) < 2 or np.ptp(self.values) < 1e-9:
            return None
        return float(ttest_1samp(self.values, 0).pvalue)


@dataclass(frozen=True)
class Comparison:
    """Scores of several methods: of each column, and of the mean over targets where there are several."""

    scores: Scores
    columns: Mapping[str, bool]  # whether each is a target
    places: Places
    against: str  # method; "" where there is one alone

    @property
    def targets(self) -> list[str]:
        return [column for column, is_target in self.columns.items() if is_target]

    @property
    def shown(self) -> list[str]:
        return [*self.columns, *([UNSEEN] if len(self.targets) > 1 else [])]

    @property
    def others(self) -> list[str]:
        return [method for method in self.scores if method != self.against] if self.against else []

    @property
    def compared(self) -> list[str]:
        """The columns of which differences are taken: the targets, without any all columns."""
        return [column for column in self.shown if not self.targets or column == UNSEEN or self.columns[column]]

    def mean(self, method: str, column: str, *, against: str = "") -> Mean:
        """Return the values of a method, or its differences from another, of the seeds that have the whole column."""
        methods, parts = [method, *filter(None, [against])], self.targets if column == UNSEEN else [column]
        seeds = sorted(set.intersection(*(set(self.scores[m].get(part, {})) for m in methods for part in parts)))
        values = [[fmean(self.scores[m][part][seed] for part in parts) for m in methods] for seed in seeds]
        keys = [[(m, part, seed) for m in methods] for part in parts for seed in seeds]
        return Mean([row[0] - sum(row[1:]) for row in values], image_interval(self.places, keys))

    def mean_table(self) -> list[list[str]]:
        """Return heading and one line per method: seeds, then each column; the best in bold, as Markdown has it."""
        rows = {method: [self.mean(method, column) for column in self.shown] for method in self.scores}
        best = [
            max((fmean(m.values) for m in column if m.values), default=0) for column in zip(*rows.values(), strict=True)
        ]
        table = [["method", "seeds", *self.shown]]
        for method, means in rows.items():
            cells = [method, str(max(len(mean.values) for mean in means))]
            for column, mean, top in zip(self.shown, means, best, strict=True):
                mark, interval = "", ""
                if method in self.others and column in self.compared:
                    p = self.mean(method, column, against=self.against).p
                    mark = "†" if p is not None and p < LEVEL else ""
                if mean.interval:
                    interval = " [{:.2f}, {:.2f}]".format(*(100 * end for end in mean.interval))
                bold = "**" if len(rows) > 1 and mean.values and fmean(mean.values) == top else ""
                cells.append(f"{bold}{mean}{mark}{bold}{interval}")
            table.append(cells)
        return table

    def difference_table(self) -> list[list[str]]:
        """Return heading and a line per other method and column; intervals over images where a line has them."""
        table = [[f"difference from {self.against}", "on", "seeds", "mean", "better in", "p", "95 % over images"]]
        for method in self.others:
            for column in self.compared:
                mean = self.mean(method, column, against=self.against)
                p = "-" if mean.p is None else f"{mean.p:.3f}" if mean.p >= 0.001 else "< 0.001"
                better = sum(value > 0 for value in mean.values)
                interval = "{:+.2f} to {:+.2f}".format(*(100 * end for end in mean.interval)) if mean.interval else ""
                cells = [str(len(mean.values)), mean.text(sign="+"), str(better), p, interval]
                table.append([method, column, *cells])
        return table if any(row[-1] for row in table[1:]) else [row[:-1] for row in table]

    def to_csv(self) -> str:
        """Return a line per method and column, values as fractions; differences are empty for `against` itself."""
        buffer = io.StringIO()
        numbers = ["seeds", "mean", "deviation", "image_low", "image_high"]
        names = {method: no_formula(method) for method in self.scores}
        heading = ["method", "on", "target", *numbers, "against", *(f"difference_{name}" for name in numbers), "p"]
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(heading)
        for method, column in product(self.scores, self.shown):
            cells = [
                names[method],
                column,
                "yes" if self.columns.get(column, True) else "no",
                *_numbers(self.mean(method, column)),
            ]
            if method in self.others and column in self.compared:
                difference = self.mean(method, column, against=self.against)
                cells += [names[self.against], *_numbers(difference), difference.p]
            writer.writerow([*cells, *[""] * (len(heading) - len(cells))])
        return buffer.getvalue()


def _numbers(mean: Mean) -> list[float | None]:
    value = fmean(mean.values) if mean.values else None
    return [len(mean.values), value, mean.deviation, *(mean.interval or (None, None))]


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.out is not None and args.out.suffix not in SUFFIXES:
        raise UserError(f"--out {args.out}: must end with {', '.join(SUFFIXES)}; name another file")
    scores, columns, places = read_scores(args.paths, checkpoint=args.checkpoint)
    methods = list(scores)
    if len(methods) == 1 and args.against:
        raise UserError(f"--against {args.against}: there is one method only, {methods[0]}")
    if args.against not in ("", *methods):
        raise UserError(
            f"--against {args.against}: not among {', '.join(methods)}{did_you_mean(args.against, methods)}"
        )
    found = Comparison(scores, columns, places, (args.against or methods[0]) if len(methods) > 1 else "")
    tables = [found.mean_table(), *([found.difference_table()] if found.others else [])]
    note = "\n".join([NOTE, *([DIFFERENCE_NOTE] if found.others else []), *([INTERVAL_NOTE] if places else [])])
    if args.out is not None and args.out.suffix == ".png":
        save_png(render_figure(plot(found)), args.out)
    elif args.out is not None:
        write_text(args.out, render(found, tables, note, suffix=args.out.suffix))
    plain = [[[cell.replace("**", "") for cell in line] for line in table] for table in tables]
    write_line("\n\n".join([*map(format_table, plain), note]))


def plot(found: Comparison) -> Any:
    """Return a figure of each target, and their mean, against the source: means and deviations over seeds.

    Without a source the first column takes its place.
    """
    source = next((column for column, is_target in found.columns.items() if not is_target), found.shown[0])
    others = [column for column in found.shown if column != source] or [source]
    figure = new_figure(4.2 * len(others), 4.2)
    panels, drawn = figure.subplots(1, len(others), squeeze=False)[0], dict[str, Any]()
    for panel, column in zip(panels, others, strict=True):
        for number, method in enumerate(found.scores):
            across, up = (found.mean(method, name) for name in (source, column))
            if across.values and up.values:
                spread = [100 * (mean.deviation or 0) for mean in (across, up)]
                values = [100 * fmean(mean.values) for mean in (across, up)]
                label = f"{method} ({len(up.values)})"
                style = {"fmt": "osD^vPX*"[number % 8], "color": f"C{number}", "capsize": 3, "label": label}
                drawn.setdefault(method, panel.errorbar(*values, xerr=spread[0], yerr=spread[1], **style))
        panel.set(title=column, xlabel=f"{source}: mean IoU in %")
    panels[0].set_ylabel("mean IoU in %")
    handles = [drawn[method] for method in found.scores if method in drawn]
    title = "mean and deviation over seeds (their number)"
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), title=title, frameon=False)
    return figure


def render(found: Comparison, tables: Sequence[Sequence[Sequence[str]]], note: str, *, suffix: str) -> str:
    """Return the content of a file of a suffix among SUFFIXES."""
    if suffix == ".csv":
        return found.to_csv()
    if suffix == ".html":
        return str(template("comparison.html.j2").render(tables=tables, note=note, methods=list(found.scores)))
    if suffix == ".md":
        return "\n\n".join([*(format_table(table, "markdown") for table in tables), note]) + "\n"
    text = (
        "\n\n".join(format_table(table, "latex") for table in tables).replace("±", r"$\pm$").replace("†", r"$^\dagger$")
    )
    comments = "".join(f"% {line}\n" for line in [r"needs \usepackage{booktabs}", *note.splitlines()])
    return comments + re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text) + "\n"


if __name__ == "__main__":
    run_entry_point(main)
