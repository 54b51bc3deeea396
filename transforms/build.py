"""The transforms of a run, built from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transforms.appearance import Appearance, AppearanceDraws, Normalisation
from transforms.geometry import Geometry, RandomCrop, RandomFlip, RandomRotation, RandomScale, Resize, Step
from utils.errors import UserError

# Strengths of brightness, contrast, saturation and hue.
JITTER_STRENGTHS: dict[str, tuple[float, float, float, float]] = {
    "diia": (0.8, 0.8, 0.8, 0.3),
    "robustnet": (0.4, 0.4, 0.4, 0.1),
}


def build_geometry(cfg: Any) -> Geometry:
    """Return scale, crop, flip and (where asked for) rotation of a training sample."""
    augment = cfg.AUGMENT
    if augment.SCALE_MIN > augment.SCALE_MAX:
        raise UserError(
            f"--scale_min {augment.SCALE_MIN} --scale_max {augment.SCALE_MAX}: the first must not be above the second"
        )
    steps: list[Step] = [
        RandomScale(augment.SCALE_MIN, augment.SCALE_MAX, augment.PRE_SIZE),
        RandomCrop(augment.CROP_SIZE, pad=not augment.CROP_NOPAD),
        Resize(augment.CROP_SIZE),
        RandomFlip(),
    ]
    if augment.RROTATE > 0:
        steps.append(RandomRotation(augment.RROTATE))
    return Geometry(tuple(steps))


def build_draws(cfg: Any, *, jitter: str) -> AppearanceDraws:
    """Return what draws the appearance of a training sample; `jitter` names the strengths (diia, robustnet)."""
    augment = cfg.AUGMENT
    return AppearanceDraws(augment.COLOR_AUG, JITTER_STRENGTHS[jitter], augment.GBLUR, augment.BBLUR)


def statistics_draws() -> AppearanceDraws:
    """Return what draws the photometric copy for the covariance statistics: strong jitter and blur, in every recipe."""
    return AppearanceDraws(1.0, JITTER_STRENGTHS["diia"], blur=True)


def build_normalisation(cfg: Any) -> Normalisation:
    """Return the normalisation of the run's images."""
    return Normalisation(per_image=cfg.AUGMENT.IMAGE_IN)


def build_appearance(cfg: Any) -> Appearance:
    """Return jitter, blur and normalisation of a batch; their strength is in the draws of each sample."""
    return Appearance(build_normalisation(cfg))


def statistics_pair(image: Tensor, draws: Tensor, *, appearance: Appearance) -> Tensor:
    """Return the pair whose covariances are compared: (2, 3, h, w) float, [photometric, original], both normalised.

    Args:
        image: (3, h, w) uint8 on any device.
        draws: (D,) on the CPU, from `statistics_draws`.
    """
    return torch.stack((appearance(image[None], draws[None])[0], appearance.normalisation(image[None])[0]))


@dataclass(frozen=True)
class FixedCopy:
    """Makes the photometric copy of an image, with the same draws for every image."""

    appearance: Appearance
    draws: Tensor  # (D,)

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the copy of (3, h, w) uint8 in its own colours, (3, h, w) uint8, and the pair of `statistics_pair`."""
        copy = self.appearance.colours(image[None], self.draws[None])[0]
        return copy, statistics_pair(image, self.draws, appearance=self.appearance)


def build_fixed_copy(cfg: Any) -> FixedCopy:
    """Return what makes photometric copies for pictures, drawn once from the run's seed."""
    draws = statistics_draws()(np.random.default_rng((cfg.RUN.SEED, 4)))
    return FixedCopy(build_appearance(cfg), torch.from_numpy(draws))
