"""Convolutions of the heads with less arithmetic, against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from network.convolutions import DilatedConv2d, JoinedConv2d, _ByTaps
from network.deeplab import ASPP, Decoder
from network.outputs import resize


@pytest.mark.parametrize("size", [(16, 16), (9, 40), (13, 12), (36, 20)])
@pytest.mark.parametrize("rate", [6, 12, 18])
def test_values_and_gradients_are_torchs(size: tuple[int, int], rate: int) -> None:
    torch.manual_seed(0)
    conv = DilatedConv2d(3, 5, 3, padding=rate, dilation=rate, bias=False).double().train()
    maps: Any = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(maps, conv.weight, padding=rate, dilation=rate)
    found, upstream = conv(maps), torch.randn_like(expected)
    assert (type(found.grad_fn).__name__ == "_ByTapsBackward") == (rate >= 12 and max(size) < 3 * rate)
    torch.testing.assert_close(found, expected)
    inputs = (maps, conv.weight)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("size", "taps"), [(12, True), (20, True), (40, False)])
def test_mixed_precision_rounds_no_more_than_torchs(size: int, taps: bool) -> None:
    torch.manual_seed(0)
    conv = DilatedConv2d(64, 8, 3, padding=18, dilation=18, bias=False).train()
    maps, upstream = torch.randn(3, 64, size, size).requires_grad_(), torch.randn(3, 8, size, size)

    def gradients(function: Any, *inputs: Any) -> list[torch.Tensor]:
        out = function(inputs[0])
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]

    def plain(maps: Any, weight: Any = conv.weight) -> Any:
        return F.conv2d(maps, weight, padding=18, dilation=18)

    exact = gradients(plain, maps, conv.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ("ByTaps" in type(conv(maps).grad_fn).__name__) == taps
        ours, torchs = gradients(conv, maps, conv.weight), gradients(plain, maps, conv.weight)
    assert [value.dtype for value in ours] == [torch.bfloat16, torch.float32, torch.float32]
    for found, other, wanted in zip(ours, torchs, exact, strict=True):
        assert (found - wanted).norm() < 1.2 * (other - wanted).norm()


def test_gradients_are_those_of_differences() -> None:
    torch.manual_seed(0)
    maps, weight = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 2, 3, 4), (3, 2, 3, 3)))
    assert torch.autograd.gradcheck(
        lambda *inputs: _ByTaps.apply(*inputs, 2),  # type: ignore[no-untyped-call]
        (maps.requires_grad_(), weight.requires_grad_()),
    )


def test_only_what_is_needed_has_a_gradient() -> None:
    conv = DilatedConv2d(3, 5, 3, padding=18, dilation=18, bias=False).train()
    conv(torch.randn(1, 3, 8, 8)).sum().backward()
    assert conv.weight.grad is not None
    maps = torch.randn(1, 3, 8, 8, requires_grad=True)
    conv.requires_grad_(False)(maps).sum().backward()
    assert maps.grad is not None


def test_a_pyramid_has_them_and_scores_with_torchs() -> None:
    pyramid = ASPP(4, output_stride=16)
    assert [type(branch.conv) is DilatedConv2d for branch in pyramid.branches] == [False, True, True, True]
    conv = pyramid.branches[3].conv.eval()  # type: ignore[union-attr,operator]
    assert "ByTaps" not in str(conv(torch.randn(1, 4, 16, 16)).grad_fn), "exported and traced for any size"


def torchs_way(conv: nn.Conv2d, skip: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    return F.conv2d(torch.cat([skip, resize(context, skip.shape[2:])], 1), conv.weight, conv.bias, padding=1)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("size", "small"), [((16, 24), (4, 6)), ((17, 31), (5, 8)), ((9, 4), (1, 2)), ((7, 40), (2, 1)), ((8, 12), (4, 6))]
)
def test_convolving_before_upsampling_is_torchs_way(
    size: tuple[int, int], small: tuple[int, int], biased: bool
) -> None:
    torch.manual_seed(0)
    conv = JoinedConv2d(3 + 32, 5, 3, padding=1, bias=biased).double().train()
    skip, context = (torch.randn(2, n, *shape).double().requires_grad_() for n, shape in ((3, size), (32, small)))
    with FlopCounterMode(display=False) as ours:
        found = conv((skip, context))
    with FlopCounterMode(display=False) as theirs:
        expected = torchs_way(conv, skip, context)
    assert ours.get_total_flops() < theirs.get_total_flops()
    torch.testing.assert_close(found, expected)
    inputs, upstream = (skip, context, *conv.parameters()), torch.randn_like(expected)
    for mine, torchs in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("case", ["scored", "mixed precision", "half", "hardly upsampled", "compiled", "other device"])
def test_elsewhere_it_is_torchs_to_the_last_bit(case: str) -> None:
    torch.manual_seed(0)
    conv: Any = JoinedConv2d(7, 5, 3, padding=1, bias=False).train(case != "scored")
    size = (6, 7) if case == "hardly upsampled" else (16, 24)
    skip, context = torch.randn(2, 3, *size), torch.randn(2, 4, 4, 6)
    if case == "half":
        conv, skip, context = conv.bfloat16(), skip.bfloat16(), context.bfloat16()
    if case == "other device":
        conv, skip, context = conv.to("meta"), skip.to("meta"), context.to("meta")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "mixed precision"):
        expected = torchs_way(conv, skip, context)
        if case == "other device":
            with FlopCounterMode(display=False) as counter:
                conv((skip, context))
            assert counter.get_total_flops() == 2 * expected.numel() * conv.weight[0].numel()
        else:
            run = torch.compile(conv, backend="eager", fullgraph=True) if case == "compiled" else conv
            assert torch.equal(run((skip, context)), expected)


def test_hooks_see_every_layer_of_a_decoder() -> None:
    decoder = Decoder(4, low_channels=3, output_stride=16, num_classes=2).train()
    seen = list[str]()
    for name, layer in decoder.refine.named_modules():
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    decoder(torch.randn(2, 4, 4, 4), decoder.skip(torch.randn(2, 3, 16, 16)))
    assert sorted(seen) == sorted(name for name, _ in decoder.refine.named_modules())
