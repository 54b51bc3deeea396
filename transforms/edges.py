"""The target of edge reconstruction: horizontal contrast of the image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from utils.opencv import opencv

# Parity: OpenCV's weights for blue, green, red, applied to red, green, blue as the original does; in thousandths, so
# that all sums are whole numbers that float32 holds and every device rounds alike.
_GREY_WEIGHTS = (114, 587, 299)


def edge_target(images: Tensor) -> Tensor:
    """Return |Sobel x| of the grey image, rounded and cut off at 255.

    Args:
        images: (B, 3, H, W) uint8 RGB before any change of colour.

    Returns:
        (B, H, W) float32, 0..255, whole numbers. Source: the original's 3x3 x-derivative; the border is mirrored
        without doubling its pixel.
    """
    return _with_opencv(images) if images.device.type == "cpu" else _with_torch(images)


def _with_torch(images: Tensor) -> Tensor:
    red, green, blue = images.float().unbind(dim=1)
    grey = red * _GREY_WEIGHTS[0] + green * _GREY_WEIGHTS[1] + blue * _GREY_WEIGHTS[2]  # (B, H, W)
    padded = functional.pad(grey, (1, 1, 1, 1), mode="reflect")  # (B, H+2, W+2)
    across = padded[..., 2:] - padded[..., :-2]  # (B, H+2, W)
    sobel = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]  # (B, H, W)
    return torch.round(sobel / 1000).abs().clamp(max=255)


def _with_opencv(images: Tensor) -> Tensor:
    cv2 = opencv()
    edges = torch.empty(images.shape[0], *images.shape[2:])
    for (red, green, blue), target in zip(images.numpy(), edges.numpy(), strict=True):
        grey = cv2.addWeighted(red, _GREY_WEIGHTS[0], green, _GREY_WEIGHTS[1], 0, dtype=cv2.CV_32F)
        grey += np.multiply(blue, np.float32(_GREY_WEIGHTS[2]), out=target)
        cv2.Sobel(grey, cv2.CV_32F, 1, 0, dst=target)
    return edges.div_(1000).round_().abs_().clamp_(max=255)
