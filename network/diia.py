"""DIIA: edge reconstruction (ERM), semantic layout reconstruction (SLRM), triple information aggregation (TIAM).

Liao et al., Domain-invariant information aggregation for domain generalization semantic segmentation,
Neurocomputing 2023.
B batch, H x W input size, h x w = H/s x W/s at output stride s, h1 x w1 the first stage's size.

What is left where a method leaves a part out (`Method.parts`); every other module, loss and weight stays:

* edge: no edge branch and none of its losses; the layout features are query and key of the aggregation.
* layout: no layout branch, no coarse layout and no loss of it; the edge features are query and key.
* aggregation: both branches train by their own losses, but the attention is gone (as if its gate stayed at zero): the
  final classifier reads the backbone's features through `aggregate.up` alone, and `predict` skips both branches.
* all four: the coarse head alone, its logits as the output `fused`. The auxiliary head and the whitening stay.

What `Method.corrections` change (diia-v2):

* edge: the mean of the edge maps is the logit of an edge; `edge` is 255 times its probability.
* confidence: the coarse layout is confident by probabilities, not by raw logits.
* encoding: the layout enters as one plane per class, zero where it is void, not as a picture of class numbers.
* attention: scores are divided by the root of the width, its convolutions start as PyTorch's and the gate at one.
* losses: the coarse and the auxiliary classifier train with the weights of the plain network's (loss.criterion).
* content: the final decoder reads the backbone's features whole, to which the attention adds, at first nothing, instead
  of a projection to 128 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbone_base import BackboneBase
from network.deeplab import AuxHead, Decoder, Refined, Segmentor, conv_norm_relu, initialise_heads, split_stride
from network.layout import Confidence, coarse_layout
from network.outputs import COARSE_SHARE, Features, SegmentorOutput, SmallLogits, upsample_logits


def is_cast_to_float16(maps: Tensor) -> bool:
    """Return whether autocast computes in float16 here, in which unscaled scores and layouts of 0..255 overflow."""
    device = maps.device.type
    half = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    return half and torch.get_autocast_dtype(device) == torch.float16


def no_float16(maps: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off where it would compute in float16."""
    return torch.autocast(maps.device.type, enabled=False) if is_cast_to_float16(maps) else nullcontext()


