"""The loss terms. B batch, H x W size; labels are int64 with 255 = ignored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loss.borders import ClassSets

IGNORE = 255


def cross_entropy(logits: Tensor, labels: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy over the pixels that are not ignored; zero, never NaN, where all are.

    Args:
        logits: (B, classes, H, W).
        labels: (B, H, W).
        weight: (classes,) weights; the mean is then a weighted one.
    """
    total = F.cross_entropy(logits.float(), labels, weight=weight, ignore_index=IGNORE, reduction="sum")
    valid = labels != IGNORE
    if weight is None:
        return total / valid.sum().clamp(min=1)
    share = (weight[labels.where(valid, 0)] * valid).sum()
    return total / share.where(share > 0, 1.0)


def set_entropy(logits: Tensor, target: ClassSets) -> Tensor:
    """Return the weighted mean of -log(probability of any class of a pixel's set); zero where all pixels are ignored.

    It is a difference of logarithms of sums, so no probability can vanish. Logits (B, classes, H, W).
    """
    logits = logits.float()
    inside = logits.masked_fill(target.outside, -torch.inf).logsumexp(1)  # (B, H, W)
    total = ((logits.logsumexp(1) - inside) * target.weight).sum()
    share = target.weight.sum()
    return total / share.where(share > 0, 1.0)


def shrink_labels(labels: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Resize labels (B, H, W) to (B, *size) by the nearest pixel."""
    return F.interpolate(labels.unsqueeze(1).float(), size=size, mode="nearest").squeeze(1).long()


def edge_distance(edge: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of edge strength (B, 1, H, W) and Sobel target (B, H, W), both 0..255."""
    return (edge.squeeze(1).float() - target.float()).abs().mean()
