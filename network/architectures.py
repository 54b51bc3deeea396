"""The table of backbones, what the published names of `--arch` stand for, and the way from a run's flags to both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from network.backbone import Backbone, BackboneSpec
from network.mobilenet import MNASNET_05, MNASNET_10, MOBILENET_V2, SequentialBackbone, SequentialSpec
from network.resnet import RESNETS, ResNet, ResNetSpec
from network.shufflenet import SHUFFLENET_V2, ShuffleNetV2
from utils.errors import UserError, did_you_mean

BACKBONES: dict[str, BackboneSpec] = {
    spec.name: spec for spec in (*RESNETS.values(), MOBILENET_V2, SHUFFLENET_V2, MNASNET_05, MNASNET_10)
}
CLASSES: dict[type[BackboneSpec], Callable[..., Backbone]] = {
    ResNetSpec: ResNet,
    SequentialSpec: SequentialBackbone,
    BackboneSpec: ShuffleNetV2,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A backbone at an output stride; the head comes from the method."""

    backbone: BackboneSpec
    output_stride: int

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
    """Return what `--arch`, `--backbone` and `--output_stride` name together.

    Args:
        arch: a published name, in any case; its default gives way to `backbone`.
        backbone: a plain name, or nothing: that of `arch`.
        output_stride: 0 for that of `arch`, or 16 with `backbone`.

    Raises:
        UserError: an unknown name, a stride that the backbone lacks, two names that differ.
    """
    named = _find(arch, ARCHITECTURES, flag="--arch", other=BACKBONES, other_flag="--backbone")
    if backbone:
        spec = _find(backbone, BACKBONES, flag="--backbone", other=ARCHITECTURES, other_flag="--arch")
        if arch != DEFAULT_ARCH and named.backbone != spec:
            raise UserError(f"--arch {arch} is {named.backbone.title}, --backbone {backbone} is not; give one of them")
        named = Architecture(spec, named.output_stride if arch != DEFAULT_ARCH else DEFAULT_STRIDE)
    if output_stride:
        named = dataclasses.replace(named, output_stride=output_stride)
    named.backbone.dilations_at(named.output_stride)
    return named


def _find(name: str, table: Mapping[str, Any], *, flag: str, other: Mapping[str, Any], other_flag: str) -> Any:
    same = {key.lower(): key for key in table}
    if name.lower() in same:
        return table[same[name.lower()]]
    near = f"; did you mean {other_flag} {name}?" if name in other else did_you_mean(name, table)
    raise UserError(f"{flag} {name}: not available; one of {', '.join(table)}{near}")


def build_backbone(architecture: Architecture, *, sites: Mapping[str, str]) -> Backbone:
    """Build a backbone with style sites (site name -> kind, see network.style), freshly initialised."""
    spec = architecture.backbone
    return CLASSES[type(spec)](spec, sites=sites, output_stride=architecture.output_stride)
