"""Augmentations that change an image's style: what a batch looks like to a network, never what is in it.

They come after jitter and blur. B samples, H x W size; colours are float 0..255. Each sample has a stream of its own,
one number that seeds everything that is sampled for it here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from transforms.appearance import MEAN, STD

KERNEL_SIZES = (1, 3, 5, 7)
RECOLOURINGS = (
    *("identity", "adjust_brightness", "adjust_contrast", "adjust_saturation", "sharpen", "posterize", "solarize"),
    *("autocontrast", "equalize"),
)  # torchvision's names, but for the first and `sharpen`


def mix_amplitudes(images: Tensor, share: Tensor, *, beta: float) -> Tensor:
    """Give each image a share, (B,), of the low-frequency amplitudes of the one before it in the batch; phases stay.

    Low are frequencies of at most `beta` cycles per pixel down and across: the rectangle of Yang and Soatto, FDA, CVPR
    2020, which mixes as in Xu et al., A Fourier-based framework for domain generalization, CVPR 2021.
    """
    height, width = images.shape[2:]
    spectrum = torch.fft.rfft2(images)  # (B, C, H, W // 2 + 1), of which the other half follows
    low, right = int(beta * height), int(beta * width)
    band = (..., torch.arange(-low, low + 1, device=images.device), slice(right + 1))
    values = spectrum[band]
    amplitude = values.abs()
    mixed = amplitude.lerp(amplitude.roll(1, 0), share[:, None, None, None])
    spectrum[band] = torch.polar(mixed, values.angle())
    return torch.fft.irfft2(spectrum, s=(height, width))


def random_convolution(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Mix a normalised image (3, H, W) with what a random kernel of a random size makes of it, in a random share.

    Xu et al., Robust and generalizable visual representation learning via random convolutions, ICLR 2021.
    """
    kernel, share = _kernel(rng, int(rng.choice(KERNEL_SIZES))), rng.random()
    return torch.lerp(_convolve(image, kernel), image, share)


def progressive_convolution(image: Tensor, rng: np.random.Generator, *, repeats: int) -> Tensor:
    """Apply one random block up to `repeats` times to a normalised image (3, H, W); their number is random.

    The block: a 3x3 convolution with a Gaussian's taper, each channel to zero mean and unit deviation, a random scale
    and shift, tanh. Choi et al., Progressive random convolutions, CVPR 2023, without its deformed kernels.
    """
    kernel, (scale, shift) = _kernel(rng, 3), _tensor(rng.normal(0, 0.5, (2, 3, 1, 1)), image)
    distance = np.abs(np.arange(3) - 1)
    taper = np.exp(-(distance[:, None] + distance) / (2 * rng.uniform(0.01, 1) ** 2))  # squares of 0 and 1
    kernel *= taper
    for _ in range(rng.integers(1, repeats, endpoint=True)):
        image = _convolve(image, kernel)
        deviation, mean = torch.std_mean(image, dim=(1, 2), correction=0, keepdim=True)
        image = torch.tanh(scale * (image - mean) / (deviation + 1e-5) + shift)
    return image


