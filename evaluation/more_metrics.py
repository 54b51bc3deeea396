"""What --more_metrics evaluates of one split, from integer counts: boundary IoU and F-score, and calibration.

Letters: B images, H x W pixels, C classes. For boundaries, sets of classes are bits of a whole number, so that one pass
over the image serves all classes; distances are those of 3x3 steps, the larger of rows and columns. Calibration is
confidence, the largest probability, against accuracy, and how well confidence tells errors. It is counted in fine bins
of equal log-odds, log p / (1 - p), because the pixels of a trained network crowd near 1, where bins of equal width
would not tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from datasets.domains import Domain
from datasets.labels import IGNORE, NUM_CLASSES
from evaluation.metrics import merge_table, nan_mean
from utils import distributed
from utils.pictures import Array, new_figure, render

TITLES = {  # of the scores
    "boundary_iou_3": "boundary IoU (3 %)",
    "boundary_f_3": "boundary F (3 %)",
    "boundary_iou_1": "boundary IoU (1 %)",
    "boundary_f_1": "boundary F (1 %)",
    "ece": "ECE",
    "error_auroc": "error AUROC",
    "error_fpr95": "error FPR95",
}
BANDS = (0.03, 0.01)  # of the image's diagonal
NUM_COUNTS = 7  # as `boundary_counts` returns them
FINE_BINS = 2**13
LOW, HIGH = -4.0, 17.0  # log-odds: of 30 equal classes, and of the last float32 below 1
ECE_BINS = 15
_CENTRES = 1 / (1 + np.exp(-(LOW + (HIGH - LOW) * (np.arange(FINE_BINS) + 0.5) / FINE_BINS)))  # confidence


@dataclass(frozen=True)
class MoreCounts:
    """Integer counts that add up over batches and processes.

    Classes that the domain merges are one, and pixels of true classes that it does not score are left out, as in its
    main score; subsets of classes are subsets of these counts.
    """

    truths: Tensor  # (256,) uint8, the class as which each true class counts
    predictions: Tensor  # (256,) uint8, likewise of the predicted ones
    boundaries: Tensor  # (bands, 7, C) int64
    confidences: Tensor  # (C, 2, FINE_BINS) int64

    @classmethod
    def of_domain(cls, domain: Domain, *, device: torch.device) -> MoreCounts:
        """Return zeros on a device."""
        merged = merge_table(domain.merge)
        scored = np.where(np.isin(merged, domain.classes), merged, IGNORE).astype(np.uint8)
        sizes = (len(BANDS), NUM_COUNTS, NUM_CLASSES), (NUM_CLASSES, 2, FINE_BINS)
        tables = [torch.from_numpy(table).to(device) for table in (scored, merged)]
        return cls(*tables, *(torch.zeros(size, dtype=torch.int64, device=device) for size in sizes))

    def add_boundaries(self, labels: Tensor, predictions: Tensor) -> None:
        """Count the pixels of whole images: labels and predictions (B, h, w) uint8."""
        self.boundaries.add_(boundary_counts(*self._merged(labels, predictions), num_classes=NUM_CLASSES))

    def add_confidences(self, logits: Tensor, labels: Tensor, predictions: Tensor) -> None:
        """Count the pixels of some rows, with logits (B, C, rows, w) float32; without, calibration's scores are nan."""
        truth, prediction = self._merged(labels, predictions)
        self.confidences.add_(confidence_counts(logits, truth, prediction, num_classes=NUM_CLASSES))

    def _merged(self, labels: Tensor, predictions: Tensor) -> tuple[Tensor, Tensor]:
        return self.truths[labels.int()], self.predictions[predictions.int()]

    def share(self) -> None:
        """Add up over the processes."""
        distributed.all_reduce_sum(self.boundaries)
        distributed.all_reduce_sum(self.confidences)

    def scores(self, classes: Sequence[int]) -> dict[str, float]:
        """Return the scores over some classes by the keys of `TITLES`."""
        return {
            **boundary_scores(self.boundaries.cpu().numpy(), classes=classes),
            **calibration_scores(self.confidences.cpu().numpy(), classes=classes),
        }


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


