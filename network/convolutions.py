"""Convolutions of the heads that torch computes with more arithmetic than they need, as measured on CPUs.

B batch, C, S and O channels, h x w size of a map, h1 x w1 of a larger one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from network.outputs import resampling, resize

# Measured: smaller rates, or maps of more than three times the rate (two in bfloat16), are faster as torch has them.
LEAST_RATE, SIZE_BY_RATE, SIZE_BY_RATE_MIXED = 12, 3, 2
LEAST_UPSAMPLING = 4  # pixels for each of the smaller map's: as many at output stride 8, where half the time is left


class DilatedConv2d(nn.Conv2d):
    """nn.Conv2d of 3x3 taps that keeps the size, without bias; the same state, and the same values up to rounding.

    Trained on the CPU it leaves out the products with its padding, by which torch multiplies in the backward pass: at
    rate 18 on 16 x 16 maps eight of the nine taps see nothing but zeros.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, O, h, w)."""
        rate = self.dilation[0]
        mixed = torch.is_autocast_enabled("cpu")
        limit = rate * (SIZE_BY_RATE_MIXED if mixed else SIZE_BY_RATE)
        torchs = not self.training or maps.device.type != "cpu" or torch.compiler.is_compiling()
        if torchs or rate < LEAST_RATE or max(maps.shape[2:]) >= limit:
            return super().forward(maps)
        dtype = torch.get_autocast_dtype("cpu") if mixed else maps.dtype
        result: Tensor = _ByTaps.apply(maps.to(dtype), self.weight, rate)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def zero_outer_taps(self) -> None:
        """Leave of the 3x3 taps the one in the middle."""
        self.weight.copy_(F.pad(self.weight[..., 1:2, 1:2], (1, 1, 1, 1)))


def taps(size: Sequence[int], *, rate: int) -> Iterator[tuple[int, Any, Any]]:
    """Yield the number of each tap that sees a part of the maps, the centre first, where it writes and what it reads.

    Both are indices of maps (B, channels, *size).
    """
    for tap in sorted(range(9), key=lambda tap: tap != 4):
        spans = []
        for length, step in zip(size, divmod(tap, 3), strict=True):
            offset = (step - 1) * rate
            start, stop = max(0, -offset), min(length, length - offset)
            spans.append((slice(start, stop), slice(start + offset, stop + offset)))
        if all(written.start < written.stop for written, _ in spans):
            yield tap, (..., *(written for written, _ in spans)), (..., *(read for _, read in spans))


class _ByTaps(torch.autograd.Function):
    """One matrix product per tap, over the part of the maps that it sees, in their type; sums are in the weights'."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, rate: int) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.rate = rate
        out = weight.new_zeros(maps.shape[0], weight.shape[0], *maps.shape[2:])
        for tap, written, read in taps(maps.shape[2:], rate=rate):
            part = maps[read]
            matrix = weight.flatten(2)[..., tap].contiguous().to(maps.dtype)
            out[written] += (matrix @ part.flatten(2)).unflatten(2, part.shape[2:])
        return out.to(maps.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        maps, weight = ctx.saved_tensors
        of_maps, of_weight = torch.zeros_like(maps, dtype=weight.dtype), torch.zeros_like(weight)
        for tap, written, read in taps(maps.shape[2:], rate=ctx.rate):
            incoming = gradient[written].flatten(2)  # (B, O, n)
            if ctx.needs_input_grad[0]:
                part = weight.flatten(2)[..., tap].T.contiguous().to(maps.dtype) @ incoming  # (B, C, n)
                of_maps[read] += part.view(of_maps[read].shape)
            if ctx.needs_input_grad[1]:
                pairs = zip(incoming, maps[read].flatten(2), strict=True)
                of_weight.flatten(2)[..., tap] = sum((g @ m.T).to(weight.dtype) for g, m in pairs)
        return of_maps.to(maps.dtype), of_weight, None


class JoinedConv2d(nn.Conv2d):
    """nn.Conv2d of 3x3 taps that keeps the size, of a map joined with another that is upsampled to its size.

    Convolution and upsampling are linear. Trained on the CPU in full precision, the nine taps of the upsampled map are
    1x1 convolutions of it as it is, which two matrices upsample, shift and add: a quarter of the arithmetic at an
    upsampling by four, half of it by two.
    """

    def forward(self, joined: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Map (B, S, h1, w1) and (B, C, h, w) to (B, O, h1, w1)."""
        skip, context = joined
        size, small = skip.shape[2:], context.shape[2:]
        torchs = not self.training or context.device.type != "cpu" or torch.compiler.is_compiling()
        mixed = torch.is_autocast_enabled("cpu") or context.dtype.itemsize < 4  # the matrices would be rounded too
        if torchs or mixed or size.numel() < LEAST_UPSAMPLING * small.numel():
            return super().forward(torch.cat([skip, resize(context, size)], dim=1))
        of_skip, of_context = self.weight.split([skip.shape[1], context.shape[1]], dim=1)
        taps = F.conv2d(context, of_context.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None])  # (B, 9 O, h, w)
        taps = taps.unflatten(1, (-1, 3, 3)).transpose(3, 4).flatten(4)  # (B, O, 3, h, 3 w)
        rows, columns = (tap_resampling(*sizes, like=taps) for sizes in zip(size, small, strict=True))
        wide = (taps @ columns.permute(2, 1, 0).flatten(0, 1)).flatten(2, 3)  # (B, O, 3 h, w1)
        return F.conv2d(skip, of_skip, self.bias, padding=1) + rows.transpose(1, 2).flatten(1) @ wide


def tap_resampling(size: int, small: int, *, like: Tensor) -> Tensor:
    """Return how outputs depend on a small map, (size, small, 3): tap t of output i is the upsampled i + t - 1.

    Beyond the ends it is zero. Type and device are those of a tensor.
    """
    return F.pad(resampling(size, small, device=like.device, dtype=like.dtype), (0, 0, 1, 1)).unfold(0, 3, 1)
