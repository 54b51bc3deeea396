"""Scores of several runs, as they stand in their files: means over seeds, differences, intervals over images."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from datasets.files import DAMAGED
from datasets.labels import CLASS_NAMES
from evaluation.metrics import score
from evaluation.report import PER_IMAGE_FILE
from utils.errors import UserError, reason
from utils.files import read_whole

UNSEEN = "mean over targets"
RESAMPLES = 1000


class Place(NamedTuple):
    """Where the counts of single images are: a file of --per_image, a domain in it, the scored classes' names.

    mean_iou: of all images, as a fraction, None without a labelled pixel.
    """

    file: Path
    domain: str
    classes: tuple[str, ...]
    mean_iou: float | None


class Cell(NamedTuple):
    """The mean IoU of a method and seed in a column, a domain and split, as a fraction."""

    value: float
    is_target: bool
    place: Place | None  # of the counts of its images, where they were kept


Cells = dict[tuple[str, str, int], Cell]  # by method, column and seed


def read_scores(paths: Sequence[Path], *, checkpoints: Collection[str]) -> Cells:
    """Return the scores of some kinds of checkpoints (last, graph, ...) in files or anywhere below folders.

    Raises `UserError` at files without such scores, numbers on different images or classes, two numbers for one cell,
    and a method with several networks, sources or numbers of steps.
    """
    files: dict[Path, None] = {}
    for path in paths:
        below = sorted(path.rglob("scores.json")) if path.is_dir() else [path] * path.is_file()
        if not below:
            raise UserError(f"{path}: no scores.json there; give run folders of train.py or --out folders of valid.py")
        files.update(dict.fromkeys(below))
    cells, first, kinds = Cells(), dict[tuple[str | int, ...], tuple[str | float, Path]](), set[str]()
    for file, row in chain.from_iterable(_rows(file, checkpoints=checkpoints) for file in files):
        method, column = row.method, row.column
        classes = ", ".join(row.place.classes)
        kinds.add(row.checkpoint)
        alike = {  # what rows must share: value, verb, preposition, remedy
            (method, "made"): (row.made, f"{method} is ", "", "compare finished runs, each kind apart"),
            (column, "images"): (row.images, f"{column} was evaluated ", "on ", "evaluate both alike"),
            (column, "classes"): (classes, f"{column} is scored ", "over ", "evaluate both alike"),
        }
        for what, (found, verb, preposition, remedy) in alike.items():
            known, other = first.setdefault(what, (found, file))
            if known != found:
                both = f"{verb}{preposition}{found}, but in {other} {preposition}{known}"
                raise UserError(f"{file}: {both}; {remedy}")
        if row.value is None:
            raise UserError(f"{file}: {column} has no labelled pixel; leave it out")
        key = method, column, row.seed
        known, other = first.setdefault(key, (row.value, file))
        if known != row.value:
            run = method if row.seed < 0 else f"{method}, seed {row.seed},"
            both = f"{file} and {other} both score {run} on {column}"
            raise UserError(f"{both}; leave one of them out")
        has_images = row.place.file.is_file()
        if has_images or key not in cells:
            cells[key] = Cell(row.value, row.is_target, row.place if has_images else None)
    if missing := [kind for kind in checkpoints if kind not in kinds]:
        raise UserError(f"--checkpoint {missing[0]}: none of the {len(files)} score files is of such a checkpoint")
    return cells


class _Row(NamedTuple):
    """A domain's main score in a file."""

    checkpoint: str
    method: str
    made: str  # the network, its source and its steps
    seed: int
    column: str
    is_target: bool
    images: str  # and how they were evaluated
    value: float | None  # mean IoU
    place: Place


def _rows(file: Path, *, checkpoints: Collection[str]) -> list[tuple[Path, _Row]]:
    try:
        content, rows = json.loads(read_whole(file)), []
        about = content["weights"]
        for row in content["domains"] if about["checkpoint"] in checkpoints else ():
            protocol, is_source = row["protocol"], row["is_source"]
            split = "" if protocol["split"] == "val" else f" {protocol['split']}"
            column = f"{row['domain']}{split}{' (source)' if is_source else ''}"
            images = f"list {protocol['list_hash']}, {protocol['transform']}, scales {protocol['scales']}"
            images += f", {protocol['classes']} classes"
            value = row["scores"]["mean_iou"]
            if not row["subset"] and not row.get("corruption"):
                names = tuple(row["scores"].get("iou", ()))
                place = Place(file.with_name(PER_IMAGE_FILE), row["domain"], names, value)
                kind, made = about["checkpoint"], f"{about.get('network', '')} trained on {about.get('source', '')}"
                made += f" for {about['step']} steps" if kind == "last" and "step" in about else ""
                seed = about.get("seed", -1)  # -1: graphs and published files do not know it
                found = _Row(kind, about["method"], made, seed, column, not is_source, images, value, place)
                rows.append((file, found))
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"not a score file of train.py or valid.py ({type(error).__name__}: {error})"
        raise UserError(f"{file}: {told}; leave it out") from error


