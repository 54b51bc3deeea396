"""Colour jitter, blur and normalisation of a batch on its device, with parameters drawn per sample.

Letters: B samples, H and W image sides, D numbers drawn per sample (`NUM_DRAWS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from transforms.view import Rng
from utils.opencv import opencv

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# A sample's draws: jitter on or off; the order of the four operations; brightness, contrast and saturation factor,
# hue shift; sigma of the Gaussian and of the bilateral blur (0 = none).
NUM_DRAWS = 11
_ORDER, _FACTORS, _SIGMA, _BILATERAL = slice(1, 5), slice(5, 9), 9, 10
_CONTRAST, _SATURATION, _HUE = 1, 2, 3  # brightness is 0
_GREY = (0.2989, 0.587, 0.114)  # torchvision's
_SCALE_AND_SHIFT = 1 / (255 * np.array(STD)), -np.array(MEAN) / np.array(STD)


class Draws(NamedTuple):
    """A sample's draws by name."""

    jittered: bool
    order: list[int]
    factors: list[float]
    sigma: float
    bilateral: float

    @classmethod
    def of(cls, row: list[float]) -> Draws:
        """Name the D numbers that `AppearanceDraws` returned."""
        order = [int(index) for index in row[_ORDER]]
        return cls(bool(row[0]), order, row[_FACTORS], row[_SIGMA], row[_BILATERAL])


@dataclass(frozen=True)
class AppearanceDraws:
    """Draws one sample's appearance: jitter with a probability, and blur always or never; bilateral instead if asked.

    `strengths` are those of brightness, contrast, saturation and hue.
    """

    probability: float
    strengths: tuple[float, float, float, float]
    blur: bool
    bilateral: bool = False

    def __call__(self, rng: Rng) -> np.ndarray:
        """Return (D,) float32; the number of draws does not depend on their outcome."""
        row = np.zeros(NUM_DRAWS, dtype=np.float32)
        row[0] = rng.random() < self.probability
        row[_ORDER] = np.argsort([rng.random() for _ in range(4)])
        factors = [rng.uniform(max(1 - strength, 0), 1 + strength) for strength in self.strengths[:3]]
        row[_FACTORS] = [*factors, rng.uniform(-self.strengths[3], self.strengths[3])]
        if self.bilateral:
            row[_BILATERAL] = rng.uniform(0.05, 0.75)
        elif self.blur:
            row[_SIGMA] = 0.15 + 1.15 * rng.random()
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


