"""Bilinear upsampling with aligned corners, as everywhere in the original, of whole maps and of some rows at a time.

B batch, C channels, h x w size of small maps, H x W input size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_PART_PIXELS = 1 << 16  # so many at once that the logits of a part stay in the cache


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resample maps (B, C, h, w) bilinearly with aligned corners, as every up-sampling of the original does."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def upsample_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Do the same with a few channels that a loss reads; on a GPU the result is float32, whatever their type.

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


def resampling(size: int, small: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the matrix (size, small) that resamples a column of `small` values to `size` ones, corners aligned."""
    return resize(torch.eye(small, device=device)[None, :, :, None], (size, 1))[0, :, :, 0].T.contiguous()


def _span(size: int, small: int, rows: slice) -> tuple[int, int]:
    """Return the first and the last but one of the small map's rows that some rows are made of."""
    scale = (small - 1) / max(size - 1, 1)
    return max(int(rows.start * scale) - 1, 0), min(int((rows.stop - 1) * scale) + 3, small)


def logit_parts(logits: Tensor | SmallLogits) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of logits (B, C, H, W) and these logits; `SmallLogits` are upsampled part by part."""
    if isinstance(logits, SmallLogits):
        yield from logits.parts()
    else:
        yield slice(0, logits.shape[2]), logits
