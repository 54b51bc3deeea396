"""ISW's masks: statistics of how covariances change with an image's appearance, and the search over many images.

C channels, h x w size of a captured map. RobustNet (Choi et al., CVPR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loss.whitening import Whitening, covariance, relaxation
from utils import distributed
from utils.errors import UserError


def collect_masks(
    whitening: Whitening, network: Any, passes: Iterable[Iterable[Tensor]], *, clusters: int, device: torch.device
) -> list[Tensor]:
    """Give ISW new masks: every pass over images chooses covariances, those that all passes chose stay.

    The processes each read their share of a pass and all get the same masks.

    Args:
        network: a segmentor, of which `style_features` and `style_channels` are used; is left in evaluation mode.
        passes: pairs (2, 3, H, W), normalised: an image's photometrically augmented view and the image.
        clusters: of the variances, unless the relaxation chooses.

    Returns:
        The variance matrix (C, C) of each map's covariances, the mean over the passes.
    """
    variances: list[list[Tensor]] = []
    distributed.broadcast_buffers(network)
    whitening.reset_masks()
    network.eval()
    for pairs in passes:
        statistics = MaskStatistics(
            network.style_channels, clusters=clusters, relax_denom=whitening.relax_denom, device=device
        )
        with torch.inference_mode():
            for pair in pairs:
                statistics.update(network.style_features(pair))
        for tensor in statistics.tensors():
            distributed.all_reduce_sum(tensor)
        whitening.intersect_masks(statistics.masks())
        variances.append(statistics.variances())
    return [torch.stack(matrices).mean(0) for matrices in zip(*variances, strict=True)]


class MaskStatistics:
    """Sums, over images, how much each covariance changes when only the appearance of the image changes.

    Several processes each see a part of the images; summing `tensors()` over them gives all the same masks.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        clusters: int,
        relax_denom: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.clusters, self.relax_denom = clusters, relax_denom
        self._sums = [torch.zeros(width, width, dtype=torch.float64, device=device) for width in channels]
        self._count = torch.zeros(1, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, style: Sequence[Tensor]) -> None:
        """Add the captured maps (2, C, h, w) of one image: its photometrically augmented view and the original."""
        assert len(style) == len(self._sums)
        for total, maps in zip(self._sums, style, strict=True):
            assert len(maps) == 2, "a batch of the augmented view and the original"
            total += covariance(maps).triu(1).var(dim=0)  # unbiased: (a - b)^2 / 2
        self._count += 1

    def tensors(self) -> list[Tensor]:
        """Return the running sums (C, C) and the number of images, to be summed over processes in place."""
        return [*self._sums, self._count]

    def variances(self) -> list[Tensor]:
        """Return each map's mean variance matrix (C, C) on the CPU, zero on and below the diagonal."""
        return [(total / self._count.clamp(min=1)).cpu() for total in self._sums]

    def masks(self) -> list[Tensor]:
        """Return the (C, C) boolean masks of the covariances that appearance changes most."""
        return [self._mask(variance) for variance in self.variances()]

    def _mask(self, variance: Tensor) -> Tensor:
        values = variance.flatten()  # Parity: with the zeros on and below the diagonal
        if self.relax_denom:
            channels = len(variance)
            count = channels * (channels - 1) // 2 - int(relaxation(channels, self.relax_denom))
        else:
            count = _num_outside_lowest_cluster(values.numpy(), clusters=self.clusters)
        mask = torch.zeros_like(values, dtype=torch.bool)
        mask[values.topk(count).indices] = True
        return mask.view_as(variance)


def _num_outside_lowest_cluster(values: np.ndarray, *, clusters: int) -> int:
    import kmeans1d  # only ISW needs it

    if not math.isfinite(values.sum()):
        raise UserError(
            "ISW: a covariance is not finite; the network has diverged: lower --lr, or collect masks earlier"
        )
    labels, _ = kmeans1d.cluster(values, clusters)
    return int(np.count_nonzero(labels))