class Mean(NamedTuple):
    """Values of one method in one column, or differences from another's, one per seed, as fractions."""

    values: list[float]
    interval: tuple[float, float] | None  # 95 % over images

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

    cells: Cells
    against: str  # the method from which differences are taken; "" where there is one alone

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _, _ in self.cells))

    @property
    def columns(self) -> Mapping[str, bool]:
        """Return whether each column is a target."""
        return {column: cell.is_target for (_, column, _), cell in self.cells.items()}

    @property
    def targets(self) -> list[str]:
        return [column for column, is_target in self.columns.items() if is_target]

    @property
    def shown(self) -> list[str]:
        return [*self.columns, *([UNSEEN] if len(self.targets) > 1 else [])]

    @property
    def compared(self) -> list[tuple[str, str]]:
        """Of what differences are taken: the other methods, in each target or, without any, in all columns."""
        columns = [column for column in self.shown if self.columns.get(column, True)] if self.targets else self.shown
        others = [method for method in self.methods if method != self.against] if self.against else []
        return [(method, column) for method in others for column in columns]

    def mean(self, method: str, column: str, *, against: str = "") -> Mean:
        """Return the values of a method, or its differences from another, of the seeds that have the whole column."""
        methods, parts = [method, *filter(None, [against])], self.targets if column == UNSEEN else [column]
        seeds = [
            seed
            for seed in sorted({seed for _, _, seed in self.cells})
            if all((m, part, seed) in self.cells for m in methods for part in parts)
        ]
        values = [[fmean(self.cells[m, part, seed].value for part in parts) for m in methods] for seed in seeds]
        pairs = [[(part, self.cells[m, part, seed].place) for m in methods] for part in parts for seed in seeds]
        return Mean([row[0] - sum(row[1:]) for row in values], image_interval(pairs))

    def difference(self, method: str, column: str) -> Mean:
        return self.mean(method, column, against=self.against)


def image_interval(cells: Sequence[Sequence[tuple[str, Place | None]]]) -> tuple[float, float] | None:
    """Return the 95 % interval over resampled images of a mean over cells, or of a mean difference of pairs of them.

    A cell is its column and the place of its images' counts, alone or paired; None where one lacks these counts.
    """
    if not cells or not all(place for pair in cells for _, place in pair):
        return None
    values = [[resampled_scores(place, column=column) for column, place in pair if place] for pair in cells]
    means = np.mean(values, axis=0)  # (1 or 2, RESAMPLES)
    low, high = np.percentile(means[0] - means[1:].sum(axis=0), (2.5, 97.5))
    return float(low), float(high)


@cache
def resampled_scores(place: Place, *, column: str) -> np.ndarray[Any, Any]:
    """Return the mean IoU of each of RESAMPLES draws with replacement of all images; a column has its own draws."""
    try:
        with np.load(place.file, allow_pickle=False) as content:
            counts = content[f"{place.domain}/confusion"].astype(np.float64)  # (N,C,C)
    except (*DAMAGED, OSError, ValueError, KeyError) as error:
        told = f"the counts of {place.domain} cannot be read ({reason(error)})"
        raise UserError(f"{place.file}: {told}; remove the file, or evaluate with --per_image again") from error
    number, classes = len(counts), [CLASS_NAMES.index(name) for name in place.classes]
    found = score(counts.sum(0), CLASS_NAMES, classes=classes).mean_iou
    if place.mean_iou is not None and abs(found - place.mean_iou) > 1e-6:
        scores = f"mean IoU {100 * found:.2f} on {place.domain}, the scores beside it have {100 * place.mean_iou:.2f}"
        raise UserError(f"{place.file}: {scores}; keep the files of each evaluation in a folder of their own")
    draws = np.random.default_rng(zlib.crc32(column.encode())).multinomial(number, [1 / number] * number, RESAMPLES)
    totals = (draws @ counts.reshape(number, -1)).reshape(RESAMPLES, *counts.shape[1:])
    return np.array([score(total, CLASS_NAMES, classes=classes).mean_iou for total in totals])
