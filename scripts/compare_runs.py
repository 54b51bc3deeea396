"""`python -m scripts.compare_runs [--against base] FOLDER ...`: one table of several methods and seeds.

It reads the `scores.json` files of train.py and valid.py, wherever they lie below the folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from utils import program_parser
from utils.errors import UserError, did_you_mean, run_entry_point
from utils.files import write_text
from utils.logs import write_line
from utils.tables import Style, format_table

UNSEEN = "mean over targets"
STYLES: dict[str, Style] = {".md": "markdown", ".html": "html", ".tex": "latex"}
NOTE = """Mean IoU in %, mean ± deviation over seeds. Differences in points, paired by seed and target; p: Wilcoxon's
signed-rank test, two-sided. Pairs of one seed share their weights, so they are not independent and p is too small."""
Scores = dict[str, dict[str, dict[int, float]]]  # method -> column (a domain and split) -> seed -> mean IoU, a fraction


def read_scores(paths: Sequence[Path], *, checkpoint: str) -> tuple[Scores, dict[str, bool]]:
    """Return the scores of one kind of checkpoint (last, best_source, ...), and whether each column is a target.

    Raises `UserError` at files without such scores, numbers on different images, and two numbers for one cell.
    """
    files: dict[Path, None] = {}
    for path in paths:
        below = sorted(path.rglob("scores.json")) if path.is_dir() else [path] * path.is_file()
        if not below:
            raise UserError(f"{path}: no scores.json there; give run folders of train.py or --out folders of valid.py")
        files.update(dict.fromkeys(below))
    scores, columns, first = Scores(), dict[str, bool](), dict[tuple[str | int, ...], tuple[str | float, Path]]()
    for file in files:
        for method, seed, column, is_target, images, value in _rows(file, checkpoint=checkpoint):
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
    if not scores:
        raise UserError(f"--checkpoint {checkpoint}: none of the {len(files)} score files is of such a checkpoint")
    return scores, columns


def _rows(file: Path, *, checkpoint: str) -> list[tuple[str, int, str, bool, str, float | None]]:
    """Return method, seed, column, whether it is a target, images and mean IoU of each domain's main score."""
    try:
        content, rows = json.loads(file.read_text(encoding="utf-8")), []
        about = content["weights"]
        for row in content["domains"] if about["checkpoint"] == checkpoint else ():
            protocol, is_source = row["protocol"], row["is_source"]
            split = "" if protocol["split"] == "val" else f" {protocol['split']}"
            column = f"{row['domain']}{split}{' (source)' if is_source else ''}"
            images = f"list {protocol['list_hash']}, {protocol['transform']}, scales {protocol['scales']}"
            value = row["scores"]["mean_iou"]
            if not row["subset"]:  # a published file does not know its seed
                rows.append((about["method"], about.get("seed") or 0, column, not is_source, images, value))
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


def difference_table(scores: Scores, columns: Sequence[str], *, against: str) -> list[list[str]]:
    """Return heading and one line per other method: its difference from `against`, paired by seed and column."""
    from scipy.stats import wilcoxon

    table = [[f"difference from {against}", "pairs", "mean", "better in", "p"]]
    for method in [name for name in scores if name != against]:
        pairs = ((scores[method].get(column, {}), scores[against].get(column, {})) for column in columns)
        differences = [row[seed] - other[seed] for row, other in pairs for seed in row if seed in other]
        better, p = sum(value > 0 for value in differences), "-"
        if any(differences):
            p = f"{value:.3f}" if (value := wilcoxon(differences).pvalue) >= 0.001 else "< 0.001"
        table.append([method, str(len(differences)), _mean(differences, sign="+"), str(better), p])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = program_parser("scripts.compare_runs", "Compare methods over seeds and domains.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="run folders, or scores.json files")
    parser.add_argument("--against", default="", metavar="METHOD", help="what differences are taken from [the first]")
    parser.add_argument("--checkpoint", default="last", metavar="NAME", help="last, best_source or best_TARGET")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables too: FILE.md, FILE.html or FILE.tex")
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix not in STYLES:
        raise UserError(f"--out {args.out}: must end with {', '.join(STYLES)}; name another file")
    scores, columns = read_scores(args.paths, checkpoint=args.checkpoint)
    tables, methods = [mean_table(scores, columns)], list(scores)
    if len(methods) == 1 and args.against:
        raise UserError(f"--against {args.against}: there is one method only, {methods[0]}")
    if args.against not in ("", *methods):
        raise UserError(
            f"--against {args.against}: not among {', '.join(methods)}{did_you_mean(args.against, methods)}"
        )
    if len(methods) > 1:
        targets = [column for column, is_target in columns.items() if is_target]
        tables.append(difference_table(scores, targets or list(columns), against=args.against or methods[0]))
    if args.out is not None:
        parts = [format_table(table, STYLES[args.out.suffix]) for table in tables]
        write_text(args.out, "\n\n".join([*parts, NOTE]) + "\n")
    write_line("\n\n".join([*map(format_table, tables), NOTE]))


if __name__ == "__main__":
    run_entry_point(main)
