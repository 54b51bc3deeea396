"""One table of several methods and seeds: `python -m scripts.compare_runs [--against base] FOLDER [FOLDER ...]`.

It reads the `scores.json` files of train.py and valid.py, wherever they lie below the folders.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from utils.errors import UserError, did_you_mean, run_entry_point
from utils.files import write_text
from utils.logs import write_line
from utils.tables import align, markdown

UNSEEN = "mean over targets"


@dataclass
class Results:
    """Mean IoU (fractions) by method, column and seed."""

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)  # columns of domains that were not trained on
    columns: list[str] = field(default_factory=list)  # all, in the order in which they were met

    def of(self, method: str, column: str) -> dict[int, float]:
        """Return seed -> mean IoU; the mean over targets has the seeds that have every target."""
        if column != UNSEEN:
            return self.values[method].get(column, {})
        rows = [self.of(method, target) for target in self.targets]
        seeds = set.intersection(*map(set, rows)) if rows else set()
        return {seed: fmean(row[seed] for row in rows) for seed in sorted(seeds)}


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files named and those below the folders named.

    Raises:
        UserError: a path without scores.
    """
    files: dict[Path, None] = {}
    for path in paths:
        found = sorted(path.rglob("scores.json")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise UserError(f"{path}: no scores.json there; give run folders of train.py or --out folders of valid.py")
        files.update(dict.fromkeys(found))
    return list(files)


def read_results(files: Sequence[Path], *, checkpoint: str) -> Results:
    """Read score files of one kind of checkpoint (last, best_source, ...).

    Raises:
        UserError: not a score file, none of this kind, numbers on different images, two numbers for one cell.
    """
    results, origin, lists = Results(), dict[tuple[str, str, int], Path](), dict[str, tuple[str, Path]]()
    for file in files:
        for method, seed, column, is_source, images, value in _rows(file, checkpoint=checkpoint):
            known, first = lists.setdefault(column, (images, file))
            if known != images:
                raise UserError(f"{file}: {column} was scored on {images}, but in {first} on {known}; score both alike")
            cell = results.values.setdefault(method, {}).setdefault(column, {})
            if cell.get(seed, value) != value:
                raise UserError(
                    f"{file} and {origin[method, column, seed]} both score {method}, seed {seed}, on {column}; "
                    "leave one of them out"
                )
            if value is None:
                raise UserError(f"{file}: {column} has no labelled pixel; leave it out")
            cell[seed], origin[method, column, seed] = value, file
            kinds = [results.columns] if is_source else [results.columns, results.targets]
            for kind in kinds:
                if column not in kind:
                    kind.append(column)
    if not results.values:
        raise UserError(f"--checkpoint {checkpoint}: none of the {len(files)} score files is of such a checkpoint")
    return results


def _rows(file: Path, *, checkpoint: str) -> list[tuple[str, int, str, bool, str, float | None]]:
    """Return method, seed, column, whether it is a source, images and mean IoU of each domain's main counting."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        about, rows = content["weights"], [row for row in content["domains"] if not row["subset"]]
        if about["checkpoint"] != checkpoint:
            return []
        found = []
        for row in rows:
            how, seed = row["protocol"], about.get("seed") or 0  # published: unknown
            split = "" if how["split"] == "val" else f" {how['split']}"
            column = f"{row['domain']}{split}{' (source)' if row['is_source'] else ''}"
            images = f"list {how['list_hash']}, {how['transform']}"
            found.append((about["method"], seed, column, row["is_source"], images, row["scores"]["mean_iou"]))
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a score file of train.py or valid.py ({error!r}); leave it out") from error


def mean_table(results: Results) -> list[list[str]]:
    """Return heading and one line per method: seeds, then mean and sample deviation of the mean IoU in percent."""
    columns = [*results.columns, *([UNSEEN] if len(results.targets) > 1 else [])]
    table = [["method", "seeds", *columns]]
    for method in results.values:
        cells = [list(results.of(method, column).values()) for column in columns]
        table.append([method, str(max(map(len, cells))), *map(_spread, cells)])
    return table


def _spread(values: Sequence[float], *, sign: str = "") -> str:
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
    for method in results.values:
        if method == against:
            continue
        differences = []
        for column in results.targets or results.columns:
            mine, theirs = results.of(method, column), results.of(against, column)
            differences += [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
        better = sum(value > 0 for value in differences)
        p = _p(wilcoxon(differences).pvalue) if any(differences) else "-"
        table.append([method, str(len(differences)), _spread(differences, sign="+"), str(better), p])
    return table


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


NOTE = """Mean IoU in %, mean ± deviation over seeds. Differences in points, paired by seed and target; p: Wilcoxon's
signed-rank test, two-sided. Pairs of one seed share their weights, so they are not independent and p is too small."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_runs", description="Compare methods over seeds and domains.", allow_abbrev=False
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="run folders, or scores.json files")
    parser.add_argument("--against", default="", metavar="METHOD", help="what differences are taken from [the first]")
    parser.add_argument("--checkpoint", default="last", help="last, best_source, best_TARGET [last]")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the tables as Markdown too")
    given = parser.parse_args(argv)
    results = read_results(find_files(given.paths), checkpoint=given.checkpoint)
    tables = [mean_table(results)]
    if len(results.values) > 1:
        tables.append(difference_table(results, against=given.against or next(iter(results.values))))
    elif given.against:
        raise UserError(f"--against {given.against}: there is one method only, {next(iter(results.values))}")
    if given.out is not None:
        write_text(given.out, "\n\n".join([*map(markdown, tables), NOTE]) + "\n")
    write_line("\n\n".join([*map(align, tables), NOTE]))


if __name__ == "__main__":
    run_entry_point(main)
