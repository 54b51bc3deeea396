"""Joint geometry on image and label, appearance and edge target on batches: those of a run, built from its config."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from config import Config
from transforms.appearance import MEAN, STD, Appearance, AppearanceSampler, Normalisation
from transforms.geometry import Geometry, RandomCrop, RandomFlip, RandomRotation, RandomScale, Resize
from transforms.style_augmentation import StyleAugmentation

JITTER_STRENGTHS = {"diia": (0.8, 0.8, 0.8, 0.3), "robustnet": (0.4, 0.4, 0.4, 0.1)}  # as `AppearanceSampler` has them


def build_geometry(cfg: Config) -> Geometry:
    """Return scale, crop, flip and, where asked for, rotation of a training sample."""
    augment = cfg.AUGMENT
    scale = RandomScale(augment.SCALE_MIN, augment.SCALE_MAX, augment.PRE_SIZE)
    crop = RandomCrop(augment.CROP_SIZE, pad=not augment.CROP_NOPAD)
    rotation = (RandomRotation(augment.RROTATE),) if augment.RROTATE > 0 else ()
    return Geometry((scale, crop, Resize(augment.CROP_SIZE), RandomFlip(), *rotation))


def build_appearance_sampler(cfg: Config, *, jitter: str) -> AppearanceSampler:
    """Return the sampler of a training image's appearance; `jitter` names the strengths (diia, robustnet)."""
    augment = cfg.AUGMENT
    style = build_style_augmentation(cfg) is not None
    return AppearanceSampler(augment.COLOR_AUG, JITTER_STRENGTHS[jitter], augment.GBLUR, augment.BBLUR, style)


def statistics_sampler() -> AppearanceSampler:
    """Return the sampler of the augmented views for ISW's statistics: strong jitter and blur, in every recipe."""
    return AppearanceSampler(1.0, JITTER_STRENGTHS["diia"], blur=True)


def build_normalisation(cfg: Config) -> Normalisation:
    augment = cfg.AUGMENT
    return Normalisation(augment.IMAGE_IN, mean=tuple(augment.MEAN or MEAN), std=tuple(augment.STD or STD))


def build_appearance(cfg: Config) -> Appearance:
    return Appearance(build_normalisation(cfg), build_style_augmentation(cfg))


def build_style_augmentation(cfg: Config) -> StyleAugmentation | None:
    augment = cfg.AUGMENT
    style = StyleAugmentation(augment.FDA, augment.RANDCONV, augment.RANDCONV_REPEATS, augment.RANDAUGMENT)
    return None if style == StyleAugmentation() else style


def build_fixed_augmentation(cfg: Config) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return what makes the augmented view that pictures show of any image, sampled once from the run's seed.

    It maps (3, h, w) uint8 to the view in its own colours, (3, h, w) uint8, and the pair of `Appearance.pair`.
    """
    appearance, params = build_appearance(cfg), statistics_sampler()(np.random.default_rng((cfg.RUN.SEED, 4)))
    batch = default_collate([params])
    return lambda image: (appearance.colours(image[None], batch)[0], appearance.pair(image, params))
