"""The published backbones: torchvision's layers under its names, as a stem and four stages with style sites."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from network.backbone_base import PARTS, STAGES, BackboneBase
from network.style import CAPTURED, MIXED, MixStyle, build_site, captured
from utils.errors import UserError

Parts = dict[str, tuple[str, ...]]  # stem, stage1 .. stage4 -> the layers that it runs, by name and in order
Dilations = Mapping[int, Mapping[int, int]]  # output stride -> {stage that is dilated instead of strided: dilation}
_STAGES = dict(enumerate(PARTS[1:], 3))


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
    dilations: ClassVar[Dilations]
    low_stride: ClassVar[int]  # of the first stage, where the skip starts

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
    stem: tuple[tuple[int, int, int], ...] = ((7, 64, 2),)  # (kernel, out channels, stride) of each convolution
    positions: Mapping[int, str] = _default({2: "stem1", **_STAGES})
    replaced: Mapping[str, str] = _default({"stem1": "bn1", "stem2": "bn2", "stem3": "bn3"})
    dilations: ClassVar[Dilations] = {32: {}, 16: {4: 2}, 8: {3: 2, 4: 4}, 4: {2: 2, 3: 4, 4: 8}}
    low_stride = 4

    def build(self) -> tuple[dict[str, nn.Module], Parts, tuple[int, ...]]:
        from torchvision.models import resnet  # slow to import

        layers: dict[str, nn.Module] = {}
        stem: list[str] = []
        block, before = getattr(resnet, self.block), 3
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
            parts[f"stage{i}"], before = _numbered(f"layer{i}", 0, count), after
            channels.append(after)
        return layers, parts, tuple(channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallSpec(BackboneSpec):
    """A small network that torchvision builds as a whole."""

    model: str
    parts: Parts
    channels: tuple[int, int, int, int, int]  # of stem and stages
    dilations: ClassVar[Dilations] = {32: {}, 16: {3: 2}, 8: {2: 2, 3: 4}}
    low_stride = 8

    def build(self) -> tuple[dict[str, nn.Module], Parts, tuple[int, ...]]:
        from torchvision.models import get_model  # slow to import

        model = get_model(self.model)
        names = dict.fromkeys(name.partition(".")[0] for part in self.parts.values() for name in part)
        return {name: getattr(model, name) for name in names}, dict(self.parts), self.channels


def _numbered(name: str, start: int, stop: int) -> tuple[str, ...]:
    return tuple(f"{name}.{index}" for index in range(start, stop))


class Backbone(BackboneBase):
    """A published backbone; `sites` is site name -> kind (network.style)."""

    spec: BackboneSpec

    def __init__(self, spec: BackboneSpec, *, sites: Mapping[str, str], output_stride: int = 16) -> None:
        super().__init__()
        unknown = set(sites) - set(spec.positions.values())
        assert not unknown, f"unknown style sites {unknown}"
        self.spec, self.output_stride, self.low_stride, self.kinds = spec, output_stride, spec.low_stride, dict(sites)
        layers, self.parts, self.channels = spec.build()
        self.blocks = dict(self.parts)  # without the sites
        self.replaced: dict[str, str] = {}  # batch norm -> site that has taken its place
        for name, layer in layers.items():
            self.add_module(name, layer)
        for number, dilation in spec.dilations_at(output_stride).items():
            stage = map(self.get_submodule, self.parts[f"stage{number}"])
            _dilate(stage, dilation, whole=isinstance(spec, ResNetSpec))
        self.sites, self.mix_style = nn.ModuleDict(), MixStyle()
        self.relu_after_site = nn.ReLU()  # not in place: the whitening loss reads what the site returned
        self.before_relu: set[str] = set()  # ResNet blocks whose last ReLU comes behind a site
        channels = {site: self._place(site, kind=kind) for site, kind in sites.items()}
        self.style_names = tuple(site for site, kind in sites.items() if kind in CAPTURED)  # of the captured maps
        self.style_channels = tuple(channels[site] for site in self.style_names)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def _place(self, site: str, *, kind: str) -> int:
        """Put a site where a batch norm was, before the ReLU of a ResNet's last sum, or behind a stage; its width."""
        part = site if site in self.parts else "stem"
        layers, norm, name = self.parts[part], self.spec.replaced.get(site), f"sites.{site}"
        channels, at, added = self.channels[PARTS.index(part)], len(layers), [name, "relu_after_site"]
        if norm is not None:
            channels, at = self.get_submodule(norm).num_features, layers.index(norm)  # type: ignore[assignment]
            if kind == "beside":
                added.insert(0, norm)  # stays
            else:
                self.set_submodule(norm, nn.Identity())
                self.replaced[norm] = name
        elif isinstance(self.spec, ResNetSpec):
            self.before_relu.add(layers[-1])
        else:
            added = [name]
        self.parts[part] = (*layers[:at], *added, *layers[at + 2 :])
        self.sites[site] = build_site(channels, kind=kind)
        return channels

    def depth(self, name: str) -> int:
        """Return the number of a parameter's part: 0 the stem, 4 the last stage."""
        return next(i for i in range(5) if name.startswith(tuple(f"{layer}." for layer in self.blocks[PARTS[i]])))

    def outputs(self, images: Tensor, *, stages: Sequence[int] = STAGES) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        maps = images
        outputs: list[Tensor] = []  # torch.compile knows literals, not the call list[Tensor]()
        style: list[Tensor] = []
        for number, part in enumerate(PARTS[: 1 + max(stages)]):
            for name in self.parts[part]:
                layer = self.get_submodule(name)
                maps = residual_sum(layer, maps) if name in self.before_relu else self.run_layer(layer, maps)
                if name.removeprefix("sites.") in self.style_names:
                    style.append(captured(layer, maps))
            maps = self.mix_style(maps) if part in MIXED else maps
            if number in stages:
                outputs.append(maps)
        return outputs, tuple(style)


def residual_sum(block: Any, maps: Tensor) -> Tensor:
    """Return what a BasicBlock or Bottleneck of torchvision computes before its last ReLU."""
    out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(maps)), inplace=True)))
    if hasattr(block, "conv3"):
        out = block.bn3(block.conv3(F.relu(out, inplace=True)))
    out += maps if block.downsample is None else block.downsample(maps)
    return out


def _dilate(stage: Iterable[nn.Module], dilation: int, *, whole: bool) -> None:
    """Dilate instead of striding: the strided convolutions, or all of the stage; its padding keeps pace."""
    for conv in (conv for layer in stage for conv in layer.modules() if isinstance(conv, nn.Conv2d)):
        # Parity: a ResNet's first block is dilated like the others, of a small network the strided convolution alone.
        if max(conv.kernel_size) > 1 and (whole or conv.stride == (2, 2)):
            conv.dilation = (dilation, dilation)
            conv.padding = tuple(dilation * (size // 2) for size in conv.kernel_size)
        conv.stride = (1, 1)


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
