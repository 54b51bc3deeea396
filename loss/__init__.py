"""Losses: named terms, whitening with its statistics, and the criterion that weights them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from config import Config
from loss.criterion import CLASS_WEIGHTS, Criterion
from loss.terms import ImageTargets
from loss.whitening import MaskStatistics, Whitening, collect_masks, covariance, whitening_loss

__all__ = ["Criterion", "MaskStatistics", "build_criterion", "collect_masks", "covariance", "whitening_loss"]


def build_criterion(cfg: Config, *, method: Any, style_channels: Sequence[int]) -> Criterion:
    """Build the criterion of a method from `cfg.WHITENING`, `cfg.LOSS` and the crop of `cfg.AUGMENT`.

    Args:
        method: a row of network.methods; its `head`, `whitening`, `corrections` and `relax_denom` are read.
        style_channels: channels of each captured map.
    """
    whitening = None
    if method.whitening is not None:
        relax_denom = method.relax_denom if cfg.WHITENING.RELAX_DENOM is None else cfg.WHITENING.RELAX_DENOM
        whitening = Whitening(style_channels, kind=method.whitening, relax_denom=relax_denom)
    options, targets = cfg.LOSS, None
    if options.IMAGE_WEIGHTS or options.RELAX_BORDERS:
        strict, whole_batch = tuple(options.STRICT_CLASSES), options.BATCH_WEIGHTS
        targets = ImageTargets(options.WEIGHT_BOUND, whole_batch, relaxed=options.RELAX_BORDERS, strict=strict)
    return Criterion(
        head=method.head,
        whitening=whitening,
        whitening_weight=cfg.WHITENING.REG_WEIGHT,
        class_weights=CLASS_WEIGHTS if options.CLASS_WEIGHTS else None,
        smoothing=options.LABEL_SMOOTHING,
        targets=targets,
        ohem=(options.OHEM_THRESH, options.OHEM_MIN_KEPT / cfg.AUGMENT.CROP_SIZE**2) if options.OHEM_THRESH else None,
        corrections=method.corrections,
    )
