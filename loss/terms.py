"""The loss terms, and targets of an image-weighted cross entropy, whose pixels may stand for any of several classes.

Label relaxation: Zhu et al., Improving semantic segmentation via video propagation and label relaxation, CVPR 2019.
B batch, C classes, H x W size; labels are int64 with 255 = ignored. A set of classes is held in the bits of an int32,
bit c for class c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from utils import IGNORE

# Of torch's checkpoint: the backward pass computes a term again, so that no probabilities of full size are kept for it.
AGAIN: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}


class ClassSets(NamedTuple):
    """What the loss reads: which classes are outside of each pixel's set, and how much each pixel counts."""

    outside: Tensor  # (B, C, H, W) bool; all false where a pixel is ignored
    weight: Tensor  # (B, H, W) float, zero where a pixel is ignored


Truth: TypeAlias = Tensor | ClassSets  # labels, or sets of classes


def cross_entropy(logits: Tensor, truth: Truth, *, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy over the pixels that are not ignored; zero, never NaN, where all are.

    Args:
        logits: (B, classes, H, W).
        truth: labels (B, H, W), or sets: the mean of -log(probability of any class of a pixel's set) by their weights.
        weight: (classes,) weights of labels; the mean is then a weighted one.
        smoothing: share of a label that is spread over all classes; sets have none.
    """
    total: Tensor
    if isinstance(truth, ClassSets):
        total, share = checkpoint(_sets_entropy, logits.float(), truth, **AGAIN), truth.weight.sum()
    else:
        options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing, "ignore_index": IGNORE}
        total = checkpoint(partial(F.cross_entropy, **options, reduction="sum"), logits.float(), truth, **AGAIN)
        valid = truth != IGNORE
        share = valid.sum() if weight is None else (weight[truth.where(valid, 0)] * valid).sum()
    return total / share.where(share > 0, 1.0)


def _sets_entropy(logits: Tensor, truth: ClassSets) -> Tensor:
    inside = logits.masked_fill(truth.outside, -torch.inf).logsumexp(1)  # (B, H, W)
    return ((logits.logsumexp(1) - inside) * truth.weight).sum()  # of logarithms of sums: no probability can vanish


@torch.no_grad()
def ignore_easy_pixels(logits: Tensor, labels: Tensor, *, threshold: float, min_share: float) -> Tensor:
    """Return labels with 255 for easy pixels, so that the cross entropy is over the hard ones alone (OHEM).

    A pixel is hard where the probability of its true class is below `threshold`; Shrivastava et al., CVPR 2016.

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


def downsample_labels(labels: Tensor, *, size: Sequence[int]) -> Tensor:
    """Resize labels (B, H, W) to (B, *size) by the nearest pixel."""
    return F.interpolate(labels.unsqueeze(1).float(), size=tuple(size), mode="nearest").squeeze(1).long()


def edge_distance(edge: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of edge strength (B, 1, H, W) and Sobel target (B, H, W), both 0..255."""
    return (edge.squeeze(1).float() - target.float()).abs().mean()


def balanced_edge_entropy(edge: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of edges (B, 1, H, W) with their target (B, H, W), both 0..255.

    Edges and the rest of an image weigh alike; a pixel is an edge to the share target / 255. Xie and Tu, Holistically-
    nested edge detection, ICCV 2015, equation 2.
    """
    share = target.float() / 255
    edge = (edge.squeeze(1).float() / 255).clamp(0, 1)  # upsampling may exceed 255 by its rounding
    entropy = F.binary_cross_entropy(edge, share, reduction="none")  # (B, H, W)
    of_edges = share.mean((1, 2), keepdim=True)
    balance = share * (1 - of_edges) + (1 - share) * of_edges
    return (entropy * balance).sum() / balance.sum().clamp(min=1e-6)


def own_class(labels: Tensor, *, num_classes: int) -> Tensor:
    """Return each pixel's class as a set: (B, H, W) integers -> int32; bit `num_classes` is for the unlabelled ones."""
    return torch.ones((), dtype=torch.int32, device=labels.device) << labels.clamp(max=num_classes).int()


def neighbour_classes(labels: Tensor, *, num_classes: int, strict: Sequence[int] = ()) -> Tensor:
    """Return the classes in the 3x3 neighbourhood of each pixel: (B, H, W) integers -> int32 sets.

    Pixels of `strict` classes keep their own. Bit `num_classes`: a neighbour is unlabelled or outside the image.
    """
    centre = own_class(labels, num_classes=num_classes)
    around = F.pad(centre, (1, 1, 1, 1), value=1 << num_classes)  # (B, H+2, W+2)
    around = (around[:, :-2] | around[:, 1:-1]).bitwise_or_(around[:, 2:])  # (B, H, W+2)
    around = (around[..., :-2] | around[..., 1:-1]).bitwise_or_(around[..., 2:])
    return torch.where((centre & sum(1 << c for c in set(strict))) != 0, centre, around) if strict else around


@dataclass(frozen=True)
class ImageTargets:
    """Makes the targets from labels.

    A class weighs 1 + bound * (1 - its share of the image, or of the whole batch), a pixel the mean over its set.

    Attributes:
        relaxed: a pixel's set is its neighbourhood, not its own class only.
        strict: classes that are never relaxed.
    """

    bound: float
    whole_batch: bool
    relaxed: bool
    strict: tuple[int, ...] = ()

    def sets(self, labels: Tensor, *, num_classes: int, relax: bool = True) -> Tensor:
        """Map labels (B, H, W) to sets; those of ignored pixels are empty. `relax` False switches `relaxed` off."""
        if self.relaxed and relax:
            sets = neighbour_classes(labels, num_classes=num_classes, strict=self.strict)
        else:
            sets = own_class(labels, num_classes=num_classes)
        return sets.where(labels < num_classes, 0)

    def weigh(self, sets: Tensor, *, num_classes: int) -> ClassSets:
        """Map sets (B, H, W) to what the loss reads."""
        counts = torch.stack([((sets >> c) & 1).sum((1, 2)) for c in range(num_classes)], dim=1)  # (B, C)
        if self.whole_batch:
            counts = counts.sum(0, keepdim=True).expand_as(counts)
        weights = 1 + self.bound * (1 - counts / counts.sum(1, keepdim=True).clamp(min=1))  # (B, C)
        size, weight = torch.zeros_like(sets), torch.zeros(sets.shape, device=sets.device)  # (B, H, W) each
        for c in range(num_classes):  # the planes one by one: all at once they take longer and much memory
            member = (sets >> c) & 1
            size += member
            weight += member * weights[:, c, None, None]
        bits = 1 << torch.arange(num_classes, dtype=torch.int32, device=sets.device)
        outside = ((sets[:, None] & bits[:, None, None]) == 0) & (size > 0)[:, None]
        return ClassSets(outside, weight / size.clamp(min=1))
