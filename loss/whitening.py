"""Whitening losses on captured maps, and the statistics that choose what ISW whitens.

B batch, C channels, h x w size of a map. RobustNet (Choi et al., CVPR 2021): IW, IRW, ISW.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import distributed
from utils.errors import UserError

log = logging.getLogger(__name__)


def covariance(maps: Tensor) -> Tensor:
    """Return each image's channel covariance in single precision, with 1e-5 added on the diagonal.

    It maps (B, C, h, w), of zero mean per image and channel, to (B, C, C).
    """
    with torch.autocast(maps.device.type, enabled=False):
        flat = maps.float().flatten(2)  # (B, C, hw)
        half = torch.bmm(flat, flat.detach().transpose(1, 2)) / max(flat.shape[2] - 1, 1)
        # The value is `half`'s, the gradient that of both factors, by one product in the backward pass instead of two.
        products = half + (half.mT - half.detach()) if half.requires_grad else half
    return products + 1e-5 * torch.eye(flat.shape[1], device=maps.device)


def _upper_covariance(maps: Tensor) -> Tensor:
    """Return what stands above the diagonal of `covariance`, in three quarters of its time: one quarter stays zero."""
    flat, half = maps.float().flatten(2), maps.shape[1] // 2
    products = flat.new_zeros(*flat.shape[:2], flat.shape[1])
    with torch.autocast(maps.device.type, enabled=False):
        products[:, :half] = flat[:, :half] @ flat.mT
        products[:, half:, half:] = flat[:, half:] @ flat[:, half:].mT
    return products / max(flat.shape[2] - 1, 1)


def strict_triangle(channels: int) -> Tensor:
    """Return a boolean (C, C) matrix, true above the diagonal."""
    return torch.ones(channels, channels, dtype=torch.bool).triu(1)


def relaxation(channels: int, relax_denom: float) -> float:
    """Return how much of the sum of absolute covariances of C channels stays unpunished (0 for relax_denom 0)."""
    return float(channels * (channels - 1) / 2 // relax_denom) if relax_denom else 0.0


def whitening_loss(maps: Tensor, *, mask: Tensor, margin: float = 0.0) -> Tensor:
    """Return the mean absolute covariance under a mask, less a margin, averaged over the batch.

    Args:
        maps: (B, C, h, w) standardised.
        mask: (C, C) boolean, the entries to whiten; an empty one gives zero.
        margin: subtracted from the sum of an image's absolute entries before it is clamped at zero.
    """
    sums = (covariance(maps) * mask).abs().sum(dim=(1, 2))  # (B,)
    return ((sums - margin) / mask.sum().clamp(min=1)).clamp(min=0).mean()


class Whitening(nn.Module):
    """The whitening term over all captured maps: IW and IRW whiten the strict upper triangle, ISW what its masks say.

    ISW's masks are buffers, so that a checkpoint carries them; whether they are ready is one too.
    """

    masks_ready: Tensor
    has_masks: bool  # the buffer's value on the host, so that a step need not ask the device

    def __init__(self, channels: Sequence[int], *, kind: str, relax_denom: float = 0.0) -> None:
        super().__init__()
        if kind not in ("irw", "isw"):
            raise ValueError(f"whitening {kind!r}: irw or isw")
        self.selective, self.relax_denom, self.channels = kind == "isw", relax_denom, tuple(channels)
        # ISW's relaxation chooses the masks (MaskStatistics); its loss has no margin.
        self.margins = [0.0 if self.selective else relaxation(width, relax_denom) for width in channels]
        for index, width in enumerate(channels):
            mask = torch.zeros(width, width, dtype=torch.bool) if self.selective else strict_triangle(width)
            self.register_buffer(f"mask{index}", mask, persistent=self.selective)
        self.register_buffer("masks_ready", torch.tensor(not self.selective), persistent=self.selective)
        self.has_masks = not self.selective
        self.register_load_state_dict_post_hook(lambda module, _: module._read_ready())

    def _read_ready(self) -> None:
        self.has_masks = bool(self.masks_ready)

    @property
    def masks(self) -> list[Tensor]:
        """The (C, C) boolean mask of each captured map."""
        return [self.get_buffer(f"mask{index}") for index in range(len(self.channels))]

    def reset_masks(self) -> None:
        assert self.selective, "only ISW chooses masks"
        for mask in self.masks:
            mask.zero_()
        self.masks_ready.fill_(False)
        self.has_masks = False

    def intersect_masks(self, masks: Sequence[Tensor]) -> None:
        """Keep what these masks and, if there are any, the ones before agree on; warn once where nothing is left."""
        assert self.selective, "only ISW chooses masks"
        for width, mask, new in zip(self.channels, self.masks, masks, strict=True):
            was_empty = self.has_masks and not mask.any()
            mask.copy_(new.to(mask) & mask if self.has_masks else new.to(mask))
            if not was_empty and not mask.any():
                log.warning("ISW: no covariance of the %d-channel map is left in its mask; its loss is zero", width)
        self.masks_ready.fill_(True)
        self.has_masks = True

    def num_sensitive(self) -> list[int]:
        return [int(mask.sum()) for mask in self.masks]

    def forward(self, style: Sequence[Tensor]) -> Tensor:
        """Average the losses of the captured maps (B, C, h, w)."""
        assert self.has_masks, "ISW has no masks yet: call collect_masks first"
        rows = zip(style, self.masks, self.margins, strict=True)
        return torch.stack([whitening_loss(maps, mask=mask, margin=margin) for maps, mask, margin in rows]).mean()


class MaskStatistics:
    """Sums, over images, how much each covariance changes when only the appearance of the image changes.

    Several processes each see a part of the images; summing `tensors()` over them gives all the same masks.
    """

    def __init__(
        self, channels: Sequence[int], *, clusters: int, relax_denom: float = 0.0, device: torch.device | str = "cpu"
    ) -> None:
        self.clusters, self.relax_denom = clusters, relax_denom
        self._sums = [torch.zeros(width, width, dtype=torch.float64, device=device) for width in channels]
        self._count = torch.zeros(1, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, style: Sequence[Tensor]) -> None:
        """Add the captured maps (2, C, h, w) of one image: its augmented view and itself."""
        for total, maps in zip(self._sums, style, strict=True):
            assert len(maps) == 2, "a batch of the augmented view and the image"
            total += _upper_covariance(maps).triu(1).var(dim=0)  # unbiased: (a - b)^2 / 2
        self._count += 1

    def tensors(self) -> list[Tensor]:
        """Return the running sums (C, C) and the number of images, to be summed over processes in place."""
        return [*self._sums, self._count]

    def variances(self) -> list[Tensor]:
        """Return each map's mean variance matrix (C, C) on the CPU, zero on and below the diagonal."""
        return [(total / self._count.clamp(min=1)).cpu() for total in self._sums]

    def masks(self) -> list[Tensor]:
        """Return the (C, C) boolean masks of the covariances that appearance changes most."""
        import kmeans1d  # only ISW needs it

        masks = []
        for variance in self.variances():
            values, channels = variance.flatten(), len(variance)  # Parity: the zeros on and below the diagonal too
            if not values.sum().isfinite():
                hint = "the network has diverged: lower --lr, or collect masks earlier"
                raise UserError(f"ISW: a covariance is not finite; {hint}")
            if self.relax_denom:
                count = channels * (channels - 1) // 2 - int(relaxation(channels, self.relax_denom))
            else:  # all but the lowest cluster
                count = int(np.count_nonzero(kmeans1d.cluster(values.numpy(), self.clusters)[0]))
                count = min(count, channels * (channels - 1) // 2)  # more clusters than values would split the zeros
            mask = torch.zeros_like(values, dtype=torch.bool)
            mask[values.topk(count).indices] = True
            masks.append(mask.view_as(variance))
        return masks


def collect_masks(
    whitening: Whitening, network: Any, passes: Iterable[Iterable[Tensor]], *, clusters: int, device: torch.device
) -> list[Tensor]:
    """Give ISW new masks: every pass over images chooses covariances, those that all passes chose stay.

    The processes each read their share of a pass and all get the same masks.

    Args:
        network: has `style_features` and `style_channels`; is left in evaluation mode.
        passes: pairs (2, 3, H, W), normalised: an image's photometrically augmented view and the image.
        clusters: of the variances, unless the relaxation chooses.

    Returns:
        The variance matrix (C, C) of each map's covariances, the mean over the passes.
    """
    means = []
    distributed.broadcast_buffers(network)
    collected = copy.deepcopy(whitening)  # a checkpoint of meanwhile must not hold the masks of some of the passes
    collected.reset_masks()
    network.eval()
    for pairs in passes:
        widths, relax_denom = network.style_channels, whitening.relax_denom
        statistics = MaskStatistics(widths, clusters=clusters, relax_denom=relax_denom, device=device)
        with torch.inference_mode():
            for pair in pairs:
                statistics.update(network.style_features(pair))
        for tensor in statistics.tensors():
            distributed.all_reduce_sum(tensor)
        collected.intersect_masks(statistics.masks())
        means.append(statistics.variances())
    whitening.load_state_dict(collected.state_dict())
    return [torch.stack(variances).mean(0) for variances in zip(*means, strict=True)]