def _kernel(sigma: float) -> np.ndarray:
    """Return (2r+1,) float64 weights of a Gaussian cut off at r = four sigmas, as scikit-image does; [1] for 0."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (sigma or 1)) ** 2)
    return weights / weights.sum()


def _kernels(sigmas: list[float]) -> Tensor:
    """Return (B, 2r+1) float32 kernels of one length on the CPU, zero where a smaller sigma reaches less far."""
    rows = [_kernel(sigma) for sigma in sigmas]
    radius = max(len(row) // 2 for row in rows)
    return torch.from_numpy(np.stack([np.pad(row, radius - len(row) // 2) for row in rows]).astype(np.float32))


def bilateral_blur(images: Tensor, sigmas: list[float]) -> Tensor:
    """Blur (B, C, H, W) float where colours are alike, each sample with its sigma in pixels (0 = not at all).

    The colours' sigma is the deviation of the whole image, their distance a C-th of the Euclidean one, as in
    scikit-image, whose spatial kernel is off its centre and so moves the image; the border pixel is repeated.
    """
    kernels = _kernels(sigmas).to(images.device, non_blocking=True)
    length, channels, (height, width) = kernels.shape[1], images.shape[1], images.shape[2:]
    spread = images.std(dim=(1, 2, 3), correction=0, keepdim=True).clamp(min=1e-6)
    padded = functional.pad(images, (length // 2,) * 4, mode="replicate")
    total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
    for down, across in product(range(length), repeat=2):
        other = padded[:, :, down : down + height, across : across + width]
        distance = ((other - images) / (channels * spread)).square().sum(1, keepdim=True)  # (B, 1, H, W)
        weight = (-0.5 * distance).exp() * (kernels[:, down] * kernels[:, across])[:, None, None, None]
        total.addcmul_(weight, other)
        weights += weight
    return total / weights


def gaussian_blur(images: Tensor, sigmas: list[float]) -> Tensor:
    """Blur (B, C, H, W) float, each sample with its sigma in pixels (0 = not at all); the border pixel is repeated."""
    kernels = _kernels(sigmas)
    radius = kernels.shape[1] // 2
    if radius == 0:
        return images
    batch, channels, height, width = images.shape
    kernels = kernels.to(images.device, non_blocking=True).repeat_interleave(channels, dim=0)  # (B*C, 2r+1)
    maps = images.reshape(1, batch * channels, height, width)
    maps = functional.pad(maps, (0, 0, radius, radius), mode="replicate")
    maps = functional.conv2d(maps, kernels[:, None, :, None], groups=batch * channels)
    maps = functional.pad(maps, (radius, radius, 0, 0), mode="replicate")
    maps = functional.conv2d(maps, kernels[:, None, None, :], groups=batch * channels)
    return maps.reshape(images.shape)


def _jitter_with_opencv(image: np.ndarray, order: list[int], factors: list[float]) -> np.ndarray:
    """Do what `jitter` does, with OpenCV: (H, W, 3) float32 0..255 in and out; the input is overwritten.

    Each operation but hue is a matrix on (red, green, blue, 1), applied when colours may leave 0..255 and must be cut
    off, which they cannot where the factor is at most 1, or when hue or the end asks for them.
    """
    cv2, other = opencv(), np.empty_like(image)  # results go to and fro
    pending = np.eye(4)

    def applied() -> tuple[np.ndarray, np.ndarray]:
        return (image, other) if (pending == np.eye(4)).all() else (cv2.transform(image, pending[:3], dst=other), image)

    for index in order:
        factor = factors[index]
        if index == _HUE:
            image, other = applied()
            cv2.cvtColor(image, cv2.COLOR_RGB2HSV, dst=other)  # hue in degrees
            other[..., 0] += 360 * (factor % 1)  # OpenCV wraps what is above 360, not what is below 0
            cv2.cvtColor(other, cv2.COLOR_HSV2RGB, dst=image)
            pending = np.eye(4)
            continue
        matrix = np.diag([factor, factor, factor, 1])
        if index == _CONTRAST:
            means = pending @ (*cv2.mean(image)[:3], 1)
            matrix[:3, 3] = (1 - factor) * np.dot(_GREY, means[:3])
        elif index == _SATURATION:
            matrix[:3, :3] += (1 - factor) * np.array(_GREY)
        pending = matrix @ pending
        if factor > 1:
            image, other = applied()
            np.clip(image, 0, 255, out=image)
            pending = np.eye(4)
    return applied()[0]


def _blur_with_opencv(
    planes: Sequence[np.ndarray], sigma: float, scale: np.ndarray, shift: np.ndarray, out: Tensor
) -> None:
    """Write the blurred planes (H, W), times `scale` and plus `shift` of their channel, to (3, H, W) float32."""
    cv2, kernel = opencv(), _kernel(sigma)
    for plane, factor, offset, target in zip(planes, scale, shift, out.numpy(), strict=True):
        cv2.sepFilter2D(
            plane, cv2.CV_32F, kernel * factor, kernel, dst=target, delta=offset, borderType=cv2.BORDER_REPLICATE
        )


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
        rows = [Draws.of(row) for row in draws.tolist()]
        return (self._with_opencv if images.device.type == "cpu" else self._with_torch)(images, rows)

    def colours(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return (B, 3, H, W) uint8 on the CPU: what a network is shown, with the normalisation undone."""
        shown = replace(self, normalisation=Normalisation())(images, draws).cpu()  # an image's own could not be undone
        mean, std = _constants(shown.device)
        return (shown * std + mean).round().clamp(0, 255).byte()

    def _with_torch(self, images: Tensor, rows: Sequence[Draws]) -> Tensor:
        colours = images.float() / 255
        samples = [
            jitter(image, row.order, row.factors) if row.jittered else image
            for image, row in zip(colours, rows, strict=True)
        ]
        blurred = gaussian_blur(torch.stack(samples), [row.sigma for row in rows])
        if any(row.bilateral for row in rows):
            blurred = bilateral_blur(blurred, [row.bilateral for row in rows])
        return self.normalisation(blurred * 255)

    def _with_opencv(self, images: Tensor, rows: Sequence[Draws]) -> Tensor:
        cv2 = opencv()  # some thirty times faster than torch on the CPU; the blur normalises in passing
        out = torch.empty(images.shape)
        scale, shift = (np.ones(3), np.zeros(3)) if self.normalisation.per_image else _SCALE_AND_SHIFT
        for image, row, target in zip(images.contiguous(), rows, out, strict=True):
            planes = list(image.numpy())
            if row.jittered:
                planes = cv2.split(_jitter_with_opencv(cv2.merge(planes).astype(np.float32), row.order, row.factors))
            if row.bilateral:
                colours = torch.from_numpy(np.stack(planes)).float()[None]
                planes = list(bilateral_blur(colours, [row.bilateral])[0].numpy())
            _blur_with_opencv(planes, row.sigma, scale, shift, target)
        return self.normalisation(out) if self.normalisation.per_image else out
