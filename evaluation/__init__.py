"""Evaluation of a network on domains: metrics, evaluator, report, pictures of what the network computes inside."""

from __future__ import annotations

import torch

from config import Config
from evaluation.evaluator import Evaluator
from evaluation.features import FeaturePlotter
from evaluation.protocols import build_inference
from evaluation.report import Report
from loss.whitening import Whitening
from network import Segmentor
from transforms import build_fixed_augmentation, build_normalisation
from utils.device import autocast_dtype

__all__ = ["Evaluator", "FeaturePlotter", "Report", "build_evaluator"]


def build_evaluator(
    cfg: Config, network: Segmentor | None, *, recipe: Config, whitening: Whitening | None, device: torch.device
) -> Evaluator:
    """Build the evaluator of a run from `cfg.EVAL`; what the method has nothing to show of raises `UserError`.

    Args:
        network: whose inner values are plotted where --visualize_feature asks for it; None has none.
        recipe: the config that the network was trained with; its normalisation is used.
        whitening: holds the masks that are plotted, None where the method has none.
    """
    dtype, plotter = autocast_dtype(device, amp=cfg.OPTIM.AMP), None
    if cfg.EVAL.VISUALIZE and network is not None:
        plotter = FeaturePlotter(
            network,
            whitening=whitening,
            augment=build_fixed_augmentation(recipe),
            device=device,
            autocast_dtype=dtype,
            pixels=cfg.EVAL.ATTENTION_PIXELS,
        )
    return Evaluator(
        normalise=build_normalisation(recipe),
        device=device,
        batch_size=cfg.EVAL.BATCH_SIZE,
        autocast_dtype=dtype,
        inference=build_inference(cfg),
        num_pictures=cfg.EVAL.PICTURES,
        more_metrics=cfg.EVAL.MORE_METRICS,
        per_image=cfg.EVAL.PER_IMAGE or cfg.EVAL.REPORT,
        plotter=plotter,
    )
