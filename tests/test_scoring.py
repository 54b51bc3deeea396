"""The copy of a network that scoring runs, and logits that are upsampled part by part."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datasets.domains import BUILTIN
from evaluation.protocols import Inference
from network import BACKBONES, Architecture, assemble, outputs, resolve_method, scoring
from network.outputs import SmallLogits
from network.scoring import LowDecoder, scoring_copy
from tests import reference
from tests.test_evaluation import evaluator
from tests.test_pretrained import randomised
from tests.test_train import assert_same


def built(backbone: str, method: str, stride: int = 16) -> Any:
    spec: Any = BACKBONES[backbone]
    if hasattr(spec, "blocks"):
        spec = dataclasses.replace(spec, blocks=(1, 1, 1, 1))
    network = randomised(assemble(Architecture(spec, stride), method=resolve_method(method)))
    if getattr(network, "aggregate", None) is not None and network.attends:
        nn.init.constant_(network.aggregate.gamma, 0.7)
    return network


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_PART_PIXELS", 500)


class Shapes(TorchDispatchMode):
    """Collects the shapes of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[tuple[int, ...]]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(results) if isinstance(leaf, Tensor)}
        return results


@pytest.mark.parametrize("size", [(37, 53), (64, 64), (5, 90), (1, 40)])
def test_upsampling_by_matrices_is_interpolation(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 19, 5, 7).to(memory_format=torch.channels_last)
    ours, torchs = (maps.clone().requires_grad_() for _ in range(2))
    found = outputs._resized_by_matrices(ours.bfloat16(), size)
    wanted = F.interpolate(torchs.bfloat16().float(), size, mode="bilinear", align_corners=True)
    assert found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    gradient = torch.randn_like(found)
    found.backward(gradient), wanted.backward(gradient)
    assert ours.grad is not None and torchs.grad is not None
    torch.testing.assert_close(ours.grad, torchs.grad, rtol=1e-2, atol=1e-2)  # both rounded to bfloat16


@pytest.mark.parametrize("size", [(37, 53), (64, 64), (21, 90), (1, 40)])
def test_parts_are_the_whole(many_parts: None, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 5, 10, 14, generator=generator), torch.randn(2, 5, 3, 4, generator=generator)
    logits = SmallLogits(maps, size, factors=(1.0, 0.5))
    parts = [*logits.parts()]
    assert len(parts) == -(-size[0] // max(500 // size[1], 1)) and parts[-1][0].stop == size[0]
    first, second = (F.interpolate(part.double(), size, mode="bilinear", align_corners=True) for part in maps)
    torch.testing.assert_close(
        torch.cat([part for _, part in parts], 2).double(), first + second / 2, rtol=0, atol=2e-5
    )
    torch.testing.assert_close(logits.whole().double(), first + second / 2, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("backbone", "method", "stride"),
    [
        ("resnet50", "diia", 16),
        ("resnet18", "diia-no-aggregation", 8),
        ("resnet101_deep", "isw", 32),
        ("resnext50", "diia-coarse", 4),
        ("mobilenet_v2", "ibn", 16),
        ("shufflenet_v2", "is", 32),
        ("mnasnet_05", "base", 16),
        ("resnet50", "sw", 16),
        ("resnet18", "linear", 16),
    ],
)
def test_the_copy_predicts_the_same_and_the_network_stays(backbone: str, method: str, stride: int) -> None:
    network = built(backbone, method, stride).train()
    state, modes = copy.deepcopy(network.state_dict()), [layer.training for layer in network.modules()]
    scored = scoring_copy(network)
    assert scoring_copy(scored) is scored and scored is not network
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in scored.modules()) or method == "linear"
    images, _, _ = reference.sample(2, 65, 97)
    with torch.inference_mode():
        found, same = scored.small_logits(images), scored.predict(images)
        assert [layer.training for layer in network.modules()] == modes and not scored.training
        wanted = network.eval().predict(images)
        assert scored(images).style == ()
    limit = 1e-4 * float(wanted.abs().max())
    for logits in (found.whole(), torch.cat([part for _, part in found.parts()], 2), same):
        torch.testing.assert_close(logits, wanted, rtol=0, atol=limit)
    assert_same(network.state_dict(), state)


