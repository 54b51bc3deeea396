"""The loss terms. B batch, H x W size; labels are int64 with 255 = ignored."""

from __future__ import annotations

import math

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


@torch.no_grad()
def ignore_easy_pixels(logits: Tensor, labels: Tensor, *, threshold: float, min_share: float) -> Tensor:
    """Return labels with 255 for easy pixels, so that the cross entropy is over the hard ones alone (OHEM).

    Hard is whose true class has less than the probability `threshold`; Shrivastava et al., CVPR 2016.

    Args:
        logits: (B, classes, H, W).
        labels: (B, H, W).
        min_share: pixels that are kept in any case, the hardest, as a share of B * H * W.
    """
    losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")  # (B, H, W), 0 if ignored
    bound, count = -math.log(threshold), min(round(min_share * losses.numel()), losses.numel())
    if not count:
        return labels.where(losses > bound, IGNORE)
    last = losses.flatten().topk(count, sorted=False).values.amin()
    return labels.where(losses >= last.clamp(max=bound), IGNORE)


def relaxed_cross_entropy(logits: Tensor, target: ClassSets) -> Tensor:
    """Return the weighted mean of -log(probability of any class of a pixel's set); zero where all pixels are ignored.

    It is a difference of logarithms of sums, so no probability can vanish. Logits (B, classes, H, W).
    """
    logits = logits.float()
    inside = logits.masked_fill(target.outside, -torch.inf).logsumexp(1)  # (B, H, W)
    total = ((logits.logsumexp(1) - inside) * target.weight).sum()
    share = target.weight.sum()
    return total / share.where(share > 0, 1.0)


def downsample_labels(labels: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Resize labels (B, H, W) to (B, *size) by the nearest pixel."""
    return F.interpolate(labels.unsqueeze(1).float(), size=size, mode="nearest").squeeze(1).long()


def edge_distance(edge: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of edge strength (B, 1, H, W) and Sobel target (B, H, W), both 0..255."""
    return (edge.squeeze(1).float() - target.float()).abs().mean()
