"""Where and how a backbone normalises style: the one reader of the old `--wt_layer` codes, and the layer at a site.

Switchable whitening: Pan et al., ICCV 2019, whitening by a learned mixture of batch, instance and layer statistics.
B batch, G groups of c consecutive channels, h x w size of a map, n = h w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import distributed
from utils.errors import UserError

SITE_KINDS = {1: "whiten", 2: "whiten", 3: "instance", 4: "instance_affine", 5: "switchable", 6: "beside"}
CAPTURED = ("whiten", "beside")  # kinds whose standardised maps the whitening loss reads
MIXED = ("stem", "stage1", "stage2")  # whose outputs MixStyle mixes
POSITION_NAMES = ("stem1", "stem2", "stem3", "stage1", "stage2", "stage3", "stage4")
# Type of switchable whitening -> how many statistics are mixed: batch and instance whitening; layer norm too; batch and
# instance norm too. Of type 4 the published code has no forward.
NUM_MIXED = {2: 2, 3: 3, 5: 5}


def read_codes(codes: Sequence[int], *, positions: Mapping[int, str]) -> dict[str, str]:
    """Turn seven codes into a table of style sites.

    Args:
        codes: 0 none, 1 and 2 whitened, 3 instance norm, 4 affine instance norm, 5 switchable whitening, 6 whitened
            beside the path.
        positions: position of a code -> site name, for the positions that the backbone has.

    Raises:
        UserError: wrong number of codes, an unknown code, or a code at a position that the backbone lacks.
    """
    check_codes(codes)
    sites: dict[str, str] = {}
    for position, code in enumerate(codes):
        if not code:
            continue
        if not positions:
            raise UserError(
                f"--wt_layer {' '.join(map(str, codes))}: this backbone has no style sites; "
                "use a method without any: --method base, linear or diia-no-whitening"
            )
        if position not in positions:
            raise UserError(
                f"--wt_layer {' '.join(map(str, codes))}: position {position} ({POSITION_NAMES[position]}) does not "
                f"exist in this backbone, which has positions {', '.join(map(str, sorted(positions)))}; put 0 there"
            )
        sites[positions[position]] = SITE_KINDS[code]
    return sites


def check_codes(codes: Sequence[int]) -> None:
    """Raise `UserError` unless these are seven known codes of which 1 is not mixed with 2 or 6."""
    text = f"--wt_layer {' '.join(map(str, codes))}"
    if len(codes) != len(POSITION_NAMES):
        raise UserError(f"{text}: {len(codes)} codes given, 7 needed (3 stem convolutions, 4 stages)")
    unknown = [str(code) for code in codes if code not in (0, *SITE_KINDS)]
    if unknown:
        raise UserError(
            f"{text}: unknown code {', '.join(unknown)}; use 0 none, 1 IW/IRW, 2 ISW, 3 IN, 4 IBN, 5 SW, 6 ISW beside"
        )
    if 1 in codes and {2, 6} & set(codes):
        raise UserError(f"{text}: codes 1 (IW/IRW) and 2 or 6 (ISW) cannot be mixed; use one of them at every site")


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's, which copies maps whose channels of a pixel lie together (channels last) before and behind it."""

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape, zero mean and unit deviation per image and channel, then the affine."""
        return instance_norm(maps, weight=self.weight, bias=self.bias, eps=self.eps)


def instance_norm(
    maps: Tensor, *, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Do what torch's function does, on channels last by the batch norm of each image, which keeps them so."""
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return F.instance_norm(maps, weight=weight, bias=bias, eps=eps)
    options: dict[str, Any] = {"weight": weight, "bias": bias, "training": True, "eps": eps}
    normalised = [F.batch_norm(image, None, None, **options) for image in maps.split(1)]
    return torch.cat(normalised) if len(normalised) > 1 else normalised[0]


class Beside(nn.Identity):
    """Leaves the maps as they are, so that pretrained features pass; the whitening loss reads them standardised."""


def captured(site: nn.Module, maps: Tensor) -> Tensor:
    """Return what the whitening loss reads of a site's output (B, C, h, w): zero mean, unit deviation per image."""
    return instance_norm(maps) if isinstance(site, Beside) else maps


