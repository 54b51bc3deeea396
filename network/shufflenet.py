"""ShuffleNetV2 of torchvision's blocks: the skip starts at 1/8, only strided convolutions are dilated."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from network.backbone import Backbone, BackboneSpec, BlockStage, Captured, at_site
from network.mobilenet import DILATIONS
from network.style import build_site

log = logging.getLogger(__name__)
CHANNELS = (24, 116, 232, 464, 1024)  # of stem and stages
SHUFFLENET_V2 = BackboneSpec(
    name="shufflenet_v2",
    title="ShuffleNetV2 1.0",
    weights="ShuffleNet_V2_X1_0_Weights",
    positions={2: "stem", 3: "stage1", 4: "stage2", 5: "stage3", 6: "stage4"},
    dilations=DILATIONS,
    low_stride=8,
)


class ConvStage(nn.Module):
    """A convolution, batch norm or in its place the style site, ReLU; then a 3x3 max pooling, if it is the stem."""

    def __init__(self, layers: nn.Sequential, *, pools: bool, kind: str | None) -> None:
        super().__init__()
        conv, norm, _ = layers
        assert isinstance(conv, nn.Conv2d)
        self.conv, self.pools = conv, pools
        self.norm = norm if kind is None else None
        self.site = build_site(conv.out_channels, kind=kind) if kind else None
        if kind:
            self.register_load_state_dict_pre_hook(_leave_out_norm)

    def forward(self, maps: Tensor) -> tuple[Tensor, Captured]:
        """Map (B, C, h, w) to the stage's output and the map captured at its site (none or one)."""
        maps = self.conv(maps)
        if self.norm is not None:
            maps = self.norm(maps)
        maps, captured = at_site(self.site, maps)
        maps = F.relu(maps, inplace=self.site is None)
        return F.max_pool2d(maps, 3, stride=2, padding=1) if self.pools else maps, captured


def _leave_out_norm(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Drop the batch norm that published weights hold beside a style site: the site bypasses it."""
    dead = [name for name in state if name.startswith(f"{prefix}norm.")]
    for name in dead:
        del state[name]
    if dead:
        log.info("weights: a style site bypasses the batch norm of %s; left out", ", ".join(dead))


class ShuffleNetV2(Backbone):
    """The backbone: `sites` says where style is normalised (site name -> kind, see network.style)."""

    def __init__(self, spec: BackboneSpec, *, sites: Mapping[str, str], output_stride: int = 16) -> None:
        from torchvision.models import shufflenet_v2_x1_0  # slow to import

        dilations, theirs = spec.dilations_at(output_stride), shufflenet_v2_x1_0()
        stages: list[nn.Module] = [
            BlockStage(
                layers, channels=CHANNELS[number], dilation=dilations.get(number, 1), kind=sites.get(f"stage{number}")
            )
            for number, layers in enumerate((theirs.stage2, theirs.stage3, theirs.stage4), 1)
        ]
        super().__init__(
            spec,
            stem=ConvStage(theirs.conv1, pools=True, kind=sites.get("stem")),
            stages=[*stages, ConvStage(theirs.conv5, pools=False, kind=sites.get("stage4"))],
            channels=CHANNELS[1:],
            sites=sites,
            output_stride=output_stride,
            replaced=[f"{part}.norm." for part in ("stem", "stage4") if part in sites],
        )

    def torchvision_name(self, name: str) -> str:
        """Return our name of an entry of torchvision's weights."""
        match = re.fullmatch(r"(conv1|conv5)\.([01])\.(\w+)", name)
        if match:
            return f"{'stem' if match[1] == 'conv1' else 'stage4'}.{('conv', 'norm')[int(match[2])]}.{match[3]}"
        match = re.fullmatch(r"stage([234])\.(\d+\..+)", name)
        return f"stage{int(match[1]) - 1}.blocks.{match[2]}" if match else name
