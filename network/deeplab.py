"""The blocks of every head, what every network shares, and DeepLabV3+ with the ordinary head (RobustNet's network).

B batch, C and O channels, h x w feature size, H x W input size.
"""

from __future__ import annotations

import abc
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from network.backbone_base import BackboneBase
from network.convolutions import DilatedConv2d, JoinedConv2d
from network.methods import Method
from network.outputs import SegmentorOutput, SmallLogits, upsample_logits
from utils import distributed


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = False,
    joined: bool = False,
) -> nn.Sequential:
    """Build a convolution that keeps the size at stride 1, batch norm, ReLU; children `conv`, `norm`, `relu`.

    With `joined` it reads a pair of maps, the second upsampled to the first's size.
    """
    padding = dilation * (kernel // 2)
    build = JoinedConv2d if joined else nn.Conv2d if dilation == 1 else DilatedConv2d
    conv = build(in_channels, out_channels, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias)
    norm = nn.BatchNorm2d(out_channels)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(inplace=True)))


def split_stride(stride: int, *, layers: int) -> tuple[list[int], list[nn.Module]]:
    """Spread a stride (a power of two) over layers, the first ones first; return theirs and poolings for the rest."""
    number = stride.bit_length() - 1
    poolings: list[nn.Module] = [nn.MaxPool2d(3, stride=2, padding=1) for _ in range(number - layers)]
    return [2 if layer < number else 1 for layer in range(layers)], poolings


class ImagePooling(nn.Module):
    """Global average -> 1x1 convolution -> batch norm -> ReLU, spread back: (B, C, h, w) -> (B, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        pooled, norm = self.conv(F.adaptive_avg_pool2d(maps, 1)), self.norm  # (B, out, 1, 1)
        over_ranks = isinstance(norm, nn.SyncBatchNorm) and distributed.world_size() > 1
        if not norm.training or len(pooled) > 1 or over_ranks:
            pooled = norm(pooled)
        else:  # one value per channel has no variance: the running statistics stand in for it
            pooled = F.batch_norm(pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return F.relu(pooled).expand(-1, -1, *maps.shape[2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: image pooling, a 1x1 and three dilated 3x3 branches, joined in this order.

    The rates, 6, 12 and 18 at output stride 16, reach equally far in the image at every output stride.
    """

    def __init__(self, in_channels: int, *, output_stride: int, channels: int = 256) -> None:
        super().__init__()
        self.pool = ImagePooling(in_channels, channels)
        self.branches = nn.ModuleList([conv_norm_relu(in_channels, channels)])
        for rate in (6, 12, 18):
            dilation = rate * 16 // output_stride
            self.branches.append(conv_norm_relu(in_channels, channels, kernel=3, dilation=dilation))
        self.out_channels = channels * 5

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out_channels, h, w)."""
        return torch.cat([self.pool(maps), *(branch(maps) for branch in self.branches)], dim=1)


class Refined(nn.Module):
    """What ends in two 3x3 layers and a classifier."""

    def _add_classifier(self, num_classes: int, *, skip_channels: int = 0) -> None:
        first = conv_norm_relu(skip_channels + 256, 256, kernel=3, joined=skip_channels > 0)
        self.refine = nn.Sequential(first, conv_norm_relu(256, 256, kernel=3))
        self.classify = nn.Conv2d(256, num_classes, 1)

    def decode(self, features: Tensor) -> Tensor:
        """Map features (B, C, h, w) to logits (B, classes, h, w)."""
        return self.classify(self.refine(features))


class Decoder(Refined):
    """DeepLabV3+ decoder: ASPP, with `low_channels` a thin skip from the first stage, two 3x3 layers, a classifier."""

    def __init__(self, in_channels: int, *, output_stride: int, num_classes: int, low_channels: int = 0) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, output_stride=output_stride)
        self.reduce = conv_norm_relu(self.aspp.out_channels, 256)
        if low_channels:
            self.skip = conv_norm_relu(low_channels, 48)
        self._add_classifier(num_classes, skip_channels=48 * bool(low_channels))

    def forward(self, top: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map (B, C, h, w), and `skip` of the first stage (B, 48, h1, w1), to logits of the size of the latter."""
        context = self.reduce(self.aspp(top))
        return self.classify(self.refine(context if skip is None else (skip, context)))


