"""Intervals of mean IoU over the images of an evaluation, by resampling the images."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.files import DAMAGED
from datasets.labels import CLASS_NAMES
from evaluation.metrics import score
from utils.errors import UserError, reason

RESAMPLES = 1000


class Place(NamedTuple):
    """Where the counts of single images are: a file of --per_image, a domain in it, the scored classes' names."""

    file: Path
    domain: str
    classes: tuple[str, ...]


Places = dict[tuple[str, str, int], Place]  # of method, column and seed


def image_interval(places: Places, keys: Sequence[Sequence[tuple[str, str, int]]]) -> tuple[float, float] | None:
    """Return the 95 % interval over resampled images of a mean over cells, or of a mean difference of pairs of them.

    None where a cell lacks the counts of its images. `keys` has per cell its method, column and seed, alone or paired.
    """
    if not keys or not all(key in places for pair in keys for key in pair):
        return None
    values = [[resampled_scores(places[key], column=key[1]) for key in pair] for pair in keys]
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
    draws = np.random.default_rng(zlib.crc32(column.encode())).multinomial(number, [1 / number] * number, RESAMPLES)
    totals = (draws @ counts.reshape(number, -1)).reshape(RESAMPLES, *counts.shape[1:])
    return np.array([score(total, CLASS_NAMES, classes=classes).mean_iou for total in totals])
