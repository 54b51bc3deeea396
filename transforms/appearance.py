"""Colour jitter, blur and normalisation of a batch on its device, with parameters sampled per image; edges' target.

One arithmetic on every device. B samples, H x W size; colours are float 0..255 and never rounded in between. On the CPU
an image gets the same bits in every batch and with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from transforms.geometry import Rng

MEAN = (0.485, 0.456, 0.406)  # ImageNet's
STD = (0.229, 0.224, 0.225)


class AppearanceParams(NamedTuple):
    """How an image's appearance is changed; of a batch as `default_collate` joins them, with B in front of each shape.

    They stay on the CPU, so that choosing what to compute never waits for a device.

    Attributes:
        jitter: () bool, whether the colours are jittered.
        order: (4,) int64, brightness 0, contrast 1, saturation 2 and hue 3 in the order of their application.
        factors: (4,) float32, the factors of the first three and the shift of hue in turns.
        sigma: () float32, of the Gaussian blur in pixels, 0 = none.
        bilateral: () float32, of the bilateral blur in pixels, 0 = none.
        stream: () int64, seeds what is sampled for the style augmentation, 0 = none.
    """

    jitter: Tensor
    order: Tensor
    factors: Tensor
    sigma: Tensor
    bilateral: Tensor
    stream: Tensor


@dataclass(frozen=True)
class AppearanceSampler:
    """Samples one image's parameters: jitter with a probability, and blur always or never, bilateral where asked for.

    `strengths` are those of brightness, contrast, saturation and hue; `style`: whether there is style augmentation.
    """

    probability: float
    strengths: tuple[float, float, float, float]
    blur: bool
    bilateral: bool = False
    style: bool = False

    def __call__(self, rng: Rng) -> AppearanceParams:
        """Return the parameters; how many numbers are taken from `rng` does not depend on their values."""
        jitter = rng.random() < self.probability
        order = np.argsort([rng.random() for _ in range(4)])
        *strengths, hue = self.strengths
        factors = [rng.uniform(max(1 - strength, 0), 1 + strength) for strength in strengths] + [rng.uniform(-hue, hue)]
        bilateral = rng.uniform(0.05, 0.75) if self.bilateral else 0.0
        sigma = 0.15 + 1.15 * rng.random() if self.blur and not self.bilateral else 0.0
        numbers = [torch.tensor(values, dtype=torch.float32) for values in (factors, sigma, bilateral)]
        numbers.append(torch.tensor(rng.integers(1, 2**62, endpoint=True) if self.style else 0))
        return AppearanceParams(torch.tensor(jitter), torch.from_numpy(order), *numbers)


def _brightness(colours: Tensor, factor: Tensor) -> Tensor:
    return colours.mul_(factor).clamp_(0, 255)


def _saturation(colours: Tensor, factor: Tensor, *, contrast: bool = False) -> Tensor:
    """Blend with the grey image, or for contrast with its mean."""
    red, green, blue = colours.split(1, dim=1)
    grey = (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)  # (B, 1, H, W), with torchvision's weights
    if contrast:
        grey = grey.mean(3, keepdim=True).mean(2, keepdim=True)  # by rows: the sum is that of any batch
    return colours.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 255)


def _hue(colours: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV and keep saturation and value: a channel's share is a trapezium around its own hue."""
    red, green, blue = colours.split(1, dim=1)
    high, low = colours.amax(1, keepdim=True), colours.amin(1, keepdim=True)
    chroma = high - low
    towards = torch.where(high == red, green - blue, torch.where(high == green, blue - red, red - green))
    start = torch.where(high == red, 0.0, torch.where(high == green, 2.0, 4.0))
    hue = towards.div_(chroma.clamp(min=1e-6)).add_(start).div_(6).add_(shift)  # (B, 1, H, W) in turns
    for channel, own_hue in enumerate((0, 1 / 3, 2 / 3)):
        distance = hue - own_hue
        distance = distance.sub_(distance.round()).abs_()
        share = distance.mul_(-6).add_(2).clamp_(0, 1)
        colours[:, channel : channel + 1] = share.mul_(chroma).add_(low)
    return colours


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...]
OPERATIONS = (_brightness, partial(_saturation, contrast=True), _saturation, _hue)  # in the order of their numbers


