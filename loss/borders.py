"""Targets of an image-weighted cross entropy, whose pixels may stand for any of several classes.

Label relaxation: Zhu et al., Improving semantic segmentation via video propagation and label relaxation, CVPR 2019.
B batch, C classes, H x W size. A set of classes is held in the bits of an int32, bit c for class c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def own_class(labels: Tensor, *, num_classes: int) -> Tensor:
    """Return each pixel's class as a set: (B, H, W) integers -> int32; bit `num_classes` is for the unlabelled ones."""
    return torch.ones((), dtype=torch.int32, device=labels.device) << labels.clamp(max=num_classes).int()


def neighbour_classes(labels: Tensor, *, num_classes: int, strict: Sequence[int] = ()) -> Tensor:
    """Return the classes in the 3x3 neighbourhood of each pixel: (B, H, W) integers -> int32 sets.

    Bit `num_classes` tells that a neighbour is unlabelled or outside the image.

    Args:
        strict: classes whose pixels keep their own class alone.
    """
    centre = own_class(labels, num_classes=num_classes)
    around = F.pad(centre, (1, 1, 1, 1), value=1 << num_classes)  # (B, H+2, W+2)
    around = (around[:, :-2] | around[:, 1:-1]).bitwise_or_(around[:, 2:])  # (B, H, W+2)
    around = (around[..., :-2] | around[..., 1:-1]).bitwise_or_(around[..., 2:])
    if not strict:
        return around
    return torch.where((centre & sum(1 << c for c in set(strict))) != 0, centre, around)


class ClassSets(NamedTuple):
    """What the loss reads: which classes are outside of each pixel's set, and how much each pixel counts."""

    outside: Tensor  # (B, C, H, W) bool; all false where a pixel is ignored
    weight: Tensor  # (B, H, W) float, zero where a pixel is ignored


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
