"""Blocks that every head is built from. B batch, C channels, h x w feature size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import distributed


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resample maps (B, C, h, w) bilinearly with aligned corners, as every up-sampling of the original does."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def conv_norm_relu(
    in_channels: int, out_channels: int, *, kernel: int = 1, stride: int = 1, dilation: int = 1, bias: bool = False
) -> nn.Sequential:
    """Build a convolution that keeps the size at stride 1, batch norm, ReLU; children `conv`, `norm`, `relu`."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias)
    norm = nn.BatchNorm2d(out_channels)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(inplace=True)))


def refinement(in_channels: int, channels: int = 256) -> nn.Sequential:
    """Build the two 3x3 layers in front of every classifier."""
    return nn.Sequential(conv_norm_relu(in_channels, channels, kernel=3), conv_norm_relu(channels, channels, kernel=3))


def split_stride(stride: int, *, layers: int) -> tuple[list[int], list[nn.Module]]:
    """Spread a stride (a power of two) over layers, the first ones first.

    Returns:
        The stride of each layer, 2 or 1, and max poolings for what the layers cannot carry.
    """
    number = stride.bit_length() - 1
    poolings: list[nn.Module] = [nn.MaxPool2d(3, stride=2, padding=1) for _ in range(number - layers)]
    return [2 if layer < number else 1 for layer in range(layers)], poolings


class ImagePooling(nn.Module):
    """Global average -> 1x1 convolution -> batch norm -> ReLU, spread back over the map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out, h, w)."""
        pooled = self.conv(F.adaptive_avg_pool2d(maps, 1))  # (B, out, 1, 1)
        return F.relu(self._normalise(pooled)).expand(-1, -1, *maps.shape[2:])

    def _normalise(self, pooled: Tensor) -> Tensor:
        # One image gives one value per channel, which has no variance: the running statistics stand in for it.
        over_ranks = isinstance(self.norm, nn.SyncBatchNorm) and distributed.world_size() > 1
        if not self.norm.training or len(pooled) > 1 or over_ranks:
            return self.norm(pooled)
        norm = self.norm
        return F.batch_norm(pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: image pooling, a 1x1 and three dilated 3x3 branches, joined in this order.

    The rates, 6, 12 and 18 at output stride 16, reach equally far in the image at every output stride.
    """

    def __init__(self, in_channels: int, *, output_stride: int, channels: int = 256) -> None:
        super().__init__()
        self.pool = ImagePooling(in_channels, channels)
        rates = [rate * 16 // output_stride for rate in (6, 12, 18)]
        branches = [conv_norm_relu(in_channels, channels)]
        branches += [conv_norm_relu(in_channels, channels, kernel=3, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList(branches)
        self.out_channels = channels * (1 + len(branches))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out_channels, h, w)."""
        return torch.cat([self.pool(maps), *(branch(maps) for branch in self.branches)], dim=1)


class SkipHead(nn.Module):
    """DeepLabV3+ decoder: ASPP at low resolution, a thin skip from the first stage, two 3x3 layers, a classifier."""

    def __init__(self, in_channels: int, *, low_channels: int, output_stride: int, num_classes: int) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, output_stride=output_stride)
        self.reduce = conv_norm_relu(self.aspp.out_channels, 256)
        self.skip = conv_norm_relu(low_channels, 48)
        self.refine = refinement(48 + 256)
        self.classify = nn.Conv2d(256, num_classes, 1)

    def forward(self, top: Tensor, low_level: Tensor) -> Tensor:
        """Map (B, C, h, w) and the first stage's (B, C1, h1, w1) to logits (B, classes, h1, w1)."""
        context = resize(self.reduce(self.aspp(top)), low_level.shape[2:])
        return self.classify(self.refine(torch.cat([self.skip(low_level), context], dim=1)))


class SharedDropout2d(nn.Dropout2d):
    """Dropout of whole channels whose mask does not depend on how many processes share the batch.

    Every process samples the mask of the whole batch and takes its rows, so that processes that were seeded alike do
    together what one would do with all the images.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        if not self.training or self.p == 0:
            return maps
        batch, first = len(maps), distributed.rank() * len(maps)
        shape = (batch * distributed.world_size(), maps.shape[1], 1, 1)
        kept = torch.empty(shape, device=maps.device).bernoulli_(1 - self.p)[first : first + batch]
        return maps * (kept / (1 - self.p)).to(maps.dtype)


class AuxHead(nn.Module):
    """Classifier on the third stage, for training only."""

    def __init__(self, in_channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.reduce = conv_norm_relu(in_channels, 512, kernel=3, bias=True)
        self.dropout = SharedDropout2d(0.1)
        self.classify = nn.Conv2d(512, num_classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to logits (B, classes, h, w)."""
        return self.classify(self.dropout(self.reduce(maps)))


def initialise_head(module: nn.Module) -> None:
    """Fill convolutions from Kaiming's normal law over fan-in with zero biases; batch norms are created as wanted."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
