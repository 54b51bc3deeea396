"""How far scores fall on corrupted images: means over corruptions, and the degradation relative to clean images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from evaluation.metrics import nan_mean
from utils.tables import percent

if TYPE_CHECKING:
    from evaluation.report import DomainScore


class Robustness(NamedTuple):
    """Mean IoU of one domain on clean and on corrupted images, as fractions.

    Attributes:
        corruptions: by corruption, mean over its severities.
        mean: over the corruptions, each with the same weight.
        degradation: share of the clean score that is lost, 1 - mean / clean. Source: 1 - rPC of Michaelis et al., 2019.
    """

    clean: float
    corruptions: dict[str, float]
    mean: float
    degradation: float


def robustness(rows: Iterable[DomainScore]) -> dict[str, Robustness]:
    """Return it by title of the clean scores, of the domains and subsets that have corrupted images too."""
    scores = defaultdict[str, dict[str, list[float]]](lambda: defaultdict(list))  # title -> corruption, "" for none
    for row in rows:
        title, corruption = replace(row, corruption="").title, row.corruption.partition(":")[0]
        scores[title][corruption].append(row.scores.mean_iou)
    found = dict[str, Robustness]()
    for title, by_name in scores.items():
        means = {name: nan_mean(values) for name, values in by_name.items()}
        clean, mean = means.pop(""), nan_mean(list(means.values()))
        if means:
            found[title] = Robustness(clean, means, mean, 1 - mean / clean if clean > 0 else float("nan"))
    return found


def corruption_table(domains: Mapping[str, Robustness]) -> list[list[str]]:
    """Return heading and one line per corruption with its mean IoU in every domain, then means and degradation."""
    names = dict.fromkeys(name for row in domains.values() for name in row.corruptions)
    lines = {name: [row.corruptions.get(name, float("nan")) for row in domains.values()] for name in names}
    lines["mean over corruptions"] = [row.mean for row in domains.values()]
    lines["clean"] = [row.clean for row in domains.values()]
    lines["degradation"] = [row.degradation for row in domains.values()]
    return [["mean IoU, in %", *domains], *([name, *map(percent, values)] for name, values in lines.items())]
