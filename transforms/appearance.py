"""Colour jitter, blur and normalisation of a batch on its device, with parameters drawn per sample.

Letters: B samples, H and W image sides, D numbers drawn per sample (`NUM_DRAWS`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from transforms.view import Rng

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# A sample's draws: jitter on or off; the order of the four operations; brightness, contrast and saturation factor,
# hue shift; sigma of the blur (0 = none).
NUM_DRAWS = 10
_ORDER, _FACTORS, _SIGMA = slice(1, 5), slice(5, 9), 9


@dataclass(frozen=True)
class AppearanceDraws:
    """Draws one sample's appearance: jitter with a probability, and blur always or never.

    `strengths` are those of brightness, contrast, saturation and hue.
    """

    probability: float
    strengths: tuple[float, float, float, float]
    blur: bool

    def __call__(self, rng: Rng) -> np.ndarray:
        """Return (D,) float32; the number of draws does not depend on their outcome."""
        row = np.zeros(NUM_DRAWS, dtype=np.float32)
        row[0] = rng.random() < self.probability
        row[_ORDER] = np.argsort([rng.random() for _ in range(4)])
        factors = [rng.uniform(max(1 - strength, 0), 1 + strength) for strength in self.strengths[:3]]
        row[_FACTORS] = [*factors, rng.uniform(-self.strengths[3], self.strengths[3])]
        row[_SIGMA] = 0.15 + 1.15 * rng.random() if self.blur else 0
        return row


@lru_cache(maxsize=16)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return 255 * mean and 255 * std of ImageNet, (3, 1, 1) each, once per device."""
    mean, std = (torch.tensor(values, device=device).mul(255).reshape(3, 1, 1) for values in (MEAN, STD))
    return mean, std


@dataclass(frozen=True)
class Normalisation:
    """Brings images of 0..255 to zero mean and unit deviation: ImageNet's, or with `per_image` each image's own."""

    per_image: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) float32 for (B, 3, H, W) uint8 or float."""
        images = images.float()
        if not self.per_image:
            mean, std = _constants(images.device)
            return (images - mean) / std
        mean, std = images.mean(dim=(2, 3), keepdim=True), images.std(dim=(2, 3), keepdim=True)
        return (images - mean) / (std + 255e-5)


def jitter(image: Tensor, order: list[int], factors: list[float]) -> Tensor:
    """Apply brightness (0), contrast (1), saturation (2) and hue (3) to (3, H, W) float 0..1 in the given order."""
    from torchvision.transforms.v2 import functional as colour

    operations = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue)
    for index in order:
        image = operations[index](image, factors[index])
    return image


def gaussian_blur(images: Tensor, sigmas: list[float]) -> Tensor:
    """Blur (B, C, H, W) float, each sample with its sigma in pixels (0 = not at all).

    The filter is cut off at four sigmas and the border pixel repeated, as scikit-image does.
    """
    radii = [int(4 * sigma + 0.5) for sigma in sigmas]
    radius = max(radii)
    if radius == 0:
        return images
    kernels = torch.zeros(len(sigmas), 2 * radius + 1)
    for row, sigma, reach in zip(kernels, sigmas, radii, strict=True):
        weights = [math.exp(-0.5 * (step / sigma) ** 2) if reach else 1.0 for step in range(-reach, reach + 1)]
        row[radius - reach : radius + reach + 1] = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    batch, channels, height, width = images.shape
    kernels = kernels.to(images.device, non_blocking=True).repeat_interleave(channels, dim=0)  # (B*C, 2r+1)
    maps = images.reshape(1, batch * channels, height, width)
    maps = functional.pad(maps, (0, 0, radius, radius), mode="replicate")
    maps = functional.conv2d(maps, kernels[:, None, :, None], groups=batch * channels)
    maps = functional.pad(maps, (radius, radius, 0, 0), mode="replicate")
    maps = functional.conv2d(maps, kernels[:, None, None, :], groups=batch * channels)
    return maps.reshape(images.shape)


@dataclass(frozen=True)
class Appearance:
    """Jitter, then blur, then normalisation, per sample as drawn; colours are never rounded in between."""

    normalisation: Normalisation = Normalisation()

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return normalised images.

        Args:
            images: (B, 3, H, W) uint8 on any device.
            draws: (B, D) float on the CPU, from `AppearanceDraws`.

        Returns:
            (B, 3, H, W) float32 on the device of the images.
        """
        rows = draws.tolist()
        colours = images.float() / 255
        samples = [
            jitter(image, [int(index) for index in row[_ORDER]], row[_FACTORS]) if row[0] else image
            for image, row in zip(colours, rows, strict=True)
        ]
        blurred = gaussian_blur(torch.stack(samples), [row[_SIGMA] for row in rows])
        return self.normalisation(blurred * 255)
