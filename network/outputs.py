"""What crosses the network's border: named types, logits before and behind their upsampling, and their largest class.

B batch, C channels, H x W input size, h x w the last features' size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

_CACHED_PIXELS = 1 << 17  # so many at once that what `largest_class` writes stays in a core's cache
_PART_PIXELS = 1 << 16  # so many at once that the logits of a part stay in the cache
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

    def branches(self) -> dict[str, Tensor]:
        """Return what DIIA's branches give, of those that are there: edge (B, H, W) float32, layout (B, H, W) uint8."""
        edge = {} if self.edge is None else {"edge": self.edge[:, 0].float()}
        return edge if self.layout is None else edge | {"layout": self.layout.byte()}

    def float(self) -> SegmentorOutput:
        """Return the same with every floating-point map in float32."""
        return tree_map(
            lambda value: value.float() if torch.is_tensor(value) and value.is_floating_point() else value, self
        )


class Features(NamedTuple):
    """What a backbone returns."""

    low_level: Tensor  # (B, C1, h1, w1) first stage, 1/4 or 1/8 of the input
    aux: Tensor  # (B, C3, h3, w3) third stage
    top: Tensor  # (B, C4, h, w) last stage
    style: tuple[Tensor, ...]  # standardised maps captured at the whitening sites, before their ReLU


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resample maps (B, C, h, w) bilinearly with aligned corners, as every up-sampling of the original does."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def upsample_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Do what `resize` does to a few channels that a loss reads; on a GPU the result is float32, whatever their type.

    torch's backward pass there adds a gradient pixel by pixel: 10 ms for 8 x 19 x 768 x 768, where products with two
    small matrices take less than one and add in the same order every time.
    """
    return _resized_by_matrices(logits, size) if logits.device.type == "cuda" else resize(logits, size)


def _resized_by_matrices(maps: Tensor, size: Sequence[int]) -> Tensor:
    (height, width), (small_height, small_width) = size, maps.shape[2:]
    with torch.autocast(maps.device.type, enabled=False):
        wide = maps.float().contiguous() @ resampling(width, small_width, device=maps.device).T  # (B, C, h, W)
        rows = resampling(height, small_height, device=maps.device).expand(wide.shape[0] * wide.shape[1], -1, -1)
        return torch.bmm(rows, wide.flatten(0, 1)).unflatten(0, wide.shape[:2])


class SmallLogits(NamedTuple):
    """Logits (B, C, H, W) before their upsampling: the sum of resampled maps, each with a factor, the first with one.

    At 1024 x 2048 one float32 tensor of the logits of 19 classes takes 152 MiB; the parts take 5.
    """

    maps: tuple[Tensor, ...]  # (B, C, h, w)
    size: tuple[int, int]
    factors: tuple[float, ...] = (1.0,)

    def whole(self) -> Tensor:
        """Return the logits, of the maps' type."""
        total = upsample_logits(self.maps[0], self.size)
        for maps, factor in zip(self.maps[1:], self.factors[1:], strict=True):
            total.add_(upsample_logits(maps, self.size), alpha=factor)
        return total

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their logits (B, C, rows, W) float32 from top to bottom; on other devices than CPUs at once.

        They equal those of `whole` up to the rounding of the interpolation.
        """
        height, width = self.size
        if self.maps[0].device.type != "cpu":
            yield slice(0, height), self.whole().float()
            return
        wide = [resize(maps.float(), (maps.shape[2], width)) for maps in self.maps]  # (B, C, h, W)
        weights = [f * resampling(height, maps.shape[2]) for f, maps in zip(self.factors, wide, strict=True)]
        rows = max(_PART_PIXELS // width, 1)
        for top in range(0, height, rows):
            part = slice(top, min(top + rows, height))
            used = [slice(*_span(height, maps.shape[2], part)) for maps in wide]
            matrix = torch.cat([w[part, span] for w, span in zip(weights, used, strict=True)], 1)
            sources = torch.cat([maps[:, :, span] for maps, span in zip(wide, used, strict=True)], 2)
            with torch.autocast("cpu", enabled=False):
                yield part, matrix @ sources


def resampling(
    size: int, small: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the matrix (size, small) that resamples a column of `small` values to `size` ones, corners aligned."""
    return resize(torch.eye(small, device=device, dtype=dtype)[None, :, :, None], (size, 1))[0, :, :, 0].T.contiguous()


def _span(size: int, small: int, rows: slice) -> tuple[int, int]:
    """Return the slice bounds of the small map's rows that some rows are made of."""
    scale = (small - 1) / max(size - 1, 1)
    return max(int(rows.start * scale) - 1, 0), min(int((rows.stop - 1) * scale) + 3, small)


def logit_parts(logits: Tensor | SmallLogits) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of logits (B, C, H, W) and these logits; `SmallLogits` are upsampled part by part."""
    if isinstance(logits, SmallLogits):
        yield from logits.parts()
    else:
        yield slice(0, logits.shape[2]), logits


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
