"""What crosses the network's border: named types, and the largest class of logits.

B batch, H x W input size, h x w the last features' size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

_CACHED_PIXELS = 1 << 17  # so many at once that what `largest_class` writes stays in a core's cache
COARSE_SHARE = 0.5  # with which DIIA's coarse logits are added to the final ones that are evaluated


class SegmentorOutput(NamedTuple):
    """What one forward returns; a tuple, because DDP follows gradients through a tuple but not through a dataclass.

    The plain head fills `fused`, `aux` and `style`; DIIA fills everything.
    """

    fused: Tensor  # (B, classes, H, W) final logits of either head
    aux: Tensor | None = None  # (B, classes, h3, w3) logits of the auxiliary head, of the third stage's size
    coarse: Tensor | None = None  # (B, classes, H, W) logits before aggregation
    layout: Tensor | None = None  # (B, H, W) int64 coarse layout, 255 where the network is not confident, detached
    layout_logits: Tensor | None = None  # (B, classes, H, W) logits decoded from the layout
    edge: Tensor | None = None  # (B, 1, H, W) reconstructed edge strength, 0..255
    edge_logits: Tensor | None = None  # (B, classes, H, W) logits decoded from the edges
    style: tuple[Tensor, ...] = ()  # standardised maps captured at the whitening sites, (B, C, h', w') each

    def evaluated(self) -> Tensor:
        """Return the logits that are evaluated, (B, classes, H, W): of DIIA the sum of both, the coarse ones halved."""
        return self.fused if self.coarse is None else COARSE_SHARE * self.coarse + self.fused

    def float(self) -> SegmentorOutput:
        """Return the same with every floating-point map in float32."""
        return SegmentorOutput(*(_float(value) for value in self))


def _float(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_float, value))
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class Features(NamedTuple):
    """What a backbone returns."""

    low_level: Tensor  # (B, C1, h1, w1) first stage, 1/4 or 1/8 of the input
    aux: Tensor  # (B, C3, h3, w3) third stage
    top: Tensor  # (B, C4, h, w) last stage
    style: tuple[Tensor, ...]  # standardised maps captured at the whitening sites, before their ReLU


def cached_parts(maps: np.ndarray) -> list[tuple[int, slice]]:
    """Return image and rows of each part of maps (B, ..., h, w) that `largest_class` does at once."""
    height, width = maps.shape[-2:]
    rows = max(_CACHED_PIXELS // max(width, 1), 1)
    return [(image, slice(top, top + rows)) for image in range(len(maps)) for top in range(0, height, rows)]


def largest_class(planes: np.ndarray, values: np.ndarray, labels: np.ndarray) -> None:
    """Write each pixel's largest logit to `values` and its class, of equal ones the first, to `labels`.

    `argmax` over the first axis jumps through memory; this reads plane by plane. A value is nan where one logit is; its
    label means nothing then.

    Args:
        planes: (C, h, w) float32 logits, C <= 256.
        values: (h, w) float32, overwritten.
        labels: (h, w) uint8, overwritten.
    """
    number = np.empty(labels.shape, np.uint8)  # first 1 where a class is larger, then its number
    np.copyto(values, planes[0])
    labels.fill(0)
    for c in range(1, len(planes)):
        np.greater(planes[c], values, out=number.view(bool))
        np.multiply(number, np.uint8(c), out=number)
        np.maximum(labels, number, out=labels)
        np.maximum(values, planes[c], out=values)