def confidence_counts(logits: Tensor, truth: Tensor, prediction: Tensor, *, num_classes: int) -> Tensor:
    """Count the labelled pixels by true class, whether they are right, and confidence.

    Args:
        logits: (B, K, H, W) float32.
        truth: (B, H, W) uint8, from `num_classes` on ignored; prediction likewise.

    Returns:
        (C, 2, FINE_BINS) int64: wrong ones, then right ones.
    """
    odds = logits.softmax(1).amax(1).logit(eps=2.0**-24)  # (B, H, W)
    bins = ((odds - LOW) * (FINE_BINS / (HIGH - LOW))).long().clamp_(0, FINE_BINS - 1)
    cells = (truth.long() * 2 + (truth == prediction)) * FINE_BINS + bins
    size = num_classes * 2 * FINE_BINS
    cells = torch.where(truth < num_classes, cells, size).flatten()
    return torch.bincount(cells, minlength=size + 1)[:size].reshape(num_classes, 2, FINE_BINS)


def reliability(counts: Array, *, classes: Sequence[int]) -> Array:
    """Return pixels, mean confidence and accuracy (3, ECE_BINS) by equal intervals of confidence, nan where empty."""
    wrong, right = counts[list(classes)].sum(axis=0)  # (FINE_BINS,)
    which = np.minimum((_CENTRES * ECE_BINS).astype(int), ECE_BINS - 1)
    weights = (wrong + right, (wrong + right) * _CENTRES, right)
    pixels, confidence, hits = (np.bincount(which, weight, ECE_BINS) for weight in weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack((pixels, confidence / pixels, hits / pixels))


def calibration_scores(counts: Array, *, classes: Sequence[int]) -> dict[str, float]:
    """Return the expected calibration error, and AUROC and FPR95 of finding errors by low confidence.

    FPR95 is the share of right pixels among which one has to look for 95 % of the wrong ones. nan where there are no
    wrong or no right pixels.

    Args:
        counts: (C, 2, FINE_BINS) sums of `confidence_counts`.

    Sources: Guo et al., ICML 2017, equation 3; Hendrycks and Gimpel, ICLR 2017.
    """
    pixels, confidence, accuracy = reliability(counts, classes=classes)
    gaps = np.nan_to_num(pixels * np.abs(accuracy - confidence))
    wrong, right = counts[list(classes)].sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ece = gaps.sum() / pixels.sum()
        flagged_wrong, flagged_right = np.cumsum(wrong) / wrong.sum(), np.cumsum(right) / right.sum()
        above = 1 - flagged_right + right / 2 / right.sum()  # right pixels of a larger confidence, ties by half
        auroc = (wrong * above).sum() / wrong.sum()
    fpr95 = flagged_right[np.argmax(flagged_wrong >= 0.95)] if wrong.sum() else np.nan
    return {"ece": float(ece), "error_auroc": float(auroc), "error_fpr95": float(fpr95)}


def plot_reliability(counts: Tensor, *, classes: Sequence[int], title: str) -> Array:
    """Plot accuracy against confidence and the shares of pixels of counts (C, 2, FINE_BINS); (H, W, 3) uint8."""
    array = counts.cpu().numpy()
    pixels, confidence, accuracy = reliability(array, classes=classes)
    edges, full = np.linspace(0, 1, ECE_BINS + 1), pixels > 0
    figure = new_figure(6, 7)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.stairs(np.nan_to_num(accuracy), edges, fill=True, color="tab:blue", alpha=0.35, label="accuracy")
    upper.plot(confidence[full], accuracy[full], "o-", color="tab:blue", markersize=4, label="at the mean confidence")
    upper.plot((0, 1), (0, 1), "--", color="black", linewidth=1, label="calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="upper left", frameon=False)
    scores = calibration_scores(array, classes=classes)
    numbers = "ECE {ece:.2f} %, errors: AUROC {error_auroc:.2f} %, FPR95 {error_fpr95:.2f} %"
    percents = {name: 100 * value for name, value in scores.items()}
    upper.set_title("\n".join(wrap(title, 80)) + "\n" + numbers.format(**percents), fontsize=9)
    lower.stairs(100 * pixels / max(pixels.sum(), 1), edges, fill=True, color="tab:gray")
    lower.set(xlabel="confidence", ylabel="pixels %", yscale="log" if full.any() else "linear")
    return render(figure)