def jitter(colours: Tensor, params: AppearanceParams) -> Tensor:
    """Jitter (B, 3, H, W) float 0..255 in place, as torchvision's `adjust_*` would one image after another."""
    factors = params.factors.to(colours.device, non_blocking=True)
    for position in params.order.unbind(1):
        for index, operation in enumerate(OPERATIONS):
            chosen = (params.jitter & (position == index)).nonzero()[:, 0]  # the samples whose turn it is
            if len(chosen):
                chosen = chosen.to(colours.device, non_blocking=True)
                changed = operation(colours[chosen], factors[chosen, index][:, None, None, None])
                colours.index_copy_(0, chosen, changed)
    return colours


def _kernels(sigma: Tensor) -> Tensor:
    """Return (B, 2r+1) float32 weights of Gaussians, cut off at four sigmas as scikit-image does; 1 for sigma 0."""
    sigma = sigma.double()[:, None]  # (B, 1)
    reach = (4 * sigma + 0.5).floor()
    radius = int(reach.max())
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / sigma.where(sigma > 0, 1)) ** 2) * (offsets.abs() <= reach)
    return (weights / weights.sum(1, keepdim=True)).float()


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur (B, C, H, W) float, each sample with its sigma in pixels, (B,) on the CPU; the border pixel is repeated."""
    kernels = _kernels(sigma)
    radius = kernels.shape[1] // 2
    if radius == 0:
        return images
    weights = kernels.to(images.device, non_blocking=True).T[:, :, None, None, None]  # (2r+1, B, 1, 1, 1)
    # Sums of shifted maps: as fast as a grouped convolution on large batches, ten times as fast on small ones.
    for dim, border in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, blurred = F.pad(images, border, mode="replicate"), torch.zeros_like(images)
        for offset, weight in enumerate(weights):
            blurred.addcmul_(padded.narrow(dim, offset, images.shape[dim]), weight)
        images = blurred
    return images


def bilateral_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur (B, C, H, W) float where colours are alike, each sample with its sigma in pixels, (B,) on the CPU.

    The colours' sigma is the deviation of the whole image, their distance a C-th of the Euclidean one, as in
    scikit-image, whose spatial kernel is off its centre and so moves the image; the border pixel is repeated.
    """
    kernels = _kernels(sigma).to(images.device, non_blocking=True)
    length, channels, (height, width) = kernels.shape[1], images.shape[1], images.shape[2:]
    spread = images.std(dim=(1, 2, 3), correction=0, keepdim=True).clamp(min=1e-6)
    padded = F.pad(images, (length // 2,) * 4, mode="replicate")
    total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
    for down, across in product(range(length), repeat=2):
        other = padded[:, :, down : down + height, across : across + width]
        distance = ((other - images) / (channels * spread)).square().sum(1, keepdim=True)  # (B, 1, H, W)
        weight = (-0.5 * distance).exp() * (kernels[:, down] * kernels[:, across])[:, None, None, None]
        total.addcmul_(weight, other)
        weights += weight
    return total / weights


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Return 255 * mean and 255 * std, (2, 3, 1, 1), once per device."""
    return torch.tensor((mean, std), device=device).mul(255)[..., None, None]


@dataclass(frozen=True)
class Normalisation:
    """Brings images of 0..255 to zero mean and unit deviation: those given, or with `per_image` each image's own."""

    per_image: bool = False
    mean: tuple[float, ...] = MEAN  # of 0..1
    std: tuple[float, ...] = STD

    def __str__(self) -> str:
        if self.per_image:
            return "each image's own mean and deviation"
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, deviation {std}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) float32 for (B, 3, H, W) uint8 or float."""
        return self.by(_constants(self.mean, self.std, images.device), images)

    def by(self, constants: Tensor, images: Tensor) -> Tensor:
        """Do so with mean and deviation of 0..255 as a tensor (2, 3, 1, 1); an image's own take their place."""
        images, (mean, std) = images.float(), constants
        if self.per_image:
            mean, std = images.mean(dim=(2, 3), keepdim=True), images.std(dim=(2, 3), keepdim=True) + 255e-5
        return (images - mean) / std


@dataclass(frozen=True)
class Appearance:
    """Jitter, blur, style augmentation and normalisation, each sample with its own parameters."""

    normalisation: Normalisation = Normalisation()
    style: Callable[[Tensor, Tensor], Tensor] | None = None  # of colours and streams

    def __call__(self, images: Tensor, params: AppearanceParams) -> Tensor:
        """Return (B, 3, H, W) float32 on the device of `images`, (B, 3, H, W) uint8."""
        return self.normalisation(self._changed(images, params))

    def colours(self, images: Tensor, params: AppearanceParams) -> Tensor:
        """Return (B, 3, H, W) uint8 on the CPU: what a network is shown, before the normalisation."""
        return self._changed(images, params).clamp_(0, 255).round().byte().cpu()

    def pair(self, image: Tensor, params: AppearanceParams) -> Tensor:
        """Return the photometrically augmented view and the image itself, (2, 3, h, w), for (3, h, w) uint8.

        Both are normalised; `params` are those of one sample. Their covariances are what ISW compares.
        """
        return torch.cat((self(image[None], default_collate([params])), self.normalisation(image[None])))

    def _changed(self, images: Tensor, params: AppearanceParams) -> Tensor:
        colours = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        colours = gaussian_blur(jitter(colours, params), params.sigma)
        colours = bilateral_blur(colours, params.bilateral) if params.bilateral.any() else colours
        return colours if self.style is None else self.style(colours, params.stream)


def edge_target(images: Tensor, *, magnitude: bool = False) -> Tensor:
    """Return |Sobel x| of the grey image, rounded and cut off at 255: the target of edge reconstruction.

    It maps (B, 3, H, W) uint8 RGB, before any change of colour, to (B, H, W) float32. Source: the original's 3x3
    x-derivative; the border is mirrored without doubling its pixel. With `magnitude` both derivatives count, and each
    image by its own contrast: 255 is three deviations above its mean.
    """
    red, green, blue = images.float().unbind(dim=1)
    # Parity: OpenCV's weights for blue, green, red, applied to red, green, blue as the original does; in thousandths,
    # so that all sums are whole numbers that float32 holds and every device rounds alike.
    grey = (red * 114).add_(green, alpha=587).add_(blue, alpha=299)  # (B, H, W)
    padded = F.pad(grey, (1, 1, 1, 1), mode="reflect")  # (B, H+2, W+2)
    across = padded[..., 2:] - padded[..., :-2]  # (B, H+2, W)
    sobel = (across[:, :-2] + across[:, 2:]).add_(across[:, 1:-1], alpha=2)  # (B, H, W)
    if magnitude:
        down = padded[:, 2:] - padded[:, :-2]  # (B, H, W+2)
        strength = torch.hypot(sobel, (down[..., :-2] + down[..., 2:]).add_(down[..., 1:-1], alpha=2))
        deviation, mean = torch.std_mean(strength, dim=(1, 2), keepdim=True)
        return (strength * (255 / (mean + 3 * deviation).clamp(min=1))).clamp_(max=255)
    thousand = sobel.new_full((), 1000)  # as a plain number a GPU would multiply by its rounded reciprocal
    return sobel.div_(thousand).round_().abs_().clamp_(max=255)
