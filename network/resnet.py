"""ResNet with style sites and an output stride (torchvision's bottlenecks: the stride sits on the 3x3 convolution)."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from network.outputs import Features
from network.style import StyleSite
from utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """One member of the family, as plain data."""

    name: str
    title: str
    stem: tuple[tuple[int, int, int], ...]  # (kernel, out channels, stride) of each stem convolution
    blocks: tuple[int, int, int, int]
    positions: Mapping[int, str]  # position of a --wt_layer code -> site name


_STAGE_POSITIONS = {3: "stage1", 4: "stage2", 5: "stage3", 6: "stage4"}
_DEEP_STEM = ((3, 64, 2), (3, 64, 1), (3, 128, 1))
RESNET50 = ResNetSpec("resnet50", "ResNet-50", ((7, 64, 2),), (3, 4, 6, 3), {2: "stem1", **_STAGE_POSITIONS})
RESNET101 = ResNetSpec(
    "resnet101", "ResNet-101", _DEEP_STEM, (3, 4, 23, 3), {0: "stem1", 1: "stem2", 2: "stem3", **_STAGE_POSITIONS}
)

# output stride -> {stage: dilation}: in these stages the 3x3 convolutions are dilated instead of strided
DILATIONS: dict[int, dict[int, int]] = {16: {4: 2}}
WIDTHS = (64, 128, 256, 512)
STRIDES = (1, 2, 2, 2)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norm, plus the shortcut; the ReLU after the sum belongs to the stage."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, 4 * width, h / stride, w / stride), before the ReLU."""
        out = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        out = F.relu(self.norm2(self.conv2(out)), inplace=True)
        return self.norm3(self.conv3(out)) + self.shortcut(maps)


class Stage(nn.Module):
    """Bottlenecks in a row; the last one has the style site, between its sum and its ReLU."""

    def __init__(
        self, in_channels: int, width: int, *, num_blocks: int, stride: int, dilation: int, kind: str | None
    ) -> None:
        super().__init__()
        self.out_channels = width * Bottleneck.expansion
        first = Bottleneck(in_channels, width, stride=stride, dilation=dilation)
        rest = [Bottleneck(self.out_channels, width, dilation=dilation) for _ in range(num_blocks - 1)]
        self.blocks = nn.ModuleList([first, *rest])
        self.site = StyleSite(self.out_channels, kind=kind) if kind else None

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map (B, C, h, w) to the stage's output and the map captured at its site (none or one)."""
        for block in self.blocks[:-1]:
            maps = F.relu(block(maps), inplace=True)
        maps = self.blocks[-1](maps)
        if self.site is None:
            return F.relu(maps, inplace=True), ()
        maps = self.site(maps)
        return F.relu(maps), (maps,) if self.site.captured else ()


class Stem(nn.Module):
    """Convolutions with norm and ReLU, then a 3x3 max pooling; a style site takes the place of its batch norm."""

    def __init__(self, convs: tuple[tuple[int, int, int], ...], *, kinds: Mapping[int, str]) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        channels = 3
        for i, (kernel, width, stride) in enumerate(convs):
            self.convs.append(nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False))
            self.norms.append(StyleSite(width, kind=kinds[i]) if i in kinds else nn.BatchNorm2d(width))
            channels = width
        self.out_channels = channels

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map (B, 3, H, W) to (B, out_channels, H/4, W/4) and the captured maps at H/2."""
        maps, captured = images, []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps = norm(conv(maps))
            keep = isinstance(norm, StyleSite) and norm.captured
            if keep:
                captured.append(maps)
            maps = F.relu(maps, inplace=not keep)
        return F.max_pool2d(maps, 3, stride=2, padding=1), tuple(captured)


class ResNet(nn.Module):
    """The backbone: `sites` says where style is normalised (site name -> kind, see network.style)."""

    def __init__(self, spec: ResNetSpec, *, sites: Mapping[str, str], output_stride: int = 16) -> None:
        super().__init__()
        if output_stride not in DILATIONS:
            raise UserError(f"output stride {output_stride}: {spec.title} exists at {', '.join(map(str, DILATIONS))}")
        known = set(spec.positions.values())
        assert set(sites) <= known, f"unknown style sites {set(sites) - known}"
        self.spec, self.output_stride, self.sites = spec, output_stride, dict(sites)
        kinds = {i: sites[f"stem{i + 1}"] for i in range(len(spec.stem)) if f"stem{i + 1}" in sites}
        self.stem = Stem(spec.stem, kinds=kinds)
        channels, dilations = self.stem.out_channels, DILATIONS[output_stride]
        self.channels: list[int] = []  # of the four stages
        for number in (1, 2, 3, 4):
            stage = Stage(
                channels,
                WIDTHS[number - 1],
                num_blocks=spec.blocks[number - 1],
                stride=1 if number in dilations else STRIDES[number - 1],
                dilation=dilations.get(number, 1),
                kind=sites.get(f"stage{number}"),
            )
            self.add_module(f"stage{number}", stage)
            channels = stage.out_channels
            self.channels.append(channels)
        self.style_channels = tuple(m.num_features for m in self.modules() if isinstance(m, StyleSite) and m.captured)
        captured = [number for number, stage in enumerate(self.stages(), 1) if stage.site and stage.site.captured]
        self._last_captured = max(captured, default=0)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[Stage]:
        """Return the four stages in order."""
        return [self.get_submodule(f"stage{number}") for number in (1, 2, 3, 4)]  # type: ignore[misc]

    def _run(self, images: Tensor, *, num_stages: int) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        maps, style = self.stem(images)
        outputs: list[Tensor] = []
        for stage in self.stages()[:num_stages]:
            maps, captured = stage(maps)
            outputs.append(maps)
            style += captured
        return outputs, style

    def forward(self, images: Tensor) -> Features:
        """Map images (B, 3, H, W) to the outputs of stages 1, 3 and 4 and the captured maps."""
        outputs, style = self._run(images, num_stages=4)
        return Features(low_level=outputs[0], aux=outputs[2], top=outputs[3], style=style)

    def style_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the captured maps alone, running no stage behind the last of them."""
        return self._run(images, num_stages=self._last_captured)[1]
