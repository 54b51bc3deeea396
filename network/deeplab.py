"""What every segmentation network shares, and DeepLabV3+ with the ordinary head (RobustNet's network)."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from network.backbones import Backbone
from network.layers import AuxHead, SkipHead, initialise_head, resize
from network.methods import Method
from network.outputs import SegmentorOutput


class Segmentor(nn.Module, abc.ABC):
    """A backbone with a head: `forward` for training, `predict` for evaluation, `style_features` for the statistics."""

    attends = False  # whether the head aggregates by attention

    def __init__(self, backbone: Backbone, *, method: Method, freeze_bn: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.method = method
        self.freeze_bn = freeze_bn

    @abc.abstractmethod
    def forward(self, images: Tensor) -> SegmentorOutput:
        """Map normalised images (B, 3, H, W) to everything that the losses need."""

    @abc.abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to the logits that are evaluated, (B, classes, H, W)."""

    def style_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the captured standardised maps, running the backbone only as far as they need it."""
        return self.backbone.style_features(images)

    @property
    def style_channels(self) -> tuple[int, ...]:
        """Channels of each captured map."""
        return self.backbone.style_channels

    @property
    def style_names(self) -> tuple[str, ...]:
        """Site of each captured map."""
        return tuple(site for site, kind in self.backbone.kinds.items() if kind == "whiten")

    def train(self, mode: bool = True) -> Any:
        """Switch the mode; frozen batch norms keep using their running statistics."""
        super().train(mode)
        if mode and self.freeze_bn:
            for layer in self.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self

    def describe(self) -> str:
        """Return one line for the log: backbone, stride, method, head, style sites, parameters."""
        backbone = self.backbone
        sites = ", ".join(f"{site}={kind}" for site, kind in backbone.kinds.items()) or "none"
        millions = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        frozen = ", batch-norm statistics frozen" if self.freeze_bn else ""
        return (
            f"{backbone.spec.title}, output stride {backbone.output_stride}, method {self.method}, "
            f"style sites: {sites}, {millions:.2f} M parameters{frozen}"
        )


class PlainSegmentor(Segmentor):
    """Backbone, one decoder with a skip, an auxiliary head."""

    def __init__(self, backbone: Backbone, *, method: Method, num_classes: int, freeze_bn: bool = False) -> None:
        super().__init__(backbone, method=method, freeze_bn=freeze_bn)
        _, low, _, third, top = backbone.channels
        self.head = SkipHead(top, low_channels=low, output_stride=backbone.output_stride, num_classes=num_classes)
        self.aux = AuxHead(third, num_classes=num_classes)
        initialise_head(self.head)
        initialise_head(self.aux)

    def forward(self, images: Tensor) -> SegmentorOutput:
        features = self.backbone(images)
        fused = resize(self.head(features.top, features.low_level), images.shape[2:])
        return SegmentorOutput(fused=fused, aux=self.aux(features.aux), style=features.style)

    def predict(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        return resize(self.head(features.top, features.low_level), images.shape[2:])