class LayoutBranch(Refined):
    """SLRM: the coarse layout as a picture -> features -> logits that must reproduce the layout."""

    def __init__(self, *, output_stride: int, num_classes: int, planes: bool = False) -> None:
        super().__init__()
        self.num_classes, self.planes = num_classes, planes
        strides, poolings = split_stride(output_stride, layers=4)
        self.encoder = nn.Sequential(
            conv_norm_relu(num_classes if planes else 1, 64, kernel=3, stride=strides[0]),
            nn.MaxPool2d(3, stride=strides[1], padding=1),
            conv_norm_relu(64, 128, kernel=3, stride=strides[2], bias=True),
            nn.Conv2d(128, 256, 3, stride=strides[3], padding=1),
            *poolings,
        )
        self._add_classifier(num_classes)

    def encode(self, layout: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Map a layout (B, H, W) to features (B, 256, h, w)."""
        picture = layout.unsqueeze(1)  # Parity: class numbers go in as they are, 255 included.
        if self.planes:
            picture = picture == torch.arange(self.num_classes, device=layout.device)[:, None, None]
        with no_float16(layout):
            return self.encoder(picture.to(dtype))

    def decode(self, features: Tensor) -> Tensor:
        with no_float16(features):
            return super().decode(features)


class EdgeBranch(Refined):
    """ERM: low-level features -> edge maps; their mean must reproduce the Sobel target, their decoding the labels."""

    def __init__(self, low_channels: int, *, stride: int, num_classes: int) -> None:
        super().__init__()
        strides, poolings = split_stride(stride, layers=2)  # from the first stage to the last
        self.encoder = nn.Sequential(conv_norm_relu(low_channels, 128, bias=True), nn.Conv2d(128, 64, 3, padding=1))
        self.decoder = nn.Sequential(
            conv_norm_relu(64, 256, kernel=3, stride=strides[0], bias=True),
            nn.Conv2d(256, 256, 3, stride=strides[1], padding=1),
            *poolings,
        )
        self._add_classifier(num_classes)

    def encode(self, low_level: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C1, h1, w1) to edge maps (B, 64, h1, w1) and features (B, 256, h, w)."""
        maps = self.encoder(low_level)
        return maps, self.decoder(maps)


class TripleAggregation(nn.Module):
    """TIAM: attention whose query is made of layout features, its key of edge features, its value of the backbone's.

    Where one of the two is missing the other is both; without attention only the backbone's projection is left.
    """

    def __init__(
        self,
        top_channels: int,
        *,
        feature_channels: int = 256,
        attends: bool = True,
        scaled: bool = False,
        whole: bool = False,
    ) -> None:
        super().__init__()
        width, self.attends = 128, attends
        self.out_channels, self.scale = top_channels if whole else width, width**-0.5 if scaled else 1.0
        if attends:
            self.query = nn.Conv2d(feature_channels, width, 1)
            self.key = nn.Conv2d(feature_channels, width, 1)
            self.value = nn.Conv2d(top_channels, width, 1)
            self.gamma = nn.Parameter(torch.full((1,), float(scaled)))
        self.back: Any = nn.Conv2d(width, top_channels, 1, bias=False) if whole else None
        self.up: Any = None if whole else nn.Conv2d(top_channels, width, 1)
        for conv in self.children():
            assert isinstance(conv, nn.Conv2d)
            if not scaled or conv is self.up:
                nn.init.normal_(conv.weight, std=0.01)  # biases keep PyTorch's default, as in the original
        if scaled and self.back is not None:
            nn.init.zeros_(self.back.weight)  # where the gate is at zero, this would stay there

    def forward(self, top: Tensor, layout_features: Tensor | None, edge_features: Tensor | None) -> Tensor:
        """Map (B, C, h, w) and (B, 256, h, w), one or two of them, to (B, 128, h, w), or (B, C, h, w) with `whole`."""
        content = top if self.up is None else self.up(top)
        if not self.attends:
            return content
        if is_cast_to_float16(top):
            top = top.float()
            layout_features = None if layout_features is None else layout_features.float()
            edge_features = None if edge_features is None else edge_features.float()
        with no_float16(top):
            triple = (*self._query_and_key(layout_features, edge_features), self.value(top))
            # (B, 1, hw, 128): the fused kernels, without the (hw, hw) matrix, need it so
            query, key, value = (maps.flatten(2).mT.contiguous().unsqueeze(1) for maps in triple)
            mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        mixed = mixed.squeeze(1).transpose(1, 2).unflatten(2, top.shape[2:])  # (B, 128, h, w)
        return self.gamma * (mixed if self.back is None else self.back(mixed)) + content

    def attention_of(self, cells: Tensor, layout_features: Tensor | None, edge_features: Tensor | None) -> Tensor:
        """Return how cells, (N,) int64 in the flattened map, weigh all others: (B, N, h, w) float32 that sum to one.

        The other rows are never computed. The features are (B, 256, h, w), one or two of them.
        """
        query, key = self._query_and_key(layout_features, edge_features)
        with torch.autocast(key.device.type, enabled=False):
            scores = query.flatten(2)[..., cells].float().mT @ key.flatten(2).float()  # (B, N, hw)
        return (self.scale * scores).softmax(2).unflatten(2, key.shape[2:])

    def _query_and_key(self, layout_features: Tensor | None, edge_features: Tensor | None) -> tuple[Tensor, Tensor]:
        query = edge_features if layout_features is None else layout_features
        key = layout_features if edge_features is None else edge_features
        assert query is not None and key is not None, "the attention needs a branch"
        return self.query(query), self.key(key)  # (B, 128, h, w) each


class _Pass(NamedTuple):
    """What one pass computes before the last upsampling, None where a part is left out."""

    coarse: SmallLogits
    upsampled: Tensor | None  # the coarse logits (B, classes, H, W), None where they are upsampled in parts
    fused: Tensor | None  # small final logits
    layout: Tensor | None  # (B, H, W)
    layout_features: Tensor | None  # (B, 256, h, w)
    edge_features: Tensor | None  # (B, 256, h, w)
    edge_maps: Tensor | None  # (B, 64, h1, w1)

    def logits(self) -> tuple[Tensor, Tensor | None]:
        """Return the final logits (B, classes, H, W) and, where they are others, the coarse ones."""
        assert self.upsampled is not None
        if self.fused is None:
            return self.upsampled, None
        return upsample_logits(self.fused, self.coarse.size), self.upsampled


class DIIASegmentor(Segmentor):
    """Coarse and auxiliary head, and what `method.parts` names: both branches, their aggregation, final decoder."""

    def __init__(
        self, backbone: BackboneBase, *, num_classes: int, layout_confidence: Confidence, **shared: Any
    ) -> None:
        super().__init__(backbone, **shared)
        _, low, _, third, top = backbone.channels
        parts = self.method.parts
        self.attends = "aggregation" in parts
        corrected = self.method.corrections
        self.layout_confidence: Confidence = "softmax" if "confidence" in corrected else layout_confidence
        stride, shape = backbone.output_stride, {"output_stride": backbone.output_stride, "num_classes": num_classes}
        shrinks = stride // backbone.low_stride
        self.coarse = Decoder(top, **shape)
        self.layout = LayoutBranch(**shape, planes="encoding" in corrected) if "layout" in parts else None
        self.edge = EdgeBranch(low, stride=shrinks, num_classes=num_classes) if "edge" in parts else None
        self.aggregate = (
            TripleAggregation(top, attends=self.attends, scaled="attention" in corrected, whole="content" in corrected)
            if "fused" in parts
            else None
        )
        self.fused = None if self.aggregate is None else Decoder(self.aggregate.out_channels, low_channels=low, **shape)
        self.aux = AuxHead(third, num_classes=num_classes)
        initialise_heads(self.coarse, self.layout, self.edge, self.fused, self.aux)

    def _run(self, features: Features, images: Tensor, *, branches: bool = True, in_parts: bool = False) -> _Pass:
        (height, width), top = images.shape[2:], features.top
        coarse = SmallLogits((self.coarse(top),), (height, width))
        upsampled = None if in_parts else coarse.whole()
        fused = layout = layout_features = edge_maps = edge_features = None
        if branches and self.edge is not None:
            edge_maps, edge_features = self.edge.encode(features.low_level)
        skip = None if self.fused is None else self.fused.skip(features.low_level)
        del features  # memory, where the caller has no use for it
        if branches and self.layout is not None:
            layout = coarse_layout(coarse if upsampled is None else upsampled, confidence=self.layout_confidence)
            layout_features = self.layout.encode(layout, dtype=images.dtype)
        if self.aggregate is not None and self.fused is not None:
            fused = self.fused(self.aggregate(top, layout_features, edge_features), skip)
        return _Pass(coarse, upsampled, fused, layout, layout_features, edge_features, edge_maps)

    def forward(self, images: Tensor) -> SegmentorOutput:
        features, size, layout_logits, edge, edge_logits = self.backbone(images), images.shape[2:], None, None, None
        done = self._run(features, images)
        if self.layout is not None and done.layout_features is not None:
            layout_logits = upsample_logits(self.layout.decode(done.layout_features), size)
        if self.edge is not None and done.edge_maps is not None and done.edge_features is not None:
            edge = done.edge_maps.mean(1, keepdim=True)
            edge = upsample_logits(255 * edge.float().sigmoid() if "edge" in self.method.corrections else edge, size)
            edge_logits = upsample_logits(self.edge.decode(done.edge_features), size)
        (fused, coarse), aux, style = done.logits(), self.aux(features.aux), features.style
        return SegmentorOutput(fused, aux, coarse, done.layout, layout_logits, edge, edge_logits, style)

    def small_logits(self, images: Tensor) -> SmallLogits:
        done = self._run(self.backbone(images), images, branches=self.attends, in_parts=True)
        if done.fused is None:
            return done.coarse
        return SmallLogits((done.fused, *done.coarse.maps), done.coarse.size, factors=(1.0, COARSE_SHARE))

    def predict(self, images: Tensor) -> Tensor:
        # a layout from parts might differ in a pixel
        done = self._run(self.backbone(images), images, branches=self.attends)
        fused, coarse = done.logits()
        return SegmentorOutput(fused, coarse=coarse).evaluated()

    def attention_of(self, images: Tensor, pixels: Sequence[tuple[int, int]]) -> Tensor:
        """Return how the cells at N pixels (x, y) of normalised images (B, 3, H, W) weigh all cells in the aggregation.

        Returns:
            (B, N, h, w) float32, each map sums to one; the corners of map and image coincide.
        """
        assert self.aggregate is not None and self.attends, "this method has no attention"
        features = self.backbone(images)
        done, (height, width), (rows, columns) = self._run(features, images), images.shape[2:], features.top.shape[2:]
        cells = [
            round(y * (rows - 1) / max(height - 1, 1)) * columns + round(x * (columns - 1) / max(width - 1, 1))
            for x, y in pixels
        ]
        places = torch.tensor(cells, device=images.device)
        return self.aggregate.attention_of(places, done.layout_features, done.edge_features)
