"""DeepLabV3+ with the ordinary head (RobustNet's network)."""

from __future__ import annotations

from torch import Tensor

from network.backbone import Backbone
from network.layers import AuxHead, SkipHead, initialise_head, resize
from network.methods import Method
from network.outputs import SegmentorOutput
from network.segmentor import Segmentor


class PlainSegmentor(Segmentor):
    """Backbone, one decoder with a skip, an auxiliary head."""

    def __init__(self, backbone: Backbone, *, method: Method, num_classes: int, freeze_bn: bool = False) -> None:
        super().__init__(backbone, method=method, freeze_bn=freeze_bn)
        low, _, third, top = backbone.channels
        self.head = SkipHead(top, low_channels=low, output_stride=backbone.output_stride, num_classes=num_classes)
        self.aux = AuxHead(third, num_classes=num_classes)
        initialise_head(self.head)
        initialise_head(self.aux)

    def forward(self, images: Tensor) -> SegmentorOutput:
        """Map normalised images (B, 3, H, W) to `fused`, `aux` and the captured maps."""
        features = self.backbone(images)
        fused = resize(self.head(features.top, features.low_level), images.shape[2:])
        return SegmentorOutput(fused=fused, aux=self.aux(features.aux), style=features.style)

    def predict(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, classes, H, W)."""
        features = self.backbone(images)
        return resize(self.head(features.top, features.low_level), images.shape[2:])
