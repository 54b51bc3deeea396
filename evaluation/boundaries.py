"""Boundary IoU and boundary F-score from integer counts of pixels.

Letters: B images, H x W pixels, C classes. Sets of classes are bits of a whole number, so that one pass over the image
serves all classes. Distances are those of 3x3 steps, the larger of rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from evaluation.metrics import nan_mean
from utils.pictures import Array

BANDS = (0.03, 0.01)  # of the image's diagonal
NUM_COUNTS = 7  # as `boundary_counts` returns them


def boundary_counts(truth: Tensor, prediction: Tensor, *, num_classes: int) -> Tensor:
    """Count what the boundary scores are made of; pixels whose truth is ignored neither count nor make a boundary.

    Args:
        truth: (B, H, W) uint8, from `num_classes` on ignored.
        prediction: (B, H, W) uint8 below `num_classes`, which is at most 30.

    Returns:
        (bands, 7, C) int64. Of the pixels of a class in the band along its border, the image's edge included, those of
        the truth, of the prediction and of both; of its contour between classes, one pixel wide, the predicted pixels
        and those of them within the band's width of the true contour, then the true ones and those of them within it
        of the predicted contour.
    """
    assert num_classes <= 30, "sets of classes are bits of an int32"
    labelled = truth < num_classes
    maps = [torch.where(labelled, label, num_classes).int() for label in (truth, prediction)]
    sets = [torch.where(labelled, torch.ones_like(label) << label, 0) for label in maps]
    contours = [torch.where(_seen(classes, reach=1) != classes, classes, 0) for classes in sets]
    counts, diagonal = [], float(np.hypot(*truth.shape[1:]))
    for band in BANDS:
        reach, edge = max(round(band * diagonal), 1), 1 << num_classes
        inside = [_seen(classes, reach=reach, outside=edge) != classes for classes in sets]  # the bands
        near = [
            (_seen(contour, reach=reach) & other) != 0 for contour, other in zip(contours, contours[::-1], strict=True)
        ]
        both = inside[0] & inside[1] & (maps[0] == maps[1])
        chosen = [*inside, both, contours[1] != 0, near[0], contours[0] != 0, near[1]]
        owners = [maps[0], maps[1], maps[0], maps[1], maps[1], maps[0], maps[0]]
        counts += [_count(mask, label, num_classes) for mask, label in zip(chosen, owners, strict=True)]
    return torch.stack(counts).reshape(len(BANDS), NUM_COUNTS, num_classes)


def _seen(classes: Tensor, *, reach: int, outside: int = 0) -> Tensor:
    """Return the union of the sets (B, H, W) up to `reach` rows and columns away; `outside` is seen beyond the edge."""
    for axis, sides in ((1, (0, 0, reach, reach)), (2, (reach, reach))):
        classes, width = pad(classes, sides, value=outside), 1
        while width < 2 * reach + 1:  # doubled: few passes for any width
            step = min(width, 2 * reach + 1 - width)
            length = classes.shape[axis] - step
            classes = classes.narrow(axis, 0, length) | classes.narrow(axis, step, length)
            width += step
    return classes


def _count(mask: Tensor, label: Tensor, num_classes: int) -> Tensor:
    chosen = torch.where(mask, label, num_classes).flatten()
    return torch.bincount(chosen, minlength=num_classes + 1)[:num_classes]


def boundary_scores(counts: Array, *, classes: Sequence[int]) -> dict[str, float]:
    """Return the means over classes of boundary IoU and F-score, by band in percent of the diagonal.

    The counts are those of all images together, as for the IoU. A class without a border anywhere is left out.

    Args:
        counts: (bands, 7, C) sums of `boundary_counts`.

    Sources: Cheng et al., Boundary IoU, CVPR 2021, equation 2; Csurka et al., BMVC 2013, for the F-score.
    """
    scores = {}
    for band, rows in zip(BANDS, counts[:, :, list(classes)].astype(np.float64), strict=True):
        truth, predicted, both, guesses, right, contour, found = rows
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = both / (truth + predicted - both)
            precision, recall = right / guesses, found / contour
            f_score = 2 * precision * recall / (precision + recall)
        missed = (guesses + contour > 0) & ((right == 0) | (found == 0))
        f_score[missed] = 0.0
        scores[f"boundary_iou_{100 * band:g}"] = nan_mean(iou)
        scores[f"boundary_f_{100 * band:g}"] = nan_mean(f_score)
    return scores
