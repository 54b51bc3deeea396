"""DIIA: edge reconstruction (ERM), semantic layout reconstruction (SLRM), triple information aggregation (TIAM).

Liao et al., Domain-invariant information aggregation for domain generalization semantic segmentation,
Neurocomputing 2023.
B batch, H x W input size, h x w = H/16 x W/16.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.layers import ASPP, AuxHead, SkipHead, conv_norm_relu, initialise_head, refinement, resize
from network.methods import Method
from network.outputs import Features, SegmentorOutput
from network.resnet import ResNet
from network.segmentor import Segmentor

IGNORE = 255
Confidence = Literal["logits", "softmax"]


def coarse_layout(logits: Tensor, *, confidence: Confidence = "logits") -> Tensor:
    """Label the pixels of which the network is confident; the others become 255. Nothing here waits for the device.

    A pixel is kept where its value reaches the upper median of the values of its class over the whole batch,
    capped at 0.99.

    Args:
        logits: (B, classes, H, W); no gradient flows.
        confidence: what a pixel's value is, its largest raw logit or its largest probability.

    Returns:
        (B, H, W) int64.
    """
    logits = logits.detach().float()
    num_classes = logits.shape[1]
    # Parity: the original compares raw logits with the cap of 0.99, not probabilities.
    values, labels = (logits.softmax(1) if confidence == "softmax" else logits).max(1)  # (B, H, W) each
    bits = values.contiguous().view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + 2**31  # 0 .. 2^32 - 1, in the order of the floats
    order = ((labels << 32) + ordered).flatten().sort()
    bounds = torch.arange(num_classes + 1, device=logits.device) << 32
    starts = torch.searchsorted(order.values, bounds)  # (classes + 1,) first position of each class
    counts = starts.diff()
    # Parity: Python's round takes halves to the even number, so three values give the last one.
    middle = (starts[:-1] + (counts / 2).round().long()).clamp(max=labels.numel() - 1)
    medians = values.flatten()[order.indices[middle]]
    thresholds = torch.where(counts > 0, medians, 0.0).clamp(max=0.99)  # (classes,)
    return torch.where(values < thresholds[labels], IGNORE, labels)


class CoarseHead(nn.Module):
    """ASPP and classifier without a skip: the prediction that the layout is read from."""

    def __init__(self, in_channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels)
        self.reduce = conv_norm_relu(self.aspp.out_channels, 256)
        self.refine = refinement(256)
        self.classify = nn.Conv2d(256, num_classes, 1)

    def forward(self, top: Tensor) -> Tensor:
        """Map (B, C, h, w) to logits (B, classes, h, w)."""
        return self.classify(self.refine(self.reduce(self.aspp(top))))


class LayoutBranch(nn.Module):
    """SLRM: the coarse layout as a picture -> features -> logits that must reproduce the layout."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv_norm_relu(1, 64, kernel=3, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
            conv_norm_relu(64, 128, kernel=3, stride=2, bias=True),
            nn.Conv2d(128, 256, 3, stride=2, padding=1),
        )
        self.refine = refinement(256)
        self.classify = nn.Conv2d(256, num_classes, 1)

    def encode(self, layout: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Map a layout (B, H, W) to features (B, 256, h, w)."""
        # Parity: class numbers go in as they are, 255 included.
        return self.encoder(layout.unsqueeze(1).to(dtype))

    def decode(self, features: Tensor) -> Tensor:
        """Map features (B, 256, h, w) to logits (B, classes, h, w)."""
        return self.classify(self.refine(features))


class EdgeBranch(nn.Module):
    """ERM: low-level features -> edge maps; their mean must reproduce the Sobel target, their decoding the labels."""

    def __init__(self, low_channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_norm_relu(low_channels, 128, bias=True), nn.Conv2d(128, 64, 3, padding=1))
        self.decoder = nn.Sequential(
            conv_norm_relu(64, 256, kernel=3, stride=2, bias=True), nn.Conv2d(256, 256, 3, stride=2, padding=1)
        )
        self.refine = refinement(256)
        self.classify = nn.Conv2d(256, num_classes, 1)

    def encode(self, low_level: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C1, H/4, W/4) to edge maps (B, 64, H/4, W/4) and features (B, 256, h, w)."""
        maps = self.encoder(low_level)
        return maps, self.decoder(maps)

    def decode(self, features: Tensor) -> Tensor:
        """Map features (B, 256, h, w) to logits (B, classes, h, w)."""
        return self.classify(self.refine(features))


class TripleAggregation(nn.Module):
    """TIAM: layout features ask, edge features answer, the backbone's features are aggregated."""

    out_channels = 128

    def __init__(self, top_channels: int, *, feature_channels: int = 256) -> None:
        super().__init__()
        self.query = nn.Conv2d(feature_channels, self.out_channels, 1)
        self.key = nn.Conv2d(feature_channels, self.out_channels, 1)
        self.value = nn.Conv2d(top_channels, self.out_channels, 1)
        self.up = nn.Conv2d(top_channels, self.out_channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        for conv in (self.query, self.key, self.value, self.up):
            nn.init.normal_(conv.weight, std=0.01)  # biases keep PyTorch's default, as in the original

    def forward(self, top: Tensor, layout_features: Tensor, edge_features: Tensor) -> Tensor:
        """Map (B, C, h, w) and twice (B, 256, h, w) to (B, 128, h, w)."""
        convs = ((self.query, layout_features), (self.key, edge_features), (self.value, top))
        query, key, value = (
            # contiguous: the fused kernels, which never hold the (hw, hw) matrix, ask for it
            conv(maps).flatten(2).mT.contiguous().unsqueeze(1)
            for conv, maps in convs
        )  # (B, 1, hw, 128)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # no division by the root of the width
        mixed = mixed.squeeze(1).transpose(1, 2).unflatten(2, top.shape[2:])  # (B, 128, h, w)
        return self.gamma * mixed + self.up(top)


class _Scored(NamedTuple):
    """What both `forward` and `predict` need."""

    features: Features
    coarse: Tensor  # (B, classes, H, W)
    layout: Tensor  # (B, H, W)
    layout_features: Tensor  # (B, 256, h, w)
    edge_maps: Tensor  # (B, 64, H/4, W/4)
    edge_features: Tensor  # (B, 256, h, w)
    fused: Tensor  # (B, classes, H, W)


class DIIASegmentor(Segmentor):
    """Backbone, coarse head, layout and edge branches, their aggregation, final head with a skip, auxiliary head."""

    def __init__(
        self,
        backbone: ResNet,
        *,
        method: Method,
        num_classes: int,
        freeze_bn: bool = False,
        layout_confidence: Confidence = "logits",
    ) -> None:
        super().__init__(backbone, method=method, freeze_bn=freeze_bn)
        low, _, third, top = backbone.channels
        self.layout_confidence: Confidence = layout_confidence
        self.coarse = CoarseHead(top, num_classes=num_classes)
        self.layout = LayoutBranch(num_classes=num_classes)
        self.edge = EdgeBranch(low, num_classes=num_classes)
        self.aggregate = TripleAggregation(top)
        self.fused = SkipHead(TripleAggregation.out_channels, low_channels=low, num_classes=num_classes)
        self.aux = AuxHead(third, num_classes=num_classes)
        for head in (self.coarse, self.layout, self.edge, self.fused, self.aux):
            initialise_head(head)

    def _score(self, images: Tensor) -> _Scored:
        size = images.shape[2:]
        features = self.backbone(images)
        coarse = resize(self.coarse(features.top), size)
        layout = coarse_layout(coarse, confidence=self.layout_confidence)
        layout_features = self.layout.encode(layout, dtype=images.dtype)
        edge_maps, edge_features = self.edge.encode(features.low_level)
        aggregated = self.aggregate(features.top, layout_features, edge_features)
        fused = resize(self.fused(aggregated, features.low_level), size)
        return _Scored(features, coarse, layout, layout_features, edge_maps, edge_features, fused)

    def forward(self, images: Tensor) -> SegmentorOutput:
        """Map normalised images (B, 3, H, W) to every output that a loss reads."""
        size = images.shape[2:]
        scored = self._score(images)
        return SegmentorOutput(
            fused=scored.fused,
            aux=self.aux(scored.features.aux),
            coarse=scored.coarse,
            layout=scored.layout,
            layout_logits=resize(self.layout.decode(scored.layout_features), size),
            edge=resize(scored.edge_maps.mean(1, keepdim=True), size),
            edge_logits=resize(self.edge.decode(scored.edge_features), size),
            style=scored.features.style,
        )

    def predict(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, classes, H, W), without the heads that only train."""
        scored = self._score(images)
        return 0.5 * scored.coarse + scored.fused
