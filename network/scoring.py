"""What of a network scoring runs: a copy that predicts the same, up to rounding, with less arithmetic and memory.

B batch, C channels, h x w size of the last features, h1 x w1 of the first stage's, H x W of the input.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from network.backbones import Backbone
from network.convolutions import DilatedConv2d, JoinedConv2d, tap_resampling
from network.deeplab import Decoder, Segmentor

_CONVS, _NORMS = (nn.Conv2d, DilatedConv2d, JoinedConv2d), (nn.BatchNorm2d, nn.SyncBatchNorm)
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

    first: Tensor  # (O, skip channels, 3, 3), of the first convolution
    taps: Tensor  # (9 O, context channels, 1, 1)
    bias: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder, self.skip = decoder, decoder.skip
        conv: Any = decoder.refine[0].conv
        reduce: Any = decoder.reduce
        width = conv.in_channels - reduce.conv.out_channels
        first, taps = conv.weight.detach().split([width, conv.in_channels - width], dim=1)  # (O, C, 3, 3)
        self.bias = conv.bias
        self.register_buffer("first", first.contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer("taps", taps.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None], persistent=False)

    def forward(self, top: Tensor, skip: Tensor) -> Tensor:
        """Map (B, C, h, w) and (B, 48, h1, w1) to logits of the size of the latter, some rows at a time."""
        decoder = self.decoder
        if torch.is_autocast_enabled("cpu"):  # the matrices would be rounded too
            return decoder(top, skip)  # type: ignore[no-any-return]
        context, logits, height = decoder.reduce(decoder.aspp(top)), [], skip.shape[2]
        columns = list(map(_used, tap_resampling(skip.shape[3], context.shape[3], like=context).split(_BLOCK)))
        rows = tap_resampling(height, context.shape[2], like=context)
        for start in range(0, height, _BLOCK):  # with one row beside them for each of the two 3x3 convolutions
            near = slice(max(start - 1, 0), min(start + _BLOCK + 1, height))
            total = F.conv2d(skip[:, :, max(near.start - 1, 0) : near.stop + 1], self.first, self.bias, padding=1)
            total = total[:, :, min(near.start, 1) :][:, :, : near.stop - near.start]
            total = total.contiguous(memory_format=torch.channels_last)
            used, matrix = _used(rows[near])
            _add_resampled(total.permute(0, 2, 3, 1), F.conv2d(context[:, :, used], self.taps), matrix, columns)
            maps = decoder.refine[1](F.relu_(total))[:, :, start - near.start :][:, :, :_BLOCK]
            logits.append(decoder.classify(maps))
        return torch.cat(logits, 2)


def _add_resampled(total: Tensor, taps: Tensor, rows: Tensor, columns: Sequence[tuple[slice, Tensor]]) -> None:
    """Add to maps (B, n, w1, O) the upsampled and shifted taps (B, 9 O, m, w) of a 3x3 convolution.

    By a matrix of rows (n, m, 3) and, of blocks of columns, the part of the taps' columns and its matrix.
    """
    (batch, _, width, channels), height = total.shape, taps.shape[2]
    taps = taps.permute(0, 2, 3, 1).reshape(batch, height, -1, 3, 3, channels)  # rows and columns of it
    wide = taps.new_empty(batch, height * 3, width, channels)
    for block, (used, matrix) in zip(wide.split(_BLOCK, 2), columns, strict=True):
        part = taps[:, :, used].permute(0, 1, 3, 2, 4, 5).reshape(batch, height * 3, -1, channels)
        block.copy_(matrix.flatten(1) @ part)
    total.flatten(2).baddbmm_(rows.flatten(1).expand(batch, -1, -1), wide.flatten(2))


def _used(taps: Tensor) -> tuple[slice, Tensor]:
    """Return the part of the small map on which neighbouring outputs depend, and their matrix (outputs, part, 3)."""
    needed = taps.abs().sum((0, 2)).nonzero().flatten()
    used = slice(int(needed[0]), int(needed[-1]) + 1)
    return used, taps[:, used]
