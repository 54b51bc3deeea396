"""Timings: `python -m benchmarks.data` of the data path, `python -m benchmarks.parts` of a step and its parts.

Shared here: flags, works that take turns, medians in a Markdown table, the name of the machine.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch

from utils import program_parser
from utils.logs import write_line
from utils.tables import format_table

Work = Iterator[object]  # sets up and runs once at the first `next`, runs again at every further one


class Row(NamedTuple):
    """What is timed: our work and a straightforward one, the original's figure, the goal."""

    ours: Work
    plain: Work | None = None
    original: str = "-"
    goal: str = "-"


def make_parser(program: str, description: str, *, runs: int, threads: int) -> argparse.ArgumentParser:
    parser = program_parser(f"benchmarks.{program}", description)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="name prefixes of the rows to run; all by default")
    parser.add_argument("--runs", type=int, default=runs, help="timed runs per row")
    parser.add_argument("--threads", type=int, default=threads, help="threads of torch")
    parser.add_argument("--cpu", action="store_true", help="measure CPU time, for shared machines")
    return parser


def report(rows: Mapping[str, Row], args: argparse.Namespace, *, device: torch.device | None = None) -> None:
    """Time the rows that the arguments name and print the machine and a Markdown table."""
    torch.set_num_threads(args.threads)
    is_gpu = device is not None and device.type == "cuda"

    def clock() -> float:
        if is_gpu:
            torch.cuda.synchronize()
        if not args.cpu:
            return time.perf_counter()
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(part.ru_utime + part.ru_stime for part in used)

    table = [["work", "straightforward", "ours", "mean of ours", "slowest", "ratio", "original", "goal"]]
    for name, row in rows.items():
        if args.rows and not name.startswith(tuple(args.rows)):
            continue
        ours, *plain = measure([work for work in (row.ours, row.plain) if work], runs=args.runs, clock=clock)
        figures = [f"{value:.1f} ms" for value in (median(ours), fmean(ours), max(ours))]
        reference = [f"{median(plain[0]):.1f} ms", f"{median(plain[0]) / median(ours):.1f}"] if plain else ["-", "-"]
        table.append([name, reference[0], *figures, reference[1], row.original, row.goal])
    name = torch.cuda.get_device_name(device) if is_gpu else processor()
    write_line(f"{name}, torch {torch.__version__}, {args.threads} thread(s), median of {args.runs} runs\n")
    filled = [column for column in zip(*table, strict=True) if set(column[1:]) != {"-"}]
    write_line(format_table([list(cells) for cells in zip(*filled, strict=True)], "markdown"))


def repeated(function: Callable[..., object], *args: Any, **kwargs: Any) -> Work:
    while True:
        yield function(*args, **kwargs)


def measure(works: list[Work], *, runs: int, clock: Callable[[], float]) -> list[list[float]]:
    """Return the milliseconds of each work, run by run; they take turns, and two runs come before those that count."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(runs + 2):
        for work, milliseconds in zip(works, taken, strict=True):
            start = clock()
            next(work)
            milliseconds.append(1000 * (clock() - start))
    return [milliseconds[2:] for milliseconds in taken]


def processor() -> str:
    """Return the processor's name and the vector instructions that torch uses on it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{[*names, platform.processor()][0]} ({torch.backends.cpu.get_cpu_capability()})"
