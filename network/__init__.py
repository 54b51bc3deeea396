"""Networks: backbones with style sites, the plain DeepLabV3+ head and DIIA's, and the methods that combine them."""

from __future__ import annotations

from typing import Any

from config import Config
from network.backbones import ARCHITECTURES, BACKBONES, Architecture, Backbone, resolve_architecture
from network.deeplab import PlainSegmentor, Segmentor
from network.diia import Confidence, DIIASegmentor
from network.methods import METHODS, Method, method_for, resolve_jitter, resolve_method
from network.outputs import SegmentorOutput
from network.style import read_codes

__all__ = [
    "ARCHITECTURES",
    "BACKBONES",
    "METHODS",
    "Architecture",
    "Method",
    "Segmentor",
    "SegmentorOutput",
    "architecture_of",
    "assemble",
    "build_network",
    "method_for",
    "resolve_architecture",
    "resolve_jitter",
    "resolve_method",
]


def architecture_of(cfg: Config) -> Architecture:
    network = cfg.NETWORK
    return resolve_architecture(network.ARCH, backbone=network.BACKBONE, output_stride=network.OUTPUT_STRIDE)


def build_network(cfg: Config, *, method: Method | None = None) -> Segmentor:
    """Build the network of `cfg.NETWORK`, freshly initialised, with `method` in place of the one that it names.

    Raises:
        UserError: an unknown architecture or method, or style codes that do not fit.
    """
    return assemble(
        architecture_of(cfg),
        method=method or resolve_method(cfg.NETWORK.METHOD, cfg.NETWORK.WT_LAYER),
        freeze_bn=bool(cfg.NETWORK.FREEZE_BN),
        layout_confidence=cfg.LOSS.LAYOUT_CONFIDENCE,
    )


def assemble(
    architecture: Architecture,
    *,
    method: Method,
    num_classes: int = 19,
    freeze_bn: bool = False,
    layout_confidence: Confidence = "logits",
) -> Segmentor:
    """Build a backbone with the style sites and the head of a method; raises `UserError` where they do not fit."""
    sites = read_codes(method.codes, positions=architecture.backbone.positions)
    backbone = Backbone(architecture.backbone, sites=sites, output_stride=architecture.output_stride)
    shared: dict[str, Any] = {"method": method, "num_classes": num_classes, "freeze_bn": freeze_bn}
    if method.head == "plain":
        return PlainSegmentor(backbone, **shared)
    return DIIASegmentor(backbone, layout_confidence=layout_confidence, **shared)
