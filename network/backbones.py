"""Backbones: torchvision's layers under torchvision's names, run as a stem and four stages with style sites."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from network.outputs import Features
from network.style import StyleSite, build_site
from utils.errors import UserError

Captured = tuple[Tensor, ...]
Parts = dict[str, tuple[str, ...]]  # stem, stage1 .. stage4 -> the layers that it runs, by name and in order
PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")


def _default(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneSpec(abc.ABC):
    """One backbone."""

    name: str  # as --backbone takes it
    title: str
    model: str | None  # torchvision's name, None for the deep stem, which its ImageNet weights do not fit
    positions: Mapping[int, str]  # position of a --wt_layer code -> site name
    replaced: Mapping[str, str] = _default({})  # site -> batch norm whose place it takes
    dilations: Mapping[int, Mapping[int, int]]  # output stride -> {stage that is dilated instead of strided: dilation}
    low_stride: int  # stride of the first stage, where the skip starts

    @abc.abstractmethod
    def build(self) -> tuple[dict[str, nn.Module], Parts, tuple[int, ...]]:
        """Return torchvision's layers by name, what stem and stages run of them, and the channels of these five."""

    def dilations_at(self, output_stride: int) -> Mapping[int, int]:
        """Return the dilation of each stage that is dilated at an output stride, or raise `UserError`."""
        if output_stride not in self.dilations:
            known = ", ".join(map(str, sorted(self.dilations)))
            raise UserError(f"output stride {output_stride}: {self.title} exists at {known}; give --output_stride")
        return self.dilations[output_stride]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetSpec(BackboneSpec):
    """ResNet, ResNeXt or Wide ResNet, of torchvision's blocks: its whole networks would be initialised twice."""

    blocks: tuple[int, int, int, int]
    block: str = "Bottleneck"  # class of torchvision.models.resnet
    groups: int = 1  # of the 3x3 convolutions
    base_width: int = 64  # channels per group of the first stage
    low_stride: int = 4
    positions: Mapping[int, str] = _default({2: "stem1", 3: "stage1", 4: "stage2", 5: "stage3", 6: "stage4"})
    replaced: Mapping[str, str] = _default({"stem1": "bn1", "stem2": "bn2", "stem3": "bn3"})
    dilations: Mapping[int, Mapping[int, int]] = _default({32: {}, 16: {4: 2}, 8: {3: 2, 4: 4}, 4: {2: 2, 3: 4, 4: 8}})
    stem: tuple[tuple[int, int, int], ...] = ((7, 64, 2),)  # (kernel, out channels, stride) of each convolution

    def build(self) -> tuple[dict[str, nn.Module], Parts, tuple[int, ...]]:
        from torchvision.models import resnet  # slow to import

        layers: dict[str, nn.Module] = {}
        block, before, stem = getattr(resnet, self.block), 3, list[str]()
        for i, (kernel, width, stride) in enumerate(self.stem, 1):
            layers[f"conv{i}"] = nn.Conv2d(before, width, kernel, stride=stride, padding=kernel // 2, bias=False)
            layers[f"bn{i}"], before = nn.BatchNorm2d(width), width
            stem += [f"conv{i}", f"bn{i}", "relu"]
        layers |= {"relu": nn.ReLU(inplace=True), "maxpool": nn.MaxPool2d(3, stride=2, padding=1)}
        parts, channels = {"stem": (*stem, "maxpool")}, [before]
        shape = {"groups": self.groups, "base_width": self.base_width}
        for i, (count, width) in enumerate(zip(self.blocks, (64, 128, 256, 512), strict=True), 1):
            stride, after, shortcut = 1 if i == 1 else 2, width * block.expansion, None
            if before != after:
                conv = nn.Conv2d(before, after, 1, stride=stride, bias=False)
                shortcut = nn.Sequential(conv, nn.BatchNorm2d(after))
            first = block(before, width, stride, shortcut, **shape)
            layers[f"layer{i}"] = nn.Sequential(first, *(block(after, width, **shape) for _ in range(count - 1)))
            parts[f"stage{i}"], before = tuple(f"layer{i}.{index}" for index in range(count)), after
            channels.append(after)
        return layers, parts, tuple(channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallSpec(BackboneSpec):
    """A small network that torchvision builds as a whole."""

    model: str
    parts: Parts
    channels: tuple[int, int, int, int, int]  # of stem and stages
    low_stride: int = 8
    dilations: Mapping[int, Mapping[int, int]] = _default({32: {}, 16: {3: 2}, 8: {2: 2, 3: 4}})

    def build(self) -> tuple[dict[str, nn.Module], Parts, tuple[int, ...]]:
        from torchvision.models import get_model  # slow to import

        model = get_model(self.model)
        names = dict.fromkeys(name.partition(".")[0] for part in self.parts.values() for name in part)
        return {name: getattr(model, name) for name in names}, dict(self.parts), self.channels


class Backbone(nn.Module):
    """A stem and four stages.

    Args:
        spec: its row.
        sites: site name -> kind (network.style).
        output_stride: one that the row has.
    """

    def __init__(self, spec: BackboneSpec, *, sites: Mapping[str, str], output_stride: int = 16) -> None:
        super().__init__()
        known, dilations = set(spec.positions.values()), spec.dilations_at(output_stride)
        assert set(sites) <= known, f"unknown style sites {set(sites) - known}"
        self.spec, self.output_stride, self.kinds = spec, output_stride, dict(sites)
        layers, self.parts, self.channels = spec.build()
        self.blocks = dict(self.parts)  # without the sites
        self.replaced: dict[str, str] = {}  # batch norm -> site that has taken its place
        for name, layer in layers.items():
            self.add_module(name, layer)
        for number, dilation in dilations.items():
            stage = map(self.get_submodule, self.parts[f"stage{number}"])
            _dilate(stage, dilation, whole=isinstance(spec, ResNetSpec))
        self.sites = nn.ModuleDict()
        self.relu_after_site = nn.ReLU()  # not in place: the whitening loss reads what the site returned
        self.before_relu: set[str] = set()  # ResNet blocks whose last ReLU comes behind a site
        for site, kind in sites.items():
            self._place(site, kind=kind)
        captured = {
            name: [site for site in map(self.get_submodule, layers) if isinstance(site, StyleSite) and site.captured]
            for name, layers in self.parts.items()
        }
        self.style_channels = tuple(site.num_features for part in captured.values() for site in part)
        self._last_captured = max((number for number, part in enumerate(captured.values()) if part), default=0)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def _place(self, site: str, *, kind: str) -> None:
        """Put a site behind a stage, or in front of a ReLU: where a batch norm was, behind a ResNet's last sum."""
        part = site if site in self.parts else "stem"
        layers, norm, name = self.parts[part], self.spec.replaced.get(site), f"sites.{site}"
        channels = self.channels[PARTS.index(part)]
        if norm is not None:
            channels, at = self.get_submodule(norm).num_features, layers.index(norm)  # type: ignore[assignment]
            self.set_submodule(norm, nn.Identity())
            self.replaced[norm] = name
            self.parts[part] = (*layers[:at], name, "relu_after_site", *layers[at + 2 :])
        elif isinstance(self.spec, ResNetSpec):
            self.before_relu.add(layers[-1])
            self.parts[part] = (*layers, name, "relu_after_site")
        else:
            self.parts[part] = (*layers, name)
        self.sites[site] = build_site(channels, kind=kind)

    def outputs(self, images: Tensor, *, num_stages: int = 4) -> tuple[list[Tensor], Captured]:
        """Map images (B, 3, H, W) to the outputs of the first stages and the maps captured up to there."""
        maps = images
        outputs: list[Tensor] = []  # literals: torch 2.6 cannot compile the call list[Tensor]()
        style: Captured = ()
        for part in PARTS[: 1 + num_stages]:
            for name in self.parts[part]:
                layer = self.get_submodule(name)
                maps = residual_sum(layer, maps) if name in self.before_relu else layer(maps)
                if getattr(layer, "captured", False):
                    style += (maps,)
            outputs.append(maps)
        return outputs[1:], style

    def forward(self, images: Tensor) -> Features:
        """Map images (B, 3, H, W) to the outputs of stages 1, 3 and 4 and the captured maps."""
        (low_level, _, aux, top), style = self.outputs(images)
        return Features(low_level=low_level, aux=aux, top=top, style=style)

    def style_features(self, images: Tensor) -> Captured:
        """Return the captured maps alone, running no stage behind the last of them."""
        return self.outputs(images, num_stages=self._last_captured)[1]


def residual_sum(block: Any, maps: Tensor) -> Tensor:
    """Return what a BasicBlock or Bottleneck of torchvision computes before its last ReLU."""
    out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(maps)), inplace=True)))
    if hasattr(block, "conv3"):
        out = block.bn3(block.conv3(F.relu(out, inplace=True)))
    return out + (maps if block.downsample is None else block.downsample(maps))


def _dilate(stage: Iterable[nn.Module], dilation: int, *, whole: bool) -> None:
    """Dilate instead of striding: the strided convolutions, or all of the stage; its padding keeps pace."""
    for conv in (conv for layer in stage for conv in layer.modules() if isinstance(conv, nn.Conv2d)):
        # Parity: a ResNet's first block is dilated like the others, of a small network the strided convolution alone.
        if max(conv.kernel_size) > 1 and (whole or conv.stride == (2, 2)):
            conv.dilation = (dilation, dilation)
            conv.padding = tuple(dilation * (size // 2) for size in conv.kernel_size)
        conv.stride = (1, 1)
