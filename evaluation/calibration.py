"""Calibration from integer counts: confidence against accuracy, and how well confidence tells errors.

Confidence is the largest probability. It is counted in fine bins of equal log-odds, log p / (1 - p), because the pixels
of a trained network crowd near 1, where bins of equal width would not tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
import torch
from torch import Tensor

from utils.pictures import Array, new_figure, render

FINE_BINS = 2**13
LOW, HIGH = -4.0, 17.0  # log-odds: of 30 equal classes, and of the last float32 below 1
ECE_BINS = 15
_CENTRES = 1 / (1 + np.exp(-(LOW + (HIGH - LOW) * (np.arange(FINE_BINS) + 0.5) / FINE_BINS)))  # confidence


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
