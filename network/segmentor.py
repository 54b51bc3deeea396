"""What every segmentation network shares: a backbone, a method, batch norms that can be frozen."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from network.backbone import Backbone
from network.methods import Method
from network.outputs import SegmentorOutput


class Segmentor(nn.Module, abc.ABC):
    """A backbone with a head: `forward` for training, `predict` for scoring, `style_features` for the statistics."""

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
        """Map normalised images (B, 3, H, W) to the logits that are scored, (B, classes, H, W)."""

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
        return tuple(site for site, kind in self.backbone.sites.items() if kind == "whiten")

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
        spec, sites = self.backbone.spec, self.backbone.sites
        where = ", ".join(f"{site}={kind}" for site, kind in sites.items()) or "none"
        millions = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        frozen = ", batch-norm statistics frozen" if self.freeze_bn else ""
        stride = f"output stride {self.backbone.output_stride}"
        return (
            f"{spec.title}, {stride}, method {self.method}, style sites: {where}, {millions:.2f} M parameters{frozen}"
        )
