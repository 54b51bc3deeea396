"""What all backbones share: a row of plain data, and a stem with four stages that return what their sites captured."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from network.outputs import Features
from network.style import StyleSite, build_site
from utils.errors import UserError

Captured = tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """One backbone."""

    name: str  # as --backbone takes it
    title: str
    weights: str | None  # torchvision's class of ImageNet weights, None where none fit
    positions: Mapping[int, str]  # position of a --wt_layer code -> site name
    dilations: Mapping[int, Mapping[int, int]]  # output stride -> {stage that is dilated instead of strided: dilation}
    low_stride: int  # stride of the first stage, where the skip starts

    def dilations_at(self, output_stride: int) -> Mapping[int, int]:
        """Return the dilation of each stage that is dilated at an output stride, or raise `UserError`."""
        if output_stride not in self.dilations:
            known = ", ".join(map(str, sorted(self.dilations)))
            raise UserError(f"output stride {output_stride}: {self.title} exists at {known}; give --output_stride")
        return self.dilations[output_stride]


def at_site(site: Any, maps: Tensor) -> tuple[Tensor, Captured]:
    """Return what comes out of a style site (or None), and the same again where a whitening loss reads it."""
    maps = maps if site is None else site(maps)
    return maps, (maps,) if getattr(site, "captured", False) else ()


def dilate(layers: nn.Module, dilation: int) -> None:
    """Dilate every convolution of stride 2 instead of striding; no size changes, at any kernel size."""
    # Parity: the blocks behind the strided one keep a dilation of 1.
    for conv in layers.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
            conv.stride, conv.dilation = (1, 1), (dilation, dilation)
            conv.padding = tuple(dilation * (size // 2) for size in conv.kernel_size)


class BlockStage(nn.Module):
    """Layers of torchvision in a row, then the style site; no activation follows."""

    def __init__(self, layers: Iterable[nn.Module], *, channels: int, dilation: int, kind: str | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*layers)
        if dilation > 1:
            dilate(self.blocks, dilation)
        self.site = build_site(channels, kind=kind) if kind else None

    def forward(self, maps: Tensor) -> tuple[Tensor, Captured]:
        """Map (B, C, h, w) to the stage's output and the map captured at its site (none or one)."""
        return at_site(self.site, self.blocks(maps))


class Backbone(nn.Module, abc.ABC):
    """A stem and four stages.

    Args:
        spec: its row.
        stem: images -> (maps, captured maps), as each of the stages.
        stages: each has its style site, or None, as `site`.
        channels: of the four stages.
        sites: site name -> kind (network.style).
        output_stride: one that the row has.
        replaced: beginnings of the names of batch norms whose place a style site has taken.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        *,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        sites: Mapping[str, str],
        output_stride: int,
        replaced: Sequence[str] = (),
    ) -> None:
        super().__init__()
        known = set(spec.positions.values())
        assert set(sites) <= known, f"unknown style sites {set(sites) - known}"
        assert output_stride in spec.dilations and len(stages) == len(channels) == 4
        self.spec, self.output_stride = spec, output_stride
        self.sites, self.channels, self.replaced = dict(sites), list(channels), tuple(replaced)
        self.stem = stem
        for number, stage in enumerate(stages, 1):
            self.add_module(f"stage{number}", stage)
        self.style_channels = tuple(m.num_features for m in self.modules() if isinstance(m, StyleSite) and m.captured)
        captured = [number for number, stage in enumerate(stages, 1) if getattr(stage.site, "captured", False)]
        self._last_captured = max(captured, default=0)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    @abc.abstractmethod
    def torchvision_name(self, name: str) -> str:
        """Return our name of an entry of torchvision's weights; a name without a counterpart comes back as it is."""

    def stages(self) -> list[nn.Module]:
        """Return the four stages in order."""
        return [self.get_submodule(f"stage{number}") for number in (1, 2, 3, 4)]

    def _run(self, images: Tensor, *, num_stages: int) -> tuple[list[Tensor], Captured]:
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

    def style_features(self, images: Tensor) -> Captured:
        """Return the captured maps alone, running no stage behind the last of them."""
        return self._run(images, num_stages=self._last_captured)[1]