def _kernel(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return (3, 3, size, size) normal weights that keep the variance of white noise."""
    return rng.normal(0, 1 / (size * 3**0.5), (3, 3, size, size))


def _convolve(image: Tensor, kernel: np.ndarray) -> Tensor:
    return F.conv2d(image, _tensor(kernel, image), padding=kernel.shape[2] // 2)


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).float().to(like.device, non_blocking=True)


def random_recolouring(image: Tensor, rng: np.random.Generator, *, magnitude: int) -> Tensor:
    """Apply two random operations of RandAugment's that only change colours to an image (3, H, W) uint8.

    Cubuk et al., RandAugment, NeurIPS 2020; `magnitude` is from 0 to 30.
    """
    for _ in range(2):
        name, sign = str(rng.choice(RECOLOURINGS)), 1 if rng.random() < 0.5 else -1
        image = recolour(image, name, level=magnitude / 30, sign=sign)
    return image


def recolour(image: Tensor, name: str, *, level: float, sign: int) -> Tensor:
    """Apply one operation to an image (3, H, W) uint8 with a level of 0..1; `sign` is that of an enhancement."""
    from torchvision.transforms.v2 import functional  # slow to import

    factor = 1 + 0.9 * level * sign
    match name:
        case "identity":
            return image
        case "sharpen":
            return _sharpen(image, factor)
        case "posterize":
            return functional.posterize(image, 8 - round(4 * level))
        case "solarize":
            return functional.solarize(image, 255 * (1 - level))
        case "autocontrast" | "equalize":
            return getattr(functional, name)(image)
        case _:
            return getattr(functional, name)(image, factor)


def _sharpen(image: Tensor, factor: float) -> Tensor:
    """Move an image away from its smoothed form, as torchvision's `adjust_sharpness`, which waits for the device."""
    inner, sums = image[..., 1:-1, 1:-1].float(), F.avg_pool2d(image.float(), 3, stride=1, divisor_override=1)
    sharpened = torch.lerp((sums + 4 * inner).div_(13).round_(), inner, factor).clamp_(0, 255)
    image = image.clone()
    image[..., 1:-1, 1:-1] = sharpened
    return image


def adversarial_style(images: Tensor, gradient: Tensor, *, step_size: float) -> Tensor:
    """Return normalised images (B, 3, H, W) of the styles that a step of gradient ascent on the loss leads to.

    A style is the mean and the deviation of each channel. `gradient` is that of each image's loss by its pixels; what
    is not finite, as after an overflow of half precision, counts as zero. Zhong et al., Adversarial style augmentation
    for domain generalized urban-scene segmentation, NeurIPS 2022.
    """
    deviation, mean = torch.std_mean(images, dim=(2, 3), correction=0, keepdim=True)  # (B, 3, 1, 1)
    content = (images - mean) / (deviation + 1e-6)
    slopes = (part.sum((2, 3), keepdim=True).nan_to_num(0, 0, 0) for part in (gradient, gradient * content))
    mean, deviation = (value + step_size * slope for value, slope in zip((mean, deviation), slopes, strict=True))
    return content * deviation + mean


@dataclass(frozen=True)
class StyleAugmentation:
    """Changes the style of a batch.

    Attributes:
        fda: largest frequency whose amplitude is mixed, in cycles per pixel, 0 = none.
        randconv: probability of an image's random convolution, which is progressive where `repeats` is above 1.
        magnitude: of RandAugment's colour operations, 0 = none.
    """

    fda: float = 0.0
    randconv: float = 0.0
    repeats: int = 1
    magnitude: int = 0

    def __call__(self, colours: Tensor, streams: Tensor) -> Tensor:
        """Return (B, 3, H, W) for (B, 3, H, W) float and the samples' streams, (B,) int64 on the CPU; 0 = no change."""
        if not streams.all():  # the views of ISW's statistics, and a run without
            return colours
        for index, rng in enumerate(_rngs(streams, "randaugment")) if self.magnitude else ():
            colours[index] = random_recolouring(colours[index].round().byte(), rng, magnitude=self.magnitude)
        if self.fda and len(colours) > 1:
            share = _tensor(np.array([rng.random() for rng in _rngs(streams, "fda")]), colours)
            colours = mix_amplitudes(colours, share, beta=self.fda).clamp_(0, 255)
        convolve = partial(progressive_convolution, repeats=self.repeats) if self.repeats > 1 else random_convolution
        mean, std = _tensor(255 * np.reshape((MEAN, STD), (2, 3, 1, 1)), colours)
        for index, rng in enumerate(_rngs(streams, "randconv")):
            if rng.random() < self.randconv:
                image = (colours[index] - mean) / std  # the border's zeros are then the mean colour
                colours[index] = convolve(image, rng) * std + mean
        return colours


def _rngs(streams: Tensor, name: str) -> Iterable[np.random.Generator]:
    """Return a generator per sample that depends on its stream and on what it is for, nothing else."""
    return (np.random.default_rng((stream, *name.encode())) for stream in streams.tolist())
