"""`python -m scripts.compare_runs [--against base] FOLDER ...`: one table of several methods and seeds.

It reads the `scores.json` files of train.py and valid.py, wherever they lie below the folders, and the files of
--per_image beside them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from datasets.labels import CLASS_NAMES
from evaluation.metrics import score
from evaluation.report import PER_IMAGE_FILE
from utils import program_parser
from utils.errors import UserError, did_you_mean, run_entry_point
from utils.files import write_text
from utils.logs import write_line
from utils.tables import Style, format_table

UNSEEN = "mean over targets"
STYLES: dict[str, Style] = {".md": "markdown", ".html": "html", ".tex": "latex"}
NOTE = """Mean IoU in %, mean ± deviation over seeds. Differences in points, paired by seed and target; p: Wilcoxon's
signed-rank test, two-sided. Pairs of one seed share their weights, so they are not independent and p is too small."""
INTERVAL_NOTE = """95 % over images: percentile bootstrap of the mean difference, 1,000 draws of each target's images,
the same for both methods and all seeds. It holds for these weights: what another seed would change is not in it."""
RESAMPLES = 1000
Scores = dict[str, dict[str, dict[int, float]]]  # method -> column (a domain and split) -> seed -> mean IoU, a fraction


class Place(NamedTuple):
    """Where the counts of single images are: a file of --per_image, a domain in it, the scored classes' names."""

    file: Path
    domain: str
    classes: tuple[str, ...]


Places = dict[tuple[str, str, int], Place]  # of method, column and seed


def read_scores(paths: Sequence[Path], *, checkpoint: str) -> tuple[Scores, dict[str, bool], Places]:
    """Return the scores of one kind of checkpoint (last, best_source, ...), and whether each column is a target.

    The third are the counts of single images, of the scores that have them.

    Raises `UserError` at files without such scores, numbers on different images, and two numbers for one cell.
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
        for method, seed, column, is_target, images, value, place in _rows(file, checkpoint=checkpoint):
            known, other = first.setdefault((column,), (images, file))
            if known != images:
                raise UserError(
                    f"{file}: {column} was evaluated on {images}, but in {other} on {known}; evaluate both alike"
                )
            if value is None:
                raise UserError(f"{file}: {column} has no labelled pixel; leave it out")
            known, other = first.setdefault((method, column, seed), (value, file))
            if known != value:
                raise UserError(
                    f"{file} and {other} both score {method}, seed {seed}, on {column}; leave one of them out"
                )
            scores.setdefault(method, {}).setdefault(column, {})[seed] = value
            columns[column] = is_target
            if place.file.is_file():
                places[method, column, seed] = place
    if not scores:
        raise UserError(f"--checkpoint {checkpoint}: none of the {len(files)} score files is of such a checkpoint")
    return scores, columns, places


def _rows(file: Path, *, checkpoint: str) -> list[tuple[str, int, str, bool, str, float | None, Place]]:
    """Return method, seed, column, whether it is a target, images, mean IoU and place of each domain's main score."""
    try:
        content, rows = json.loads(file.read_text(encoding="utf-8")), []
        about = content["weights"]
        for row in content["domains"] if about["checkpoint"] == checkpoint else ():
            protocol, is_source = row["protocol"], row["is_source"]
            split = "" if protocol["split"] == "val" else f" {protocol['split']}"
            column = f"{row['domain']}{split}{' (source)' if is_source else ''}"
            images = f"list {protocol['list_hash']}, {protocol['transform']}, scales {protocol['scales']}"
            value = row["scores"]["mean_iou"]
            if not row["subset"] and not row.get("corruption"):  # a published file does not know its seed
                place = Place(file.with_name(PER_IMAGE_FILE), row["domain"], tuple(row["scores"].get("iou", ())))
                rows.append((about["method"], about.get("seed") or 0, column, not is_source, images, value, place))
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a score file of train.py or valid.py ({error!r}); leave it out") from error


def mean_table(scores: Scores, columns: Mapping[str, bool]) -> list[list[str]]:
    """Return heading and one line per method: seeds, then mean and sample deviation of the mean IoU in percent.

    The mean over several targets has the seeds that have every target.
    """
    targets = [column for column, is_target in columns.items() if is_target]
    table = [["method", "seeds", *columns, *([UNSEEN] if len(targets) > 1 else [])]]
    for method, row in scores.items():
        cells = [list(row.get(column, {}).values()) for column in columns]
        if len(targets) > 1:
            seeds = set.intersection(*(set(row.get(target, {})) for target in targets))
            cells.append([fmean(row[target][seed] for target in targets) for seed in sorted(seeds)])
        table.append([method, str(max(map(len, cells))), *map(_mean, cells)])
    return table


