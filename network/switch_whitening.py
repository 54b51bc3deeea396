"""Switchable whitening (Pan et al., ICCV 2019): whitening by a learned mixture of batch, instance and layer statistics.

B batch, G groups of c consecutive channels, h x w size of a map, n = h w.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils import distributed

# Type -> how many statistics are mixed: batch and instance whitening; layer norm too; batch and instance norm too.
# Of type 4 the published code has no forward.
NUM_MIXED = {2: 2, 3: 3, 5: 5}


def inverse_root(covariances: Tensor, *, iterations: int) -> Tensor:
    """Approximate the inverse square roots of matrices (..., c, c) by Newton's iteration, each scaled by its trace."""
    trace = covariances.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    scaled = covariances / trace
    root = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    for _ in range(iterations):
        root = 1.5 * root - 0.5 * (root @ root @ root @ scaled)
    return root / trace.sqrt()


class SyncSwitchWhiten2d(nn.Module):
    """Whitens groups of channels; in training the batch statistics are those of all processes together.

    The running statistics start at zero, so a fresh layer in evaluation whitens by the instance part alone.
    Half precision is computed in float32.

    Args:
        num_features: channels, a multiple of `group`.
        group: channels that are whitened together.
        kind: number of mixed statistics, see `NUM_MIXED`.
        iterations: Newton steps.
        tied: mix the covariances with the weights of the means.
        momentum: share of the running statistics that is kept, the opposite of PyTorch's batch norm.
        affine: whether every channel has a scale and a shift.
    """

    running_mean: Tensor
    running_cov: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        group: int = 16,
        kind: int = 2,
        iterations: int = 5,
        tied: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.99,
        affine: bool = True,
    ) -> None:
        super().__init__()
        if kind not in NUM_MIXED:
            raise ValueError(f"switchable whitening of type {kind}: one of {', '.join(map(str, NUM_MIXED))}")
        if num_features % group:
            raise ValueError(f"switchable whitening needs a multiple of {group} channels, not {num_features}")
        self.num_features, self.group, self.kind, self.iterations = num_features, group, kind, iterations
        self.eps, self.momentum = eps, momentum
        self.sw_mean_weight = nn.Parameter(torch.ones(NUM_MIXED[kind]))
        self.sw_var_weight = None if tied else nn.Parameter(torch.ones(NUM_MIXED[kind]))
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        groups = num_features // group
        self.register_buffer("running_mean", torch.zeros(groups, group, 1))
        self.register_buffer("running_cov", torch.zeros(groups, group, group))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        device = maps.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # meta tensors have no autocast
            values = maps.to(torch.promote_types(maps.dtype, torch.float32))
            values = values.unflatten(1, (-1, self.group)).flatten(3)  # (B, G, c, n)
            own_mean = values.mean(3, keepdim=True)  # (B, G, c, 1)
            centred = (values - own_mean).flatten(0, 1)  # (BG, c, n)
            own_cov = (centred @ centred.mT / values.shape[3]).unflatten(0, own_mean.shape[:2])  # (B, G, c, c)
            mean, cov = self._mix(*self._batch_statistics(own_mean, own_cov), own_mean, own_cov, n=values.shape[3])
            whiten = inverse_root(cov, iterations=self.iterations)
            if self.weight is not None:
                whiten = self.weight.view(-1, self.group, 1) * whiten
            shift = whiten @ (own_mean - mean)  # (B, G, c, 1): the maps are centred by their own mean already
            if self.bias is not None:
                shift = shift + self.bias.view(-1, self.group, 1)
            out = torch.baddbmm(shift.flatten(0, 1), whiten.flatten(0, 1), centred)
        return out.view(maps.shape).to(maps.dtype)

    def _batch_statistics(self, own_mean: Tensor, own_cov: Tensor) -> tuple[Tensor, Tensor]:
        """Return means (G, c, 1) and biased covariances (G, c, c) over the whole batch, or the running ones."""
        if not self.training:
            return self.running_mean, self.running_cov
        mean = distributed.all_reduce_mean(own_mean.mean(0))
        centred = own_mean - mean
        cov = distributed.all_reduce_mean((own_cov + centred @ centred.mT).mean(0))
        with torch.no_grad():
            for running, batch in ((self.running_mean, mean), (self.running_cov, cov)):
                running.mul_(self.momentum).add_(batch, alpha=1 - self.momentum)
        return mean, cov

    def _mix(
        self, batch_mean: Tensor, batch_cov: Tensor, own_mean: Tensor, own_cov: Tensor, *, n: int
    ) -> tuple[Tensor, Tensor]:
        """Return the mixed means (B, G, c, 1) and covariances (B, G, c, c)."""
        m = self.sw_mean_weight.softmax(0)
        v = m if self.sw_var_weight is None else self.sw_var_weight.softmax(0)
        own_variance = own_cov.diagonal(dim1=-2, dim2=-1)[..., None]  # (B, G, c, 1)
        batch_share, own_share = m[0], m[1]
        if self.kind == 5:
            batch_share, own_share = m[0] + m[2], m[1] + m[3]
            # Parity: the variances of batch and instance norm are mixed by v[0] and v[1]; v[2] and v[3] do nothing.
            own_cov = own_cov + own_variance.squeeze(-1).diag_embed()
            batch_cov = batch_cov + batch_cov.diagonal(dim1=-2, dim2=-1).diag_embed()
        unit = torch.eye(self.group, dtype=own_cov.dtype, device=own_cov.device)
        mean = batch_share * batch_mean + own_share * own_mean
        cov = v[0] * batch_cov + v[1] * own_cov + self.eps * unit
        if self.kind != 2:
            layer_mean = own_mean.mean((1, 2), keepdim=True)  # (B, 1, 1, 1)
            count = self.num_features * n
            spread = (own_variance + (own_mean - layer_mean) ** 2).mean((1, 2), keepdim=True) * (count / (count - 1))
            mean, cov = mean + m[-1] * layer_mean, cov + v[-1] * spread * unit
        return mean, cov
