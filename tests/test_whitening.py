"""Covariances, whitening losses and ISW's masks, against explicit loops."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loss.whitening import (
    MaskStatistics,
    Whitening,
    collect_masks,
    covariance,
    relaxation,
    strict_triangle,
    whitening_loss,
)
from tests import reference
from utils.errors import UserError


def slow_covariance(maps: torch.Tensor) -> np.ndarray:
    batch, channels, height, width = maps.shape
    values = maps.double().numpy()
    result = np.zeros((batch, channels, channels))
    for image, row, column in np.ndindex(result.shape):
        total = (values[image, row] * values[image, column]).sum()
        result[image, row, column] = total / (height * width - 1) + (1e-5 if row == column else 0)
    return result


def slow_loss(maps: torch.Tensor, mask: np.ndarray, margin: float) -> float:
    losses = []
    for image in slow_covariance(maps):
        total, count = 0.0, 0
        for place in np.ndindex(mask.shape):
            if mask[place]:
                total, count = total + abs(image[place]), count + 1
        losses.append(max(0.0, (total - margin) / max(count, 1)))
    return float(np.mean(losses))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    batch=st.integers(1, 3),
    channels=st.integers(2, 7),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    margin=st.sampled_from([0.0, 0.5, 100.0]),
)
def test_loss_is_the_slow_one(seed: int, batch: int, channels: int, density: float, margin: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, channels, 3, 4, generator=generator)
    mask = torch.rand(channels, channels, generator=generator) < density
    np.testing.assert_allclose(covariance(maps).numpy(), slow_covariance(maps), rtol=1e-4, atol=1e-6)
    found = whitening_loss(maps, mask=mask, margin=margin)
    assert found.item() == pytest.approx(slow_loss(maps, mask.numpy(), margin), rel=1e-5, abs=1e-7)


def test_margins_of_irw() -> None:
    assert [relaxation(width, 64) for width in (64, 256, 512)] == [31, 510, 2044]
    assert [relaxation(width, 32) for width in (64, 256)] == [63, 1020]
    assert relaxation(64, 0) == 0
    maps = torch.randn(2, 8, 5, 5)
    mask = strict_triangle(8)
    irw = Whitening([8], kind="irw", relax_denom=8)
    assert irw.has_masks and irw([maps]).item() == pytest.approx(slow_loss(maps, mask.numpy(), 3), rel=1e-5)
    iw = Whitening([8], kind="irw")
    assert iw([maps]).item() == pytest.approx(slow_loss(maps, mask.numpy(), 0), rel=1e-5)
    assert not iw.state_dict(), "the triangle is no state"


def test_isw_averages_over_maps() -> None:
    isw = Whitening([4, 6], kind="isw", relax_denom=4)
    masks = [strict_triangle(4), strict_triangle(6) & (torch.arange(6) > 3)]
    isw.intersect_masks(masks)
    style = [torch.randn(2, 4, 3, 3), torch.randn(2, 6, 3, 3)]
    wanted = np.mean([slow_loss(maps, mask.numpy(), 0) for maps, mask in zip(style, masks, strict=True)])
    assert isw(style).item() == pytest.approx(wanted, rel=1e-5)


def test_masks_intersect_reset_and_travel_in_the_state(caplog: pytest.LogCaptureFixture) -> None:
    isw = Whitening([4], kind="isw")
    with pytest.raises(AssertionError, match="no masks yet"):
        isw([torch.randn(1, 4, 3, 3)])
    first, second = strict_triangle(4), torch.eye(4).roll(1, 1).bool()
    isw.intersect_masks([first])
    assert torch.equal(isw.masks[0], first) and isw.num_sensitive() == [6]
    isw.intersect_masks([second])
    assert isw.num_sensitive() == [3]

    copy = Whitening([4], kind="isw")
    copy.load_state_dict(isw.state_dict())
    assert copy.has_masks and torch.equal(copy.masks[0], first & second)
    copy.load_state_dict(Whitening([4], kind="isw").state_dict())
    assert not copy.has_masks

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            isw.intersect_masks([torch.zeros(4, 4, dtype=torch.bool)])
    assert caplog.text.count("4-channel map is left") == 1
    maps = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = isw([maps])
    loss.backward()
    assert loss.item() == 0 and not maps.grad.any(), "an empty mask gives zero, never nan"

    isw.reset_masks()
    assert not isw.has_masks and isw.num_sensitive() == [0]
    isw.intersect_masks([first])
    assert isw.num_sensitive() == [6], "the masks before the reset are forgotten"


def test_statistics_sum_the_variance_between_the_two_pictures() -> None:
    statistics = MaskStatistics([5], clusters=2)
    total = np.zeros((5, 5))
    for seed in range(3):
        maps = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(seed))
        statistics.update([maps])
        first, second = slow_covariance(maps)
        total += np.triu((first - second) ** 2 / 2, 1)
    sums, count = statistics.tensors()
    assert count.item() == 3 and sums.dtype == torch.float64
    np.testing.assert_allclose(sums.numpy(), total, rtol=1e-4, atol=1e-9)


def test_statistics_of_two_processes_add_up() -> None:
    whole, parts = MaskStatistics([6], clusters=3), [MaskStatistics([6], clusters=3) for _ in range(2)]
    for seed in range(4):
        maps = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(seed))
        whole.update([maps])
        parts[seed % 2].update([maps])
    for own, other in zip(parts[0].tensors(), parts[1].tensors(), strict=True):
        own += other
    assert torch.equal(parts[0].masks()[0], whole.masks()[0])


def test_mask_holds_what_is_outside_the_lowest_cluster() -> None:
    statistics = MaskStatistics([4], clusters=3)
    sums, count = statistics.tensors()
    count += 2
    sums[0, 1], sums[0, 2], sums[1, 3], sums[2, 3] = 100.0, 101.0, 50.0, 0.01
    (mask,) = statistics.masks()
    assert mask.nonzero().tolist() == [[0, 1], [0, 2], [1, 3]]


def test_more_clusters_than_covariances_take_all_of_them() -> None:
    statistics = MaskStatistics([8], clusters=50)
    sums, count = statistics.tensors()
    count += 1
    sums += torch.arange(1.0, 65).view(8, 8).triu(1)
    (mask,) = statistics.masks()
    assert torch.equal(mask, torch.ones(8, 8, dtype=torch.bool).triu(1))


def test_masks_are_those_of_all_passes_or_of_none() -> None:
    def interrupted() -> Iterator[list[Tensor]]:
        yield [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))]
        raise KeyboardInterrupt

    network: Any = nn.Conv2d(3, 4, 1)
    network.style_channels, network.style_features = [4], lambda pair: [network(pair)]
    whitening = Whitening([4], kind="isw")
    before = {name: value.clone() for name, value in whitening.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        collect_masks(whitening, network, interrupted(), clusters=3, device=torch.device("cpu"))
    assert not whitening.has_masks
    assert all(torch.equal(value, before[name]) for name, value in whitening.state_dict().items())


def test_relaxed_masks_need_no_clusters() -> None:
    statistics = MaskStatistics([8], clusters=0, relax_denom=4)
    sums, count = statistics.tensors()
    count += 1
    sums += reference.variance("t0_r0", 8)
    (mask,) = statistics.masks()
    assert mask.sum() == 28 - 7
    assert sums[mask].min() > sums[strict_triangle(8) & ~mask].max()


@pytest.mark.parametrize("relax_denom", [0, 4])
def test_no_masks_of_a_network_that_has_diverged(relax_denom: float) -> None:
    statistics = MaskStatistics([8], clusters=3, relax_denom=relax_denom)
    statistics.tensors()[0][0, 1] = float("nan")
    with pytest.raises(UserError, match="a covariance is not finite"):
        statistics.masks()


def test_covariance_is_single_precision_under_autocast() -> None:
    maps = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(covariance(maps), covariance(maps.float()))
        assert covariance(maps.bfloat16()).dtype == torch.float32


def test_the_gradient_of_a_covariance_is_that_of_both_factors() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 3, 5, requires_grad=True)
    weight = torch.randn(2, 4, 4)  # not symmetric
    (gradient,) = torch.autograd.grad((covariance(maps) * weight).sum(), maps)
    flat = maps.flatten(2)
    (expected,) = torch.autograd.grad((torch.einsum("bcn,bdn->bcd", flat, flat) / 14 * weight).sum(), maps)
    torch.testing.assert_close(gradient, expected)
