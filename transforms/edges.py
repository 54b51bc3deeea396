"""The target of edge reconstruction: horizontal contrast of the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Parity: OpenCV's weights for blue, green, red, applied to red, green, blue as the original does.
_GREY_WEIGHTS = (0.114, 0.587, 0.299)


def edge_target(images: Tensor) -> Tensor:
    """Return |Sobel x| of the grey image, rounded and cut off at 255.

    Args:
        images: (B, 3, H, W) uint8 RGB before any change of colour.

    Returns:
        (B, H, W) float32, 0..255, whole numbers. Source: the original's 3x3 x-derivative; the border is mirrored
        without doubling its pixel.
    """
    red, green, blue = images.float().unbind(dim=1)
    grey = red * _GREY_WEIGHTS[0] + green * _GREY_WEIGHTS[1] + blue * _GREY_WEIGHTS[2]  # (B, H, W)
    padded = functional.pad(grey, (1, 1, 1, 1), mode="reflect")  # (B, H+2, W+2)
    across = padded[..., 2:] - padded[..., :-2]  # (B, H+2, W)
    sobel = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]  # (B, H, W)
    return torch.round(sobel).abs().clamp(max=255)