def build_site(channels: int, *, kind: str) -> InstanceNorm2d | SyncSwitchWhiten2d | Beside:
    """Build the layer of a style site; raises `UserError` where switchable whitening does not fit the channels."""
    if kind not in SITE_KINDS.values():
        raise ValueError(f"style site kind {kind!r}: one of {', '.join(sorted(set(SITE_KINDS.values())))}")
    if kind == "switchable":
        return SyncSwitchWhiten2d(channels)
    if kind == "beside":
        return Beside()
    return InstanceNorm2d(channels, affine=kind == "instance_affine")


def inverse_root(covariances: Tensor, *, iterations: int) -> Tensor:
    """Approximate the inverse square roots of matrices (..., c, c) by Newton's iteration, each scaled by its trace."""
    trace = covariances.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    scaled = covariances / trace
    root = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    for _ in range(iterations):
        root = 1.5 * root - 0.5 * (root @ root @ root @ scaled)
    return root / trace.sqrt()


def mix_style(maps: Tensor, share: Tensor, other: Tensor) -> Tensor:
    """Give images (B, C, h, w) the mixture of their own channel means and deviations and those of others.

    Image i keeps the share `share[i]` of its own and takes the rest from image `other[i]`; both are (B,). The
    statistics are constants for the gradient.
    """
    variance, mean = torch.var_mean(maps.detach().float(), dim=(2, 3), correction=0, keepdim=True)  # (B, C, 1, 1)
    deviation, share = (variance + 1e-6).sqrt(), share[:, None, None, None]
    mixed_mean, mixed_deviation = (share * own + (1 - share) * own[other] for own in (mean, deviation))
    return ((maps - mean) * (mixed_deviation / deviation) + mixed_mean).to(maps.dtype)


class MixStyle(nn.Module):
    """Mixes the style of a process's images in training, with a probability; else it returns its input.

    Zhou et al., Domain generalization with MixStyle, ICLR 2021. All random numbers come from torch's CPU generator; the
    shares are sampled for the whole batch, so that processes that were seeded alike have different ones.
    """

    def __init__(self, probability: float = 0.0, *, alpha: float = 0.1) -> None:
        super().__init__()
        self.probability, self.alpha = probability, alpha

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        batch = maps.shape[0]  # unlike len, it stays free in a graph
        if not self.training or not self.probability or batch == 1 or torch.rand(()) >= self.probability:
            return maps
        shares = torch.distributions.Beta(self.alpha, self.alpha).sample((distributed.world_size() * batch,))
        share, other = shares.split(batch)[distributed.rank()], torch.randperm(batch)
        return mix_style(maps, *(values.to(maps.device, non_blocking=True) for values in (share, other)))


class SyncSwitchWhiten2d(nn.Module):
    """Whitens groups of channels, in float32 at least; in training by the batch statistics of all processes together.

    The running statistics start at zero, so a fresh layer in evaluation whitens by the instance part alone.

    Args:
        num_features: channels, a multiple of `group`.
        group: channels that are whitened together.
        kind: number of mixed statistics, see `NUM_MIXED`.
        iterations: Newton steps.
        tied: mix the covariances with the weights of the means.
        affine: whether every channel has a scale and a shift.
    """

    running_mean: Tensor
    running_cov: Tensor
    eps, momentum = 1e-5, 0.99  # momentum: share of the running statistics that is kept, the opposite of PyTorch's

    def __init__(
        self,
        num_features: int,
        *,
        group: int = 16,
        kind: int = 2,
        iterations: int = 5,
        tied: bool = False,
        affine: bool = True,
    ) -> None:
        super().__init__()
        if kind not in NUM_MIXED:
            raise ValueError(f"switchable whitening of type {kind}: one of {', '.join(map(str, NUM_MIXED))}")
        if num_features % group:
            raise UserError(
                f"--wt_layer: code 5 (switchable whitening) needs a multiple of {group} channels, not {num_features}; "
                "put another code there"
            )
        self.num_features, self.group, self.kind, self.iterations = num_features, group, kind, iterations
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