@pytest.mark.parametrize("rows", [5, 64])
@pytest.mark.parametrize("size", [(16, 24), (17, 31), (7, 40)])
def test_convolving_before_upsampling_is_the_plain_decoder(
    size: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_BLOCK", rows)
    decoder = built("resnet50", "base").head.double().requires_grad_(False)
    torch.manual_seed(0)
    top, low = torch.randn(2, 2048, 4, 6, dtype=torch.float64), torch.randn(2, 256, *size, dtype=torch.float64)
    wanted = decoder(top, decoder.skip(low))
    conv, norm = decoder.refine[0].conv, decoder.refine[0].norm
    conv.weight, conv.bias = nn.utils.fusion.fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    decoder.refine[0].norm = nn.Identity()
    torch.testing.assert_close(LowDecoder(decoder)(top, decoder.skip(low)), wanted)


def test_the_channels_of_a_pixel_lie_together() -> None:
    scored = scoring_copy(built("resnet50", "diia"))
    weights = [layer.weight for layer in scored.modules() if isinstance(layer, nn.Conv2d)]
    assert all(weight.stride(1) == 1 for weight in weights)
    with torch.inference_mode():  # torch picks the format by the strides: of one channel, both fit
        assert scored.layout.encoder[0].conv(torch.zeros(1, 1, 64, 64)).stride(1) == 1  # type: ignore[union-attr, index]


class Streets:
    """Two images with labels."""

    name, corruption = "streets", ""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        images, labels, _ = reference.sample(2, 48, 64)
        images = ((images - images.min()) / (images.max() - images.min()) * 255).byte()
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
        rows = zip(images, labels.byte(), strict=True)
        self.samples = [SimpleNamespace(image=i, label=label, name=str(n)) for n, (i, label) in enumerate(rows)]
        self.split = SimpleNamespace(pairs=self.samples, domain=BUILTIN["cityscapes"])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


class Plain:
    """Predicts what a network does, whole."""

    def __init__(self, network: Any) -> None:
        self.predict = network.predict


@pytest.mark.parametrize("method", ["diia", "base"])
def test_the_evaluator_scores_what_the_network_predicts(many_parts: None, method: str) -> None:
    network, run = built("resnet50", method), evaluator(more_metrics=True)
    with Shapes() as shapes:
        found = run.evaluate(network, Streets())
    assert (1, 19, 48, 64) not in shapes.seen, "logits of the whole image"
    with Shapes() as shapes:
        wanted = run.evaluate(Plain(network), Streets())
    assert (1, 19, 48, 64) in shapes.seen
    assert np.abs(found.confusion - wanted.confusion).sum() <= 4 and found.confusion.sum() > 1000
    assert found.loss == pytest.approx(wanted.loss, rel=1e-4)
    torch.testing.assert_close(found.more.boundaries, wanted.more.boundaries, rtol=0.02, atol=8)
    moved = (found.more.confidences.cumsum(2) - wanted.more.confidences.cumsum(2)).abs().max()
    assert moved <= 8 and found.more.confidences.sum() == wanted.more.confidences.sum()


def test_every_protocol_runs_the_copy() -> None:
    network = scoring_copy(built("resnet18", "base"))
    images, _, _ = reference.sample(1, 48, 64)
    with torch.inference_mode():
        assert isinstance(Inference().logits(network, images), SmallLogits)
        for inference in (Inference(flip=True), Inference(window=(32, 32), stride=(24, 24)), Inference(halved=True)):
            assert torch.equal(inference.logits(network, images), inference(network.predict, images))  # type: ignore
