"""Networks: backbones with style sites, the plain DeepLabV3+ head and DIIA's, and the methods that combine them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from config import Config
from network.backbone_base import BackboneBase
from network.backbones import BACKBONES, Backbone, BackboneSpec
from network.deeplab import LinearSegmentor, PlainSegmentor, Segmentor
from network.diia import DIIASegmentor
from network.layout import Confidence
from network.methods import METHODS, Method, method_for, resolve_jitter, resolve_method
from network.outputs import SegmentorOutput
from network.style import MixStyle, read_codes
from network.timm_backbone import TIMM, TimmBackbone, TimmSpec, find_timm
from network.tuning import restrict_tuning
from utils.errors import UserError, did_you_mean

__all__ = [
    "ARCHITECTURES",
    "BACKBONES",
    "DEFAULT_ARCH",
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


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A backbone at an output stride; the head comes from the method."""

    backbone: BackboneSpec | TimmSpec
    output_stride: int

    def build(self, codes: Sequence[int], *, skip: bool = True) -> BackboneBase:
        """Build the backbone with the style sites of seven codes; without `skip` the head reads the top alone."""
        if isinstance(self.backbone, TimmSpec):
            return TimmBackbone(self.backbone, codes=codes, output_stride=self.output_stride, skip=skip)
        sites = read_codes(codes, positions=self.backbone.positions)
        return Backbone(self.backbone, sites=sites, output_stride=self.output_stride)

    def __str__(self) -> str:
        return f"{self.backbone.title}, output stride {self.output_stride}"


_PUBLISHED = (  # X of network.deepv3.DeepXV3PlusD, backbone, ending of the name -> output stride
    ("R18", "resnet18", {"": 32}),
    ("R50", "resnet50", {"": 16, "_OS8": 8}),
    ("R101", "resnet101_deep", {"": 16, "_OS8": 8}),
    ("R152", "resnet152", {"_OS8": 8}),
    ("ResNext50", "resnext50", {"": 16}),
    ("ResNext101", "resnext101", {"": 16, "_OS8": 8, "_OS4": 4}),
    ("WideResNet50", "wide_resnet50", {"": 16, "_OS8": 8}),
    ("WideResNet101", "wide_resnet101", {"": 16, "_OS8": 8}),
    ("MobileNet", "mobilenet_v2", {"": 16, "_OS8": 8}),
    ("ShuffleNet", "shufflenet_v2", {"": 16, "_OS8": 8, "_OS32": 32}),
    ("MNASNet05", "mnasnet_05", {"": 16}),
    ("MNASNet10", "mnasnet_10", {"": 16}),
)
ARCHITECTURES: dict[str, Architecture] = {
    f"network.deepv3.Deep{infix}V3PlusD{ending}": Architecture(BACKBONES[backbone], output_stride)
    for infix, backbone, strides in _PUBLISHED
    for ending, output_stride in strides.items()
}
DEFAULT_ARCH = "network.deepv3.DeepR50V3PlusD"
DEFAULT_STRIDE = 16  # of --backbone


def resolve_architecture(arch: str, *, backbone: str = "", output_stride: int = 0) -> Architecture:
    """Return what `--arch`, `--backbone` and `--output_stride` name together, names in any case.

    The default of `arch` gives way to `backbone`; without a stride it is that of `arch`, or 16 with `backbone`.

    Raises:
        UserError: an unknown name, a stride that the backbone lacks, two names that differ.
    """
    named = _find("--arch", arch)
    if backbone:
        spec = find_timm(backbone) if backbone.startswith(TIMM) else _find("--backbone", backbone)
        if arch != DEFAULT_ARCH and named.backbone != spec:
            raise UserError(f"--arch {arch} is {named.backbone.title}, --backbone {backbone} is not; give one of them")
        named = Architecture(spec, named.output_stride if arch != DEFAULT_ARCH else DEFAULT_STRIDE)
    if output_stride:
        named = dataclasses.replace(named, output_stride=output_stride)
    named.backbone.dilations_at(named.output_stride)
    return named


def _find(flag: str, name: str) -> Any:
    tables: dict[str, Mapping[str, Any]] = {"--arch": ARCHITECTURES, "--backbone": BACKBONES}
    table = tables.pop(flag)
    for key, row in table.items():
        if key.lower() == name.lower():
            return row
    ((other_flag, other),) = tables.items()
    near = f"; did you mean {other_flag} {name}?" if name in other else did_you_mean(name, table)
    timm = " or timm/NAME" if flag == "--backbone" else ""
    raise UserError(f"{flag} {name}: not available; one of {', '.join(table)}{timm}{near}")


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
    freeze_bn: bool = False,
    layout_confidence: Confidence = "logits",
) -> Segmentor:
    """Build a backbone with the style sites and the head of a method; raises `UserError` where they do not fit."""
    backbone = architecture.build(method.codes, skip=method.head == "plain" or bool(method.parts))
    shared: dict[str, Any] = {"method": method, "num_classes": 19, "freeze_bn": freeze_bn}
    if method.head != "diia":
        return {"plain": PlainSegmentor, "linear": LinearSegmentor}[method.head](backbone, **shared)
    return DIIASegmentor(backbone, layout_confidence=layout_confidence, **shared)
