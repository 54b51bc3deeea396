"""Networks: backbones with style sites, the plain DeepLabV3+ head and DIIA's, and the methods that combine them."""

from __future__ import annotations

import dataclasses
from typing import Any

from network.deeplab import PlainSegmentor
from network.diia import DIIASegmentor
from network.methods import METHODS, Method, method_for, resolve_method
from network.outputs import SegmentorOutput
from network.pretrained import load_pretrained
from network.resnet import RESNET50, RESNET101, ResNet, ResNetSpec
from network.segmentor import Segmentor
from network.style import read_codes
from utils.errors import UserError, did_you_mean

__all__ = [
    "ARCHITECTURES",
    "METHODS",
    "Method",
    "Segmentor",
    "SegmentorOutput",
    "build_network",
    "load_pretrained",
    "method_for",
    "resolve_method",
]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a published `--arch` name stands for; the head comes from the method."""

    backbone: ResNetSpec
    output_stride: int


ARCHITECTURES: dict[str, Architecture] = {
    "network.deepv3.DeepR50V3PlusD": Architecture(RESNET50, 16),
    "network.deepv3.DeepR101V3PlusD": Architecture(RESNET101, 16),
}


def build_network(cfg: Any, *, num_classes: int = 19) -> Segmentor:
    """Build the network of `cfg.NETWORK` (ARCH, METHOD, WT_LAYER, FREEZE_BN), freshly initialised.

    Raises:
        UserError: an unknown architecture or method, or style codes that do not fit.
    """
    name = cfg.NETWORK.ARCH
    if name not in ARCHITECTURES:
        near = did_you_mean(name, ARCHITECTURES)
        raise UserError(f"--arch {name}: not available; one of {', '.join(ARCHITECTURES)}{near}")
    architecture = ARCHITECTURES[name]
    method = resolve_method(cfg.NETWORK.METHOD, cfg.NETWORK.WT_LAYER)
    sites = read_codes(method.codes, positions=architecture.backbone.positions)
    backbone = ResNet(architecture.backbone, sites=sites, output_stride=architecture.output_stride)
    frozen = bool(cfg.NETWORK.FREEZE_BN)
    if method.head == "plain":
        return PlainSegmentor(backbone, method=method, num_classes=num_classes, freeze_bn=frozen)
    return DIIASegmentor(
        backbone,
        method=method,
        num_classes=num_classes,
        freeze_bn=frozen,
        layout_confidence=cfg.LOSS.LAYOUT_CONFIDENCE,
    )