class SharedDropout2d(nn.Dropout2d):
    """Dropout of whole channels whose mask does not depend on how many processes share the batch.

    Every process samples the mask of the whole batch and takes its rows, so that processes that were seeded alike do
    together what one would do with all the images.
    """

    def forward(self, maps: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return maps
        batch, ranks = len(maps), distributed.world_size()
        kept = torch.empty(ranks * batch, maps.shape[1], 1, 1, device=maps.device).bernoulli_(1 - self.p)
        return maps * (kept.split(batch)[distributed.rank()] / (1 - self.p)).to(maps.dtype)


class AuxHead(nn.Module):
    """Classifier on the third stage, for training only: (B, C, h, w) -> logits (B, classes, h, w)."""

    def __init__(self, in_channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.reduce = conv_norm_relu(in_channels, 512, kernel=3, bias=True)
        self.dropout = SharedDropout2d(0.1)
        self.classify = nn.Conv2d(512, num_classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.classify(self.dropout(self.reduce(maps)))


def initialise_heads(*heads: nn.Module | None) -> None:
    """Fill convolutions from Kaiming's normal law over fan-in with zero biases; batch norms are created as wanted."""
    for layer in (layer for head in heads if head is not None for layer in head.modules()):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Segmentor(nn.Module, abc.ABC):
    """A backbone with a head.

    `forward` is for training, `predict` and `small_logits` are for evaluation, `style_features` for the statistics.
    """

    attends = False  # whether the head aggregates by attention
    scores = False  # whether this is a copy for scoring alone (network.scoring)

    def __init__(self, backbone: BackboneBase, *, method: Method, freeze_bn: bool = False) -> None:
        super().__init__()
        self.backbone, self.method, self.freeze_bn = backbone, method, freeze_bn
        self.style_names, self.style_channels = backbone.style_names, backbone.style_channels  # of the captured maps

    @abc.abstractmethod
    def forward(self, images: Tensor) -> SegmentorOutput:
        """Map normalised images (B, 3, H, W) to everything that the losses need."""

    @abc.abstractmethod
    def small_logits(self, images: Tensor) -> SmallLogits:
        """Map normalised images (B, 3, H, W) to the logits that are evaluated, not upsampled yet."""

    def predict(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to the logits that are evaluated, (B, classes, H, W)."""
        return self.small_logits(images).whole()

    def style_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the captured standardised maps, running the backbone only as far as they need it."""
        return self.backbone.style_features(images)

    def place(self, device: torch.device) -> Any:
        """Move to a device and return itself; on a GPU the channels of a pixel lie together, as its cores want them."""
        layout: dict[str, Any] = {"memory_format": torch.channels_last} if device.type == "cuda" else {}
        return self.to(device, **layout)

    def train(self, mode: bool = True) -> Any:
        """Switch the mode; a frozen backbone's batch norms keep using the statistics that came with its weights."""
        super().train(mode)
        for norm in self.pretrained_norms() if self.freeze_bn else ():
            norm.eval()
        return self

    def pretrained_norms(self) -> list[nn.Module]:
        """Return the batch norms whose statistics a pretrained file gives."""
        layers, added = self.backbone.named_modules(), self.backbone.added
        return [
            layer for name, layer in layers if isinstance(layer, _BatchNorm) and name.partition(".")[0] not in added
        ]

    def describe(self) -> str:
        """Return one line for the log."""
        backbone = self.backbone
        sites = ", ".join(f"{site}={kind}" for site, kind in backbone.kinds.items()) or "none"
        size = f"{sum(parameter.numel() for parameter in self.parameters()) / 1e6:.2f} M parameters"
        if backbone.tune != "full":
            trained = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad) / 1e6
            size += f", of which {trained:.2f} M are trained (--tune {backbone.tune})"
        frozen = ", batch-norm statistics of the backbone frozen" if self.freeze_bn else ""
        return (
            f"{backbone.spec.title}, output stride {backbone.output_stride}, method {self.method}, "
            f"style sites: {sites}, {size}{frozen}"
        )


class PlainSegmentor(Segmentor):
    """Backbone, one decoder with a skip, an auxiliary head."""

    def __init__(self, backbone: BackboneBase, *, num_classes: int, **shared: Any) -> None:
        super().__init__(backbone, **shared)
        _, low, _, third, top = backbone.channels
        self.head = Decoder(top, low_channels=low, output_stride=backbone.output_stride, num_classes=num_classes)
        self.aux = AuxHead(third, num_classes=num_classes)
        initialise_heads(self.head, self.aux)

    def forward(self, images: Tensor) -> SegmentorOutput:
        features = self.backbone(images)
        fused = upsample_logits(self.head(features.top, self.head.skip(features.low_level)), images.shape[2:])
        return SegmentorOutput(fused=fused, aux=self.aux(features.aux), style=features.style)

    def small_logits(self, images: Tensor) -> SmallLogits:
        features, (height, width) = self.backbone(images), images.shape[2:]
        top, skip = features.top, self.head.skip(features.low_level)
        del features  # memory
        return SmallLogits((self.head(top, skip),), (height, width))


class LinearSegmentor(Segmentor):
    """Backbone, batch norm and one 1x1 convolution: the linear probe of foundation models (DINOv2's, Oquab et al.)."""

    def __init__(self, backbone: BackboneBase, *, num_classes: int, **shared: Any) -> None:
        super().__init__(backbone, **shared)
        channels = backbone.channels[-1]
        classify = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(classify.weight, std=0.01)
        self.head = nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), classify=classify))

    def forward(self, images: Tensor) -> SegmentorOutput:
        return SegmentorOutput(fused=self.predict(images))

    def small_logits(self, images: Tensor) -> SmallLogits:
        height, width = images.shape[2:]
        return SmallLogits((self.head(self.backbone(images).top),), (height, width))
