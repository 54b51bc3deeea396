"""MobileNetV2 and MNASNet: networks that torchvision keeps as one list of layers, cut into a stem and four stages.

Their skip starts at 1/8. At a smaller output stride only the strided convolutions are dilated.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Mapping

from torch import nn

from network.backbone import Backbone, BackboneSpec, BlockStage

PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")
DILATIONS: Mapping[int, Mapping[int, int]] = {32: {}, 16: {3: 2}, 8: {2: 2, 3: 4}}  # ShuffleNetV2's too


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequentialSpec(BackboneSpec):
    """One member of the family."""

    model: str  # function of torchvision.models
    layers: str  # name of its list of layers
    starts: tuple[int, int, int, int, int]  # first layer of stem and stages
    channels: tuple[int, int, int, int, int]  # of stem and stages
    low_stride: int = 8
    # The last stage is a 1x1 convolution: the original names a site there, but never runs it.
    positions: Mapping[int, str] = dataclasses.field(
        default_factory=lambda: {2: "stem", 3: "stage1", 4: "stage2", 5: "stage3"}
    )
    dilations: Mapping[int, Mapping[int, int]] = dataclasses.field(default_factory=lambda: DILATIONS)


MOBILENET_V2 = SequentialSpec(
    name="mobilenet_v2",
    title="MobileNetV2 1.0",
    weights="MobileNet_V2_Weights",
    model="mobilenet_v2",
    layers="features",
    starts=(0, 2, 7, 11, 18),
    channels=(16, 32, 64, 320, 1280),
)
MNASNET_05 = SequentialSpec(
    name="mnasnet_05",
    title="MNASNet 0.5",
    weights="MNASNet0_5_Weights",
    model="mnasnet0_5",
    layers="layers",
    starts=(0, 8, 10, 11, 14),  # the published network never ran: cut at the strides of MobileNetV2's
    channels=(8, 24, 40, 160, 1280),
)
MNASNET_10 = dataclasses.replace(
    MNASNET_05,
    name="mnasnet_10",
    title="MNASNet 1.0",
    weights="MNASNet1_0_Weights",
    model="mnasnet1_0",
    channels=(16, 40, 80, 320, 1280),
)


class SequentialBackbone(Backbone):
    """The backbone: `sites` says where style is normalised (site name -> kind, see network.style)."""

    spec: SequentialSpec

    def __init__(self, spec: SequentialSpec, *, sites: Mapping[str, str], output_stride: int = 16) -> None:
        import torchvision.models  # slow to import

        dilations = spec.dilations_at(output_stride)
        layers = list(getattr(getattr(torchvision.models, spec.model)(), spec.layers))
        ends = (*spec.starts[1:], len(layers))
        parts: list[nn.Module] = [
            BlockStage(
                layers[start:end], channels=channels, dilation=dilations.get(number, 1), kind=sites.get(PARTS[number])
            )
            for number, (start, end, channels) in enumerate(zip(spec.starts, ends, spec.channels, strict=True))
        ]
        super().__init__(
            spec, stem=parts[0], stages=parts[1:], channels=spec.channels[1:], sites=sites, output_stride=output_stride
        )

    def torchvision_name(self, name: str) -> str:
        """Return our name of an entry of torchvision's weights."""
        match = re.fullmatch(rf"{self.spec.layers}\.(\d+)\.(.+)", name)
        if match is None:
            return name
        index = int(match[1])
        part = bisect.bisect_right(self.spec.starts, index) - 1
        return f"{PARTS[part]}.blocks.{index - self.spec.starts[part]}.{match[2]}"