def _mean(values: Sequence[float], *, sign: str = "") -> str:
    if not values:
        return "-"
    deviation = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):{sign}.2f}{deviation}"


def difference_table(scores: Scores, columns: Sequence[str], places: Places, *, against: str) -> list[list[str]]:
    """Return heading and one line per other method: its difference from `against`, paired by seed and column.

    The intervals over images are a last column where a line has them.
    """
    from scipy.stats import wilcoxon

    table = [[f"difference from {against}", "pairs", "mean", "better in", "p", "95 % over images"]]
    for method in [name for name in scores if name != against]:
        found, other = scores[method], scores[against]
        pairs = [
            (column, seed) for column in columns for seed in found.get(column, {}) if seed in other.get(column, {})
        ]
        differences = [found[column][seed] - other[column][seed] for column, seed in pairs]
        better, p = sum(value > 0 for value in differences), "-"
        if any(differences):
            p = f"{value:.3f}" if (value := wilcoxon(differences).pvalue) >= 0.001 else "< 0.001"
        interval = image_interval(places, pairs, method=method, against=against)
        table.append([method, str(len(differences)), _mean(differences, sign="+"), str(better), p, interval])
    return table if any(row[-1] for row in table[1:]) else [row[:-1] for row in table]


def image_interval(places: Places, pairs: Sequence[tuple[str, int]], *, method: str, against: str) -> str:
    """Return the 95 % interval of the mean difference over resampled images; empty where a pair lacks their counts."""
    keys = [[(name, *pair) for name in (method, against)] for pair in pairs]
    if not keys or not all(key in places for pair in keys for key in pair):
        return ""
    values = [[resampled_scores(places[key], column=key[1]) for key in pair] for pair in keys]  # (pairs,2,RESAMPLES)
    low, high = np.percentile(np.subtract(*np.mean(values, axis=0)), (2.5, 97.5))
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


@cache
def resampled_scores(place: Place, *, column: str) -> np.ndarray[Any, Any]:
    """Return the mean IoU of each of RESAMPLES draws with replacement of all images; a column has its own draws."""
    with np.load(place.file, allow_pickle=False) as content:
        counts = content[f"{place.domain}/confusion"].astype(np.float64)  # (N,C,C)
    number, classes = len(counts), [CLASS_NAMES.index(name) for name in place.classes]
    draws = np.random.default_rng(zlib.crc32(column.encode())).multinomial(number, [1 / number] * number, RESAMPLES)
    totals = (draws @ counts.reshape(number, -1)).reshape(RESAMPLES, *counts.shape[1:])
    return np.array([score(total, CLASS_NAMES, classes=classes).mean_iou for total in totals])


def main(argv: Sequence[str] | None = None) -> None:
    parser = program_parser("scripts.compare_runs", "Compare methods over seeds and domains.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="run folders, or scores.json files")
    parser.add_argument("--against", default="", metavar="METHOD", help="what differences are taken from [the first]")
    parser.add_argument("--checkpoint", default="last", metavar="NAME", help="last, best_source or best_TARGET")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables too: FILE.md, FILE.html or FILE.tex")
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix not in STYLES:
        raise UserError(f"--out {args.out}: must end with {', '.join(STYLES)}; name another file")
    scores, columns, places = read_scores(args.paths, checkpoint=args.checkpoint)
    tables, methods, note = [mean_table(scores, columns)], list(scores), NOTE
    if len(methods) == 1 and args.against:
        raise UserError(f"--against {args.against}: there is one method only, {methods[0]}")
    if args.against not in ("", *methods):
        raise UserError(
            f"--against {args.against}: not among {', '.join(methods)}{did_you_mean(args.against, methods)}"
        )
    if len(methods) > 1:
        targets = [column for column, is_target in columns.items() if is_target]
        against = args.against or methods[0]
        tables.append(difference_table(scores, targets or list(columns), places, against=against))
        note += f"\n{INTERVAL_NOTE}" if len(tables[1][0]) > 5 else ""
    if args.out is not None:
        parts = [format_table(table, STYLES[args.out.suffix]) for table in tables]
        write_text(args.out, "\n\n".join([*parts, note]) + "\n")
    write_line("\n\n".join([*map(format_table, tables), note]))


if __name__ == "__main__":
    run_entry_point(main)
