"""The target of edge reconstruction: horizontal contrast of the image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def edge_target(images: Tensor) -> Tensor:
    """Return |Sobel x| of the grey image, rounded and cut off at 255.

    Args:
        images: (B, 3, H, W) uint8 RGB before any change of colour.

    Returns:
        (B, H, W) float32, 0..255, whole numbers. Source: the original's 3x3 x-derivative; the border is mirrored
        without doubling its pixel.
    """
    red, green, blue = images.float().unbind(dim=1)
    # Parity: OpenCV's weights for blue, green, red, applied to red, green, blue as the original does; in thousandths,
    # so that all sums are whole numbers that float32 holds and every device rounds alike.
    grey = (red * 114).add_(green, alpha=587).add_(blue, alpha=299)  # (B, H, W)
    padded = F.pad(grey, (1, 1, 1, 1), mode="reflect")  # (B, H+2, W+2)
    across = padded[..., 2:] - padded[..., :-2]  # (B, H+2, W)
    sobel = (across[:, :-2] + across[:, 2:]).add_(across[:, 1:-1], alpha=2)  # (B, H, W)
    return sobel.div_(1000).round_().abs_().clamp_(max=255)
