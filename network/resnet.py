"""ResNet, ResNeXt and Wide ResNet with style sites and an output stride.

The blocks are torchvision's (a bottleneck's stride sits on its 3x3 convolution), but their last ReLU belongs to the
stage: a style site stands between the last block's sum and its ReLU.
"""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from network.backbone import Backbone, BackboneSpec, Captured, at_site
from network.legacy import convert_backbone_name
from network.style import build_site

WIDTHS = (64, 128, 256, 512)
STRIDES = (1, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus the shortcut; both are dilated, the stride sits on the first."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        assert (groups, base_width) == (1, 64), "groups and other widths belong to bottlenecks"
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, width, h / stride, w / stride), before the ReLU."""
        out = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        return self.norm2(self.conv2(out)) + self.shortcut(maps)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norm, plus the shortcut."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        out_channels, width = width * self.expansion, width * base_width // 64 * groups
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride=stride, padding=dilation, dilation=dilation, groups=groups, bias=False
        )
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, 4 * width, h / stride, w / stride), before the ReLU."""
        out = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        out = F.relu(self.norm2(self.conv2(out)), inplace=True)
        return self.norm3(self.conv3(out)) + self.shortcut(maps)


def _shortcut(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))


_STAGES = {3: "stage1", 4: "stage2", 5: "stage3", 6: "stage4"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetSpec(BackboneSpec):
    """One member of the family."""

    blocks: tuple[int, int, int, int]
    block: type[BasicBlock] | type[Bottleneck] = Bottleneck
    groups: int = 1  # of the 3x3 convolutions
    base_width: int = 64  # channels per group of the first stage
    stem: tuple[tuple[int, int, int], ...] = ((7, 64, 2),)  # (kernel, out channels, stride) of each convolution
    low_stride: int = 4
    positions: Mapping[int, str] = dataclasses.field(default_factory=lambda: {2: "stem1", **_STAGES})
    # Every 3x3 convolution of these stages is dilated, the first block's too.
    dilations: Mapping[int, Mapping[int, int]] = dataclasses.field(
        default_factory=lambda: {32: {}, 16: {4: 2}, 8: {3: 2, 4: 4}, 4: {2: 2, 3: 4, 4: 8}}
    )


_DEEP: dict[str, Any] = {
    "stem": ((3, 64, 2), (3, 64, 1), (3, 128, 1)),
    "positions": {0: "stem1", 1: "stem2", 2: "stem3", **_STAGES},
}
# name, title, torchvision's weights, blocks, what differs from a plain bottleneck network
_ROWS: tuple[tuple[str, str, str | None, tuple[int, int, int, int], dict[str, Any]], ...] = (
    ("resnet18", "ResNet-18", "ResNet18_Weights", (2, 2, 2, 2), {"block": BasicBlock}),
    ("resnet34", "ResNet-34", "ResNet34_Weights", (3, 4, 6, 3), {"block": BasicBlock}),
    ("resnet50", "ResNet-50", "ResNet50_Weights", (3, 4, 6, 3), {}),
    ("resnet101", "ResNet-101", "ResNet101_Weights", (3, 4, 23, 3), {}),
    ("resnet101_deep", "ResNet-101 with three stem convolutions", None, (3, 4, 23, 3), _DEEP),
    ("resnet152", "ResNet-152", "ResNet152_Weights", (3, 8, 36, 3), {}),
    ("resnext50", "ResNeXt-50 32x4d", "ResNeXt50_32X4D_Weights", (3, 4, 6, 3), {"groups": 32, "base_width": 4}),
    ("resnext101", "ResNeXt-101 32x8d", "ResNeXt101_32X8D_Weights", (3, 4, 23, 3), {"groups": 32, "base_width": 8}),
    ("wide_resnet50", "Wide ResNet-50-2", "Wide_ResNet50_2_Weights", (3, 4, 6, 3), {"base_width": 128}),
    ("wide_resnet101", "Wide ResNet-101-2", "Wide_ResNet101_2_Weights", (3, 4, 23, 3), {"base_width": 128}),
)
RESNETS: dict[str, ResNetSpec] = {
    name: ResNetSpec(name=name, title=title, weights=weights, blocks=blocks, **changes)
    for name, title, weights, blocks, changes in _ROWS
}
RESNET50, RESNET101 = RESNETS["resnet50"], RESNETS["resnet101_deep"]  # those of the published weights


class Stage(nn.Module):
    """Blocks in a row; the last one has the style site, between its sum and its ReLU."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        spec: ResNetSpec,
        num_blocks: int,
        stride: int,
        dilation: int,
        kind: str | None,
    ) -> None:
        super().__init__()
        self.out_channels = width * spec.block.expansion
        shared = {"dilation": dilation, "groups": spec.groups, "base_width": spec.base_width}
        first = spec.block(in_channels, width, stride=stride, **shared)
        rest = [spec.block(self.out_channels, width, **shared) for _ in range(num_blocks - 1)]
        self.blocks = nn.ModuleList([first, *rest])
        self.site = build_site(self.out_channels, kind=kind) if kind else None

    def forward(self, maps: Tensor) -> tuple[Tensor, Captured]:
        """Map (B, C, h, w) to the stage's output and the map captured at its site (none or one)."""
        for block in self.blocks[:-1]:
            maps = F.relu(block(maps), inplace=True)
        maps, captured = at_site(self.site, self.blocks[-1](maps))
        return F.relu(maps, inplace=self.site is None), captured


class Stem(nn.Module):
    """Convolutions with norm and ReLU, then a 3x3 max pooling; a style site takes the place of its batch norm."""

    def __init__(self, convs: tuple[tuple[int, int, int], ...], *, kinds: Mapping[int, str]) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        channels = 3
        for i, (kernel, width, stride) in enumerate(convs):
            self.convs.append(nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False))
            self.norms.append(build_site(width, kind=kinds[i]) if i in kinds else nn.BatchNorm2d(width))
            channels = width
        self.out_channels = channels

    def forward(self, images: Tensor) -> tuple[Tensor, Captured]:
        """Map (B, 3, H, W) to (B, out_channels, H/4, W/4) and the captured maps at H/2."""
        maps = images
        style: Captured = ()
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps, captured = at_site(norm, conv(maps))
            maps = F.relu(maps, inplace=len(captured) == 0)
            style += captured
        return F.max_pool2d(maps, 3, stride=2, padding=1), style


