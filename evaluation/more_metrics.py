"""The counts behind --more_metrics of one split, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.domains import Domain
from datasets.labels import IGNORE, NUM_CLASSES
from evaluation.boundaries import BANDS, NUM_COUNTS, boundary_counts, boundary_scores
from evaluation.calibration import FINE_BINS, calibration_scores, confidence_counts
from evaluation.metrics import merge_table
from utils import distributed

TITLES = {  # of the scores
    "boundary_iou_3": "boundary IoU (3 %)",
    "boundary_f_3": "boundary F (3 %)",
    "boundary_iou_1": "boundary IoU (1 %)",
    "boundary_f_1": "boundary F (1 %)",
    "ece": "ECE",
    "error_auroc": "error AUROC",
    "error_fpr95": "error FPR95",
}


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
