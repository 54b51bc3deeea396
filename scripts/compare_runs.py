"""`python -m scripts.compare_runs [--against base] FOLDER ...`: one table of several methods and seeds.

It reads the `scores.json` files of train.py and valid.py, wherever they lie below the folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from scripts.options import make_parser
from utils.errors import UserError, did_you_mean, run_entry_point
from utils.files import write_text
from utils.logs import write_line
from utils.tables import Style, format_table

UNSEEN = "mean over targets"
STYLES: dict[str, Style] = {".md": "markdown", ".html": "html", ".tex": "latex"}
NOTE = """Mean IoU in %, mean ± deviation over seeds. Differences in points, paired by seed and target; p: Wilcoxon's
signed-rank test, two-sided. Pairs of one seed share their weights, so they are not independent and p is too small."""


@dataclass
class Results:
    """Mean IoU (fractions) by method, column (a domain and split) and seed; columns in the order in which they came."""

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    columns: dict[str, bool] = field(default_factory=dict)  # whether it is a target: not trained on

    @property
    def targets(self) -> list[str]:
        return [column for column, is_target in self.columns.items() if is_target]

    def of(self, method: str, column: str) -> dict[int, float]:
        """Return seed -> mean IoU; the mean over targets has the seeds that have every target."""
        if column != UNSEEN:
            return self.values[method].get(column, {})
        rows = [self.of(method, target) for target in self.targets]
        return {seed: fmean(row[seed] for row in rows) for seed in sorted(set.intersection(*map(set, rows)))}


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files named and those below the folders named, or raise `UserError` for a path without scores."""
    files: dict[Path, None] = {}
    for path in paths:
        below = sorted(path.rglob("scores.json")) if path.is_dir() else [path] if path.is_file() else []
        if not below:
            raise UserError(f"{path}: no scores.json there; give run folders of train.py or --out folders of valid.py")
        files.update(dict.fromkeys(below))
    return list(files)


def read_results(files: Sequence[Path], *, checkpoint: str) -> Results:
    """Read score files of one kind of checkpoint (last, best_source, ...).

    Raises:
        UserError: not a score file, none of this kind, numbers on different images, two numbers for one cell.
    """
    results, images, files_of = Results(), dict[str, tuple[str, Path]](), dict[tuple[str, str, int], Path]()
    for file in files:
        for method, seed, column, is_source, listed, value in _rows(file, checkpoint=checkpoint):
            known, first = images.setdefault(column, (listed, file))
            if known != listed:
                raise UserError(
                    f"{file}: {column} was evaluated on {listed}, but in {first} on {known}; evaluate both alike"
                )
            if value is None:
                raise UserError(f"{file}: {column} has no labelled pixel; leave it out")
            cell, key = results.values.setdefault(method, {}).setdefault(column, {}), (method, column, seed)
            if cell.setdefault(seed, value) != value:
                raise UserError(
                    f"{file} and {files_of[key]} both score {method}, seed {seed}, on {column}; leave one of them out"
                )
            files_of[key], results.columns[column] = file, not is_source
    if not results.values:
        raise UserError(f"--checkpoint {checkpoint}: none of the {len(files)} score files is of such a checkpoint")
    return results


def _rows(file: Path, *, checkpoint: str) -> list[tuple[str, int, str, bool, str, float | None]]:
    """Return method, seed, column, whether it is a source, images and mean IoU of each domain's main score."""
    try:
        content, rows = json.loads(file.read_text(encoding="utf-8")), []
        about = content["weights"]
        for row in content["domains"] if about["checkpoint"] == checkpoint else ():
            protocol, is_source = row["protocol"], row["is_source"]
            split = "" if protocol["split"] == "val" else f" {protocol['split']}"
            column = f"{row['domain']}{split}{' (source)' if is_source else ''}"
            images, value = f"list {protocol['list_hash']}, {protocol['transform']}", row["scores"]["mean_iou"]
            if not row["subset"]:  # a published file does not know its seed
                rows.append((about["method"], about.get("seed") or 0, column, is_source, images, value))
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a score file of train.py or valid.py ({error!r}); leave it out") from error


def mean_table(results: Results) -> list[list[str]]:
    """Return heading and one line per method: seeds, then mean and sample deviation of the mean IoU in percent."""
    columns = [*results.columns, *([UNSEEN] if len(results.targets) > 1 else [])]
    table = [["method", "seeds", *columns]]
    for method in results.values:
        cells = [list(results.of(method, column).values()) for column in columns]
        table.append([method, str(max(map(len, cells))), *map(_mean, cells)])
    return table


def _mean(values: Sequence[float], *, sign: str = "") -> str:
    if not values:
        return "-"
    deviation = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):{sign}.2f}{deviation}"


def difference_table(results: Results, *, against: str) -> list[list[str]]:
    """Return heading and one line per other method: its difference from `against`, paired by seed and target.

    p is that of Wilcoxon's signed-rank test, two-sided. Without targets the pairs are over all columns.

    Raises:
        UserError: no method of this name.
    """
    from scipy.stats import wilcoxon

    if against not in results.values:
        known = ", ".join(results.values)
        raise UserError(f"--against {against}: not among {known}{did_you_mean(against, results.values)}")
    table = [[f"difference from {against}", "pairs", "mean", "better in", "p"]]
    for method in [name for name in results.values if name != against]:
        differences = []
        for column in results.targets or results.columns:
            values, reference = results.of(method, column), results.of(against, column)
            differences += [values[seed] - reference[seed] for seed in values if seed in reference]
        better, p = sum(value > 0 for value in differences), "-"
        if any(differences):
            p = f"{value:.3f}" if (value := wilcoxon(differences).pvalue) >= 0.001 else "< 0.001"
        table.append([method, str(len(differences)), _mean(differences, sign="+"), str(better), p])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("compare_runs", "Compare methods over seeds and domains.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="run folders, or scores.json files")
    parser.add_argument("--against", default="", metavar="METHOD", help="what differences are taken from [the first]")
    parser.add_argument("--checkpoint", default="last", metavar="NAME", help="last, best_source or best_TARGET")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables too: FILE.md, FILE.html or FILE.tex")
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix not in STYLES:
        raise UserError(f"--out {args.out}: must end with {', '.join(STYLES)}; name another file")
    results = read_results(find_files(args.paths), checkpoint=args.checkpoint)
    tables, first = [mean_table(results)], next(iter(results.values))
    if len(results.values) > 1:
        tables.append(difference_table(results, against=args.against or first))
    elif args.against:
        raise UserError(f"--against {args.against}: there is one method only, {first}")
    if args.out is not None:
        parts = [format_table(table, STYLES[args.out.suffix]) for table in tables]
        write_text(args.out, "\n\n".join([*parts, NOTE]) + "\n")
    write_line("\n\n".join([*map(format_table, tables), NOTE]))


if __name__ == "__main__":
    run_entry_point(main)
