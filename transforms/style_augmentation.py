"""Augmentations that change an image's style: what a batch looks like to a network, never what is in it.

They come after jitter and blur. B samples, H x W size; colours are float 0..255. Each sample has a stream of its own,
one number that seeds everything that is sampled for it here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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


@dataclass(frozen=True)
class StyleAugmentation:
    """Changes the style of a batch.

    Attributes:
        fda: largest frequency whose amplitude is mixed, in cycles per pixel, 0 = none.
    """

    fda: float = 0.0

    def __call__(self, colours: Tensor, streams: Tensor) -> Tensor:
        """Return (B, 3, H, W) for (B, 3, H, W) float and the samples' streams, (B,) int64 on the CPU; 0 = no change."""
        if not streams.all():  # the views of ISW's statistics, and a run without
            return colours
        if self.fda and len(colours) > 1:
            share = torch.tensor([rng.random() for rng in _rngs(streams, "fda")], dtype=torch.float32)
            share = share.to(colours.device, non_blocking=True)
            colours = mix_amplitudes(colours, share, beta=self.fda).clamp_(0, 255)
        return colours


def _rngs(streams: Tensor, name: str) -> Iterable[np.random.Generator]:
    """Return a generator per sample that depends on its stream and on what it is for, nothing else."""
    return (np.random.default_rng((stream, *name.encode())) for stream in streams.tolist())
