"""Building a network: names, refusals, descriptions, initial values, pooled branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from network import ARCHITECTURES, build_network
from network.deeplab import ASPP, ImagePooling
from scripts.network_summary import summarise
from tests import reference
from tests.street_data import make_cfg
from utils.errors import UserError


def on_meta(method: str, **changes: Any) -> Any:
    with torch.device("meta"):
        return build_network(make_cfg(METHOD=method, **changes))


def test_unknown_architecture_names_the_closest() -> None:
    with pytest.raises(UserError, match=r"did you mean 'network\.deepv3\.DeepR50V3PlusD'"):
        build_network(make_cfg(ARCH="network.deepv3.DeepR50V3PlusC"))
    with pytest.raises(UserError, match="position 1"):
        build_network(make_cfg(WT_LAYER=[0, 2, 2, 2, 2, 0, 0]))


@pytest.mark.parametrize(("arch", "millions"), [(reference.R50, "51.72 M"), (reference.R101, "70.84 M")])
def test_description(arch: str, millions: str) -> None:
    line = on_meta("diia", ARCH=arch, FREEZE_BN=True).describe()
    title = ARCHITECTURES[arch].backbone.title
    for word in (title, millions, "output stride 16", "DIIA head", "ISW", "stage2=whiten", "of the backbone frozen"):
        assert word in line
    assert "\n" not in line
    assert "plain DeepLabV3+ head" in on_meta("ibn", ARCH=arch).describe()


def test_resnet101_has_three_stem_convolutions_and_captures_there() -> None:
    network = on_meta("isw", ARCH=reference.R101, WT_LAYER=[2, 2, 0, 2, 2, 0, 0])
    assert network.style_channels == (64, 64, 256, 512)
    features = network(torch.zeros(2, 3, 64, 64, device="meta"))
    assert [tuple(maps.shape[1:]) for maps in features.style] == [
        (64, 32, 32),
        (64, 32, 32),
        (256, 16, 16),
        (512, 8, 8),
    ]
    assert features.fused.shape == (2, 19, 64, 64) and features.aux.shape == (2, 19, 4, 4)
    names = network.state_dict()
    assert names["backbone.conv3.weight"].shape == (128, 64, 3, 3)
    assert "backbone.layer3.22.conv3.weight" in names and "backbone.layer3.23.conv3.weight" not in names


def test_last_stage_is_dilated_instead_of_strided() -> None:
    stage = on_meta("base").backbone.layer4
    for block in stage:
        assert (block.conv2.stride, block.conv2.dilation, block.conv2.padding) == ((1, 1), (2, 2), (2, 2))
    assert stage[0].downsample[0].stride == (1, 1)


def test_initial_values() -> None:
    torch.manual_seed(0)
    network = reference.small_network()
    conv = network.backbone.conv1.weight  # fan-out: 64 * 7 * 7
    assert conv.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    conv = network.fused.refine[0].conv.weight  # fan-in: 304 * 3 * 3
    assert conv.std().item() == pytest.approx((2 / (304 * 9)) ** 0.5, rel=0.05)
    assert network.aggregate.value.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert network.aggregate.value.bias.any() and network.aggregate.gamma.item() == 0
    assert not network.layout.encoder[3].bias.any() and not network.aux.reduce.conv.bias.any()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and not layer.bias.any() and layer.eps == 1e-5 and layer.momentum == 0.1


@pytest.mark.parametrize("method", ["sw", "ibn", "diia"])
def test_summary_counts_what_torch_counts(method: str) -> None:
    found = summarise(on_meta(method, BACKBONE="resnet18"), size=(64, 96))
    assert found.multiply_adds == pytest.approx(found.torch_multiply_adds, rel=0.01)
    assert found.shapes["stage1"] == (64, 16, 24) and found.shapes["stage4"] == (512, 4, 6)


def test_same_seed_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(reference.small_network("base").state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_pooled_branch() -> None:
    pool: Any = ImagePooling(4, 6)
    maps = torch.randn(2, 4, 5, 7)
    out = pool(maps)
    assert out.shape == (2, 6, 5, 7) and torch.equal(out[:, :, 0, 0], out[:, :, 4, 6])
    mean = pool.norm.running_mean.clone()
    assert mean.any()
    alone = pool(maps[:1])  # one value per channel: normalised by the running statistics
    assert torch.equal(pool.norm.running_mean, mean)
    assert torch.equal(alone, pool.eval()(maps[:1]))


def test_pyramid_joins_pooling_first() -> None:
    pyramid: Any = ASPP(8, output_stride=16, channels=4).eval()
    maps = torch.randn(1, 8, 9, 9)
    out = pyramid(maps)
    assert out.shape == (1, 20, 9, 9) == (1, pyramid.out_channels, 9, 9)
    assert torch.equal(out[:, :4], pyramid.pool(maps))
    for stride, rates in {4: [24, 48, 72], 8: [12, 24, 36], 16: [6, 12, 18], 32: [3, 6, 9]}.items():
        branches: Any = ASPP(8, output_stride=stride, channels=4).branches
        assert [branch.conv.dilation[0] for branch in branches] == [1, *rates]
