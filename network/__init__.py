"""Networks: backbones with style sites, the plain DeepLabV3+ head and DIIA's, and the methods that combine them."""

from __future__ import annotations

from typing import Any

from config import Config
from network.architectures import ARCHITECTURES, Architecture, resolve_architecture
from network.backbones import BACKBONES
from network.deeplab import LinearSegmentor, PlainSegmentor, Segmentor
from network.diia import DIIASegmentor
from network.layout import Confidence
from network.methods import METHODS, Method, method_for, resolve_jitter, resolve_method
from network.outputs import SegmentorOutput
from network.style import MixStyle
from network.tuning import restrict_tuning
from utils.errors import UserError

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
    settings = cfg.NETWORK
    network = assemble(
        architecture_of(cfg),
        method=method or resolve_method(settings.METHOD, settings.WT_LAYER),
        freeze_bn=bool(settings.FREEZE_BN),
        layout_confidence=cfg.LOSS.LAYOUT_CONFIDENCE,
    )
    if settings.TUNE != "full":
        restrict_tuning(network.backbone, settings.TUNE, rank=settings.LORA_RANK, tokens=settings.REIN_TOKENS)
    network.backbone.checkpoint_blocks(wanted=settings.GRAD_CHECKPOINT)
    if cfg.AUGMENT.MIXSTYLE:
        mix_style = network.backbone.mix_style
        if not isinstance(mix_style, MixStyle):
            name = network.backbone.spec.name
            raise UserError(f"--mixstyle: {name} gives no maps between its stages; leave it out")
        mix_style.probability = cfg.AUGMENT.MIXSTYLE
    return network


def assemble(
    architecture: Architecture,
    *,
    method: Method,
    num_classes: int = 19,
    freeze_bn: bool = False,
    layout_confidence: Confidence = "logits",
) -> Segmentor:
    """Build a backbone with the style sites and the head of a method; raises `UserError` where they do not fit."""
    backbone = architecture.build(method.codes, skip=method.head != "linear")
    shared: dict[str, Any] = {"method": method, "num_classes": num_classes, "freeze_bn": freeze_bn}
    if method.head != "diia":
        return {"plain": PlainSegmentor, "linear": LinearSegmentor}[method.head](backbone, **shared)
    return DIIASegmentor(backbone, layout_confidence=layout_confidence, **shared)
