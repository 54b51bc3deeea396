"""Time the parts of a run, beside a plain implementation: `python -m benchmarks [step|eval|...] [--against plain]`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import Row, Settings, machine, measure
from utils import format_table, program_parser
from utils.errors import UserError, run_entry_point
from utils.files import write_text
from utils.logs import write_line

COMPUTING = ("step", "eval", "statistics", "layout", "predict", "appearance")
READING = ("worker", "data", "startup")
TABLES = ("roofline", "scaling")
DETAILS = (
    "Names: step, eval, statistics, layout, predict (own images), appearance (of a batch, on the device), worker "
    "(sample of a loader's worker), data (labels, decoders), startup; roofline (floor of every part of a step and an "
    "evaluation from counted operations and the measured rates of the machine), scaling (1, 2 and 4 processes, and "
    "from these a computed table of 8 to 256 GPUs). 'eval: 512' takes the rows of eval that begin so. Without names "
    "all but the last two are timed."
)


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser("benchmarks", "Time the parts of a run on this machine.", details=DETAILS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to time, see below")
    parser.add_argument("--against", choices=("plain",), help="also time a plain implementation of the same work")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON, with - instead of the tables")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the computing works run")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each variant, after two that do not count")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0: one for worker, data; else all")
    parser.add_argument("--cpu", action="store_true", help="measure processor time, for shared machines")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try a command")
    parser.add_argument("--flags", default="", help="further flags of train.py for our variant, as in --flags='--fp16'")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    names = args.names or [*COMPUTING, *READING]
    groups = [name.partition(":")[0] for name in names]
    if unknown := sorted({*groups} - {*COMPUTING, *READING, *TABLES}):
        raise UserError(f"NAME {', '.join(unknown)}: one of {', '.join([*COMPUTING, *READING, *TABLES])}")
    if args.runs < 1:
        raise UserError(f"--runs {args.runs}: at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; leave it out to measure the processor")
    device, results = torch.device(args.device), dict[str, Any]()
    if rows := timed_rows(args, names, device):
        results["rows"] = rows
    if "roofline" in groups:
        from benchmarks import roofline

        results["roofline"] = roofline.measure_parts(device, runs=args.runs, threads=args.threads, tiny=args.tiny)
    if "scaling" in groups:
        from benchmarks import scaling

        results["scaling"] = scaling.measure_processes(device, runs=args.runs, tiny=args.tiny)
    content = {"machine": machine(device), "runs": args.runs, **results}
    if args.json == "-":
        write_line(json.dumps(content, indent=1))
        return
    write_line(to_text(content))  # first: what cannot be written is on the screen
    if args.json:
        write_text(Path(args.json), json.dumps(content, indent=1) + "\n")


def timed_rows(args: argparse.Namespace, names: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Measure the rows that begin with one of the names; stderr shows each one's medians as soon as they are known."""
    groups = {name.partition(":")[0] for name in names}
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        if groups & {*COMPUTING}:
            from benchmarks import works

            rows |= works.make_rows(device, flags=shlex.split(args.flags), tiny=args.tiny)
        if groups & {*READING}:
            from benchmarks import data

            rows |= data.make_rows(Path(folder), tiny=args.tiny)
        wanted = {name: row for name, row in rows.items() if name.startswith(tuple(names))}
        if not wanted and groups - {*TABLES}:
            raise UserError(f"NAME {', '.join(names)}: no row begins so; there are: {'; '.join(rows)}")
        results, cores = {}, torch.get_num_threads()
        for name, row in (bar := tqdm(wanted.items(), unit="row", disable=None, leave=False)):
            bar.set_description(name)
            settings = Settings(device, args.threads or row.threads or cores, args.cpu)
            figures = measure(row, settings, against=args.against == "plain", runs=args.runs)
            results[name] = {"threads": settings.threads, **figures}
            medians = (f"{variant} {figure['median_ms']:.1f} ms" for variant, figure in figures.items())
            tqdm.write(f"{name}: {', '.join(medians)}", file=sys.stderr)
        torch.set_num_threads(cores)
        return results


def to_text(content: Mapping[str, Any]) -> str:
    """Return the figures as Markdown."""
    about = content["machine"]
    lines = [f"{about['processor']}, {about['cores']} cores, torch {about['torch']}, median of {content['runs']} runs"]
    if rows := content.get("rows"):
        heading = ["work", "threads", "plain", "ours", "ratio", "quartiles of ours", "slowest"]
        table = [[*heading, "peak of plain", "peak of ours", "share"]]
        for name, row in rows.items():
            table.append([name, str(row["threads"]), *row_cells(row["ours"], row.get("plain"))])
        filled = [column for column in zip(*table, strict=True) if set(column[1:]) != {"-"}]
        lines += ["", format_table([list(cells) for cells in zip(*filled, strict=True)], "markdown")]
    for name in TABLES:
        for title, table in content.get(name, {}).get("tables", {}).items():
            lines += ["", f"{title}", "", format_table(table, "markdown")]
    return "\n".join(lines)


def row_cells(ours: Mapping[str, Any], plain: Mapping[str, Any] | None) -> list[str]:
    def time(value: float) -> str:
        return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"

    def peak(value: float | None) -> str:
        return f"{value:.0f} MiB" if value else "-"

    cells = [time(plain["median_ms"]) if plain else "-", time(ours["median_ms"])]
    cells += [f"{plain['median_ms'] / ours['median_ms']:.2f}" if plain else "-"]
    cells += [" to ".join(time(value) for value in ours["quartiles_ms"]), time(ours["slowest_ms"])]
    cells += [peak(plain["peak_mib"]) if plain else "-", peak(ours["peak_mib"])]
    return [*cells, f"{100 * ours['peak_mib'] / plain['peak_mib']:.0f} %" if plain and plain["peak_mib"] else "-"]


if __name__ == "__main__":
    run_entry_point(main)
