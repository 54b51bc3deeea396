"""What of a network scoring runs: a copy that predicts the same, up to rounding, with less arithmetic and memory.

B batch, C channels, h x w size of the last features, h1 x w1 of the first stage's, H x W of the input.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from network.backbones import Backbone
from network.deeplab import Decoder, Segmentor
from network.dilated import DilatedConv2d
from network.upsampling import resampling

_CONVS, _NORMS = (nn.Conv2d, DilatedConv2d), (nn.BatchNorm2d, nn.SyncBatchNorm)
_BLOCK = 64  # columns, or rows, that are resampled together


def scoring_copy(network: Segmentor) -> Segmentor:
    """Return a network in evaluation mode that predicts what this one does, up to the rounding of its convolutions.

    Batch norms are folded into the convolutions before them and captured maps are left out. On a CPU the channels of a
    pixel lie together, and `LowDecoder` stands in for decoders with a skip. All weights but the convolutions' are
    shared; what this function returned stays itself.
    """
    if network.scores:
        return network
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    scored = copy.deepcopy(network, shared).eval()
    scored.scores, scored.backbone.style_names = True, ()
    heads: list[nn.Module] = [child for name, child in scored.named_children() if name != "backbone"]
    if isinstance(scored.backbone, Backbone):  # networks of timm may normalise before they convolve
        heads.append(scored.backbone)
        scored.backbone.relu_after_site.inplace = True
    for layer in (layer for part in heads for layer in part.modules()):
        children: list[tuple[str, Any]] = list(layer.named_children())
        for (_, conv), (name, norm) in pairwise(children):
            if type(conv) in _CONVS and type(norm) in _NORMS and conv.out_channels == norm.num_features:
                moments: Any = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *moments)
                setattr(layer, name, nn.Identity().eval())
    return _for_cpu(scored) if next(network.parameters()).device.type == "cpu" else scored


def _for_cpu(scored: Segmentor) -> Segmentor:
    for parent in list(scored.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, Decoder) and hasattr(layer, "skip"):
                setattr(parent, name, LowDecoder(layer))
    convs: list[Any] = [layer for layer in scored.modules() if type(layer) in _CONVS]
    for conv in convs:
        weight = conv.weight.detach().to(memory_format=torch.channels_last)  # of one input channel too
        conv.weight = nn.Parameter(weight, requires_grad=False)
    return scored


class LowDecoder(nn.Module):
    """A decoder with a skip whose first 3x3 convolution reads the context before its upsampling.

    Convolution and upsampling are linear: the nine taps are 1x1 convolutions of the small map, which are upsampled,
    shifted and added, all three by sparse matrices. With an upsampling by four this is a tenth of the arithmetic.
    """

    skip: Tensor  # (O, skip channels, 3, 3), of the first convolution
    taps: Tensor  # (9 O, context channels, 1, 1)
    bias: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        conv: Any = decoder.refine[0].conv
        reduce: Any = decoder.reduce
        width = conv.in_channels - reduce.conv.out_channels
        skip, taps = conv.weight.detach().split([width, conv.in_channels - width], dim=1)  # (O, C, 3, 3)
        self.bias = conv.bias
        self.register_buffer("skip", skip.contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer("taps", taps.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None], persistent=False)

    def forward(self, top: Tensor, low_level: Tensor) -> Tensor:
        """Map (B, C, h, w) and (B, C1, h1, w1) to logits of the size of the latter."""
        decoder = self.decoder
        if torch.is_autocast_enabled("cpu"):  # the matrices would be rounded too
            return decoder(top, low_level)  # type: ignore[no-any-return]
        context = decoder.reduce(decoder.aspp(top))
        total = F.conv2d(decoder.skip(low_level), self.skip, self.bias, padding=1)
        total = total.contiguous(memory_format=torch.channels_last)
        _add_resampled(total.permute(0, 2, 3, 1), F.conv2d(context, self.taps))
        return self._classify(F.relu_(total))

    def _classify(self, maps: Tensor) -> Tensor:
        """Return what the decoder's last layers make of (B, C, h1, w1), some rows at a time with one beside them."""
        logits = []
        for start in range(0, maps.shape[2], _BLOCK):
            rows = self.decoder.refine[1](maps[:, :, max(start - 1, 0) : start + _BLOCK + 1])
            logits.append(self.decoder.classify(rows[:, :, min(start, 1) :][:, :, :_BLOCK]))
        return torch.cat(logits, 2)


def _add_resampled(total: Tensor, taps: Tensor) -> None:
    """Add to maps (B, h1, w1, O) the upsampled and shifted taps (B, 9 O, h, w) of a 3x3 convolution."""
    (batch, height, width, channels), (small_height, small_width) = total.shape, taps.shape[2:]
    taps = taps.permute(0, 2, 3, 1).reshape(batch, small_height, small_width, 3, 3, channels)  # rows and columns of it
    wide = taps.new_empty(batch, small_height * 3, width, channels)
    for columns, used, matrix in _blocks(width, small_width):
        part = taps[:, :, used].permute(0, 1, 3, 2, 4, 5).reshape(batch, small_height * 3, -1, channels)
        wide[:, :, columns] = matrix.to(part.dtype) @ part
    for rows, used, matrix in _blocks(height, small_height):
        part = wide[:, used.start * 3 : used.stop * 3].flatten(2)
        target = total[:, rows].flatten(2)
        target.baddbmm_(matrix.to(part.dtype).expand(batch, -1, -1), part)


def _blocks(size: int, small: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield outputs, the small map's rows that they need, and the matrix (outputs, 3 * rows) of upsampling and shift.

    Output i of tap t is the upsampled value i + t - 1, zero beyond the ends.
    """
    whole = F.pad(resampling(size, small), (0, 0, 1, 1)).unfold(0, 3, 1)  # (size, small, 3)
    for start in range(0, size, _BLOCK):
        outputs = slice(start, min(start + _BLOCK, size))
        needed = whole[outputs].abs().sum((0, 2)).nonzero().flatten()
        used = slice(int(needed[0]), int(needed[-1]) + 1)
        yield outputs, used, whole[outputs, used].flatten(1)