class ResNet(Backbone):
    """The backbone: `sites` says where style is normalised (site name -> kind, see network.style)."""

    spec: ResNetSpec

    def __init__(self, spec: ResNetSpec, *, sites: Mapping[str, str], output_stride: int = 16) -> None:
        dilations = spec.dilations_at(output_stride)
        kinds = {i: sites[f"stem{i + 1}"] for i in range(len(spec.stem)) if f"stem{i + 1}" in sites}
        stem = Stem(spec.stem, kinds=kinds)
        channels, stages = [stem.out_channels], []
        for number in (1, 2, 3, 4):
            stage = Stage(
                channels[-1],
                WIDTHS[number - 1],
                spec=spec,
                num_blocks=spec.blocks[number - 1],
                stride=1 if number in dilations else STRIDES[number - 1],
                dilation=dilations.get(number, 1),
                kind=sites.get(f"stage{number}"),
            )
            stages.append(stage)
            channels.append(stage.out_channels)
        super().__init__(
            spec,
            stem=stem,
            stages=stages,
            channels=channels[1:],
            sites=sites,
            output_stride=output_stride,
            replaced=[f"stem.norms.{i}." for i in kinds],
        )

    def torchvision_name(self, name: str) -> str:
        """Return our name of an entry of torchvision's weights, or MIT CSAIL's."""
        stem = re.fullmatch(r"(conv|bn)([123])\.(\w+)", name)
        if stem:
            return f"stem.{'convs' if stem[1] == 'conv' else 'norms'}.{int(stem[2]) - 1}.{stem[3]}"
        return convert_backbone_name(name) or name
