"""Scores from a confusion matrix of integer counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def confusion_matrix(label: Tensor, prediction: Tensor, *, num_classes: int) -> Tensor:
    """Count pixels by true class (row) and predicted class (column); labels >= num_classes are left out.

    Args:
        label: (...) integer train ids, 255 = ignored.
        prediction: (...) integer classes < num_classes.

    Returns:
        (num_classes, num_classes) int64, on the device of the inputs.
    """
    label, prediction = label.reshape(-1).long(), prediction.reshape(-1).long()
    cells = torch.where(label < num_classes, label * num_classes + prediction, num_classes * num_classes)
    counts = torch.bincount(cells, minlength=num_classes * num_classes + 1)
    return counts[:-1].reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says; classes without a pixel in truth or prediction have an IoU of nan."""

    iou: dict[str, float]
    mean_iou: float
    accuracy: float
    mean_class_accuracy: float
    frequency_weighted_accuracy: float


def merge_classes(confusion: np.ndarray, merge: Sequence[tuple[int, int]]) -> np.ndarray:
    """Add the counts of class `a` to those of class `b` for every pair (a, b), in truth and prediction."""
    index = np.arange(len(confusion))
    for source, target in merge:
        index[source] = target
    merged = np.zeros_like(confusion)
    np.add.at(merged, (index[:, None], index[None, :]), confusion)
    return merged


def score(confusion: np.ndarray, class_names: Sequence[str], *, classes: Sequence[int] | None = None) -> Scores:
    """Compute IoU and accuracies over the scored classes.

    A pixel of a scored class predicted as a class that is not scored counts as wrong; pixels whose true class is not
    scored are left out.

    Args:
        confusion: (C, C) integer counts, rows = truth, columns = prediction.
        classes: ids of the scored classes; None means all.
    """
    scored = np.arange(len(confusion)) if classes is None else np.asarray(sorted(classes))
    rows = confusion[scored].astype(np.float64)  # (S, C)
    hits = rows[np.arange(len(scored)), scored]
    truth, predicted = rows.sum(axis=1), rows[:, scored].sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = hits / (truth + predicted - hits)
        recall = hits / truth
    share = truth / max(truth.sum(), 1.0)
    present = truth > 0
    return Scores(
        iou={class_names[c]: float(value) for c, value in zip(scored, iou, strict=True)},
        mean_iou=nan_mean(iou),
        accuracy=float(hits.sum() / truth.sum()) if truth.sum() else float("nan"),
        mean_class_accuracy=nan_mean(recall),
        frequency_weighted_accuracy=float((share[present] * iou[present]).sum()) if present.any() else float("nan"),
    )


def nan_mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of the numbers that are not nan, nan when there is none."""
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else float("nan")
