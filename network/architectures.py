"""The table of backbones, what the published names of `--arch` stand for, and the way from a run's flags to both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from network.backbones import PARTS, BackboneSpec, ResNetSpec, SmallSpec
from utils.errors import UserError, did_you_mean

_STAGES = {3: "stage1", 4: "stage2", 5: "stage3", 6: "stage4"}
_DEEP: dict[str, Any] = {
    "stem": ((3, 64, 2), (3, 64, 1), (3, 128, 1)),
    "positions": {0: "stem1", 1: "stem2", 2: "stem3", **_STAGES},
}
# name, title, torchvision's name, blocks, what differs from a plain bottleneck network
_RESNETS: tuple[tuple[str, str, str | None, tuple[int, int, int, int], dict[str, Any]], ...] = (
    ("resnet18", "ResNet-18", "resnet18", (2, 2, 2, 2), {"block": "BasicBlock"}),
    ("resnet34", "ResNet-34", "resnet34", (3, 4, 6, 3), {"block": "BasicBlock"}),
    ("resnet50", "ResNet-50", "resnet50", (3, 4, 6, 3), {}),
    ("resnet101", "ResNet-101", "resnet101", (3, 4, 23, 3), {}),
    ("resnet101_deep", "ResNet-101 with three stem convolutions", None, (3, 4, 23, 3), _DEEP),
    ("resnet152", "ResNet-152", "resnet152", (3, 8, 36, 3), {}),
    ("resnext50", "ResNeXt-50 32x4d", "resnext50_32x4d", (3, 4, 6, 3), {"groups": 32, "base_width": 4}),
    ("resnext101", "ResNeXt-101 32x8d", "resnext101_32x8d", (3, 4, 23, 3), {"groups": 32, "base_width": 8}),
    ("wide_resnet50", "Wide ResNet-50-2", "wide_resnet50_2", (3, 4, 6, 3), {"base_width": 128}),
    ("wide_resnet101", "Wide ResNet-101-2", "wide_resnet101_2", (3, 4, 23, 3), {"base_width": 128}),
)


def _numbered(name: str, start: int, stop: int) -> tuple[str, ...]:
    return tuple(f"{name}.{index}" for index in range(start, stop))


def _sequential(name: str, *bounds: int) -> dict[str, Any]:
    """Cut one list of layers into stem and stages; `bounds` are the first layer of each, and the end."""
    parts = {part: _numbered(name, *ends) for part, *ends in zip(PARTS, bounds, bounds[1:], strict=False)}
    # The last stage is a 1x1 convolution: the original names a site there, but never runs it.
    return {"parts": parts, "positions": {2: "stem", 3: "stage1", 4: "stage2", 5: "stage3"}}


_MOBILENET = _sequential("features", 0, 2, 7, 11, 18, 19)
_MNASNET = _sequential("layers", 0, 8, 10, 11, 14, 17)  # the published one never ran: cut where MobileNetV2 strides
_SHUFFLENET = {
    "parts": {
        "stem": ("conv1.0", "conv1.1", "conv1.2", "maxpool"),
        **{f"stage{i}": _numbered(f"stage{i + 1}", 0, count) for i, count in ((1, 4), (2, 8), (3, 4))},
        "stage4": ("conv5.0", "conv5.1", "conv5.2"),
    },
    "positions": {2: "stem", **_STAGES},
    "replaced": {"stem": "conv1.1", "stage4": "conv5.1"},
}
# name, title, torchvision's name, channels of stem and stages, the rest
_SMALL: tuple[tuple[str, str, str, tuple[int, int, int, int, int], dict[str, Any]], ...] = (
    ("mobilenet_v2", "MobileNetV2 1.0", "mobilenet_v2", (16, 32, 64, 320, 1280), _MOBILENET),
    ("shufflenet_v2", "ShuffleNetV2 1.0", "shufflenet_v2_x1_0", (24, 116, 232, 464, 1024), _SHUFFLENET),
    ("mnasnet_05", "MNASNet 0.5", "mnasnet0_5", (8, 24, 40, 160, 1280), _MNASNET),
    ("mnasnet_10", "MNASNet 1.0", "mnasnet1_0", (16, 40, 80, 320, 1280), _MNASNET),
)
BACKBONES: dict[str, BackboneSpec] = {
    **{n: ResNetSpec(name=n, title=t, model=m, blocks=b, **rest) for n, t, m, b, rest in _RESNETS},
    **{n: SmallSpec(name=n, title=t, model=m, channels=c, **rest) for n, t, m, c, rest in _SMALL},
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
