"""Style codes, the layer at a site, and where a backbone puts it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from network import BACKBONES, Architecture, resolve_method
from network.style import SyncSwitchWhiten2d, build_site, captured, read_codes
from tests import reference
from utils.errors import UserError

RESNET50, RESNET101 = BACKBONES["resnet50"], BACKBONES["resnet101_deep"]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", ["whiten", "instance_affine"])
def test_an_instance_norm_leaves_the_channels_of_a_pixel_together(kind: str, images: int) -> None:
    torch.manual_seed(0)
    site, torchs = build_site(4, kind=kind), nn.InstanceNorm2d(4, affine=kind == "instance_affine")
    for parameter, other in zip(site.parameters(), torchs.parameters(), strict=True):
        nn.init.normal_(other)
        parameter.data.copy_(other)
    plain = (3 * torch.randn(images, 4, 6, 5) + 1).requires_grad_()
    maps = plain.detach().to(memory_format=torch.channels_last).requires_grad_()
    found, wanted = site(maps), torchs(plain)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted)
    found.pow(3).sum().backward(), wanted.pow(3).sum().backward()
    assert maps.grad is not None and plain.grad is not None
    torch.testing.assert_close(maps.grad, plain.grad, rtol=1e-4, atol=1e-4)


def test_codes_become_sites() -> None:
    assert read_codes((0, 0, 2, 2, 3, 4, 0), positions=RESNET50.positions) == {
        "stem1": "whiten",
        "stage1": "whiten",
        "stage2": "instance",
        "stage3": "instance_affine",
    }
    assert read_codes((1, 0, 1, 0, 0, 0, 1), positions=RESNET101.positions) == {
        "stem1": "whiten",
        "stem3": "whiten",
        "stage4": "whiten",
    }
    assert read_codes((0, 0, 5, 0, 2, 0, 4), positions=RESNET50.positions) == {
        "stem1": "switchable",
        "stage2": "whiten",
        "stage4": "instance_affine",
    }


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ((0, 0, 2, 2, 2, 0), "6 codes given, 7 needed"),
        ((0, 0, 9, 0, 0, 0, 0), "unknown code 9"),
        ((0, 0, 1, 2, 0, 0, 0), "cannot be mixed"),
        ((0, 2, 0, 0, 0, 0, 0), r"position 1 \(stem2\) does not exist"),
        ((4, 4, 0, 4, 4, 0, 0), r"position 0 \(stem1\) does not exist"),
    ],
)
def test_codes_that_cannot_be_are_refused(codes: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_codes(codes, positions=RESNET50.positions)


def test_site_standardises_each_image_and_channel() -> None:
    maps = 3 + 2 * torch.randn(2, 4, 8, 9)
    for kind in ("whiten", "instance", "instance_affine"):
        out = build_site(4, kind=kind)(maps)
        torch.testing.assert_close(out.mean((2, 3)), torch.zeros(2, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.var((2, 3), correction=0), torch.ones(2, 4), atol=1e-4, rtol=0)
    beside = build_site(4, kind="beside")
    assert beside(maps) is maps, "the path is left alone"
    torch.testing.assert_close(captured(beside, maps), build_site(4, kind="whiten")(maps))
    assert captured(build_site(4, kind="whiten"), maps) is maps
    with pytest.raises(ValueError, match="style site kind"):
        build_site(4, kind="unknown")
    with pytest.raises(UserError, match="multiple of 16 channels, not 116"):
        build_site(116, kind="switchable")


@pytest.mark.parametrize(
    ("method", "codes", "deep", "channels"),
    [
        ("base", None, False, ()),
        ("ibn", None, False, ()),
        ("isw", None, False, (64, 256, 512)),
        ("irw", (0, 0, 0, 0, 1, 1, 1), False, (512, 1024, 2048)),
        ("isw", (2, 2, 0, 2, 2, 0, 0), True, (64, 64, 256, 512)),
        ("isw", (0, 0, 2, 0, 4, 3, 0), True, (128,)),
        ("sw", None, False, ()),
        ("isw", (5, 0, 2, 5, 2, 0, 0), True, (128, 512)),
    ],
)
def test_captured_maps(method: str, codes: tuple[int, ...] | None, deep: bool, channels: tuple[int, ...]) -> None:
    network = reference.small_network(method, codes=codes, deep_stem=deep).eval()
    images, _, _ = reference.sample()
    with torch.no_grad():
        output, alone = network(images), network.style_features(images)
    assert network.style_channels == channels == tuple(maps.shape[1] for maps in output.style)
    assert len(alone) == len(channels)
    for whole, part in zip(output.style, alone, strict=True):
        assert torch.equal(whole, part)
        assert whole.min() < 0, "captured before the ReLU"
        torch.testing.assert_close(whole.mean((2, 3)), torch.zeros(whole.shape[:2]), atol=1e-4, rtol=0)


def test_style_features_stop_behind_the_last_site() -> None:
    network = reference.small_network("isw").eval()
    calls: list[str] = []
    for name in ("layer2", "layer3", "layer4"):
        conv = network.backbone.get_submodule(f"{name}.0.conv1")
        conv.register_forward_hook(lambda *_, name=name: calls.append(name))
    network.style_features(torch.randn(1, 3, 48, 48))
    assert calls == ["layer2"]


def test_stem_site_replaces_the_batch_norm_and_stage_site_is_added() -> None:
    assert "bn1.running_mean" in reference.small_network("base").backbone.state_dict()
    whitened = reference.small_network("isw").backbone.state_dict()
    assert not any(name.startswith(("bn1", "sites")) for name in whitened)
    assert "layer1.0.bn3.weight" in whitened
    affine = reference.small_network("ibn").backbone.state_dict()
    assert {"sites.stem1.weight", "sites.stage1.bias", "sites.stage2.weight"} <= affine.keys()
    assert not {"bn1.running_mean", "sites.stem1.running_mean"} & affine.keys()
    switchable = reference.small_network("sw").backbone
    for name in ("sites.stem1", "sites.stage1", "sites.stage2"):
        site = switchable.get_submodule(name)
        assert isinstance(site, SyncSwitchWhiten2d)
        assert (site.group, site.kind, site.iterations, site.momentum) == (16, 2, 5, 0.99)
        assert site.weight is not None and site.sw_var_weight is not None
    assert "bn1.running_var" not in switchable.state_dict()


def test_codes_one_two_and_three_compute_the_same() -> None:
    images, _, _ = reference.sample()
    outputs = []
    for method, code in (("iw", 1), ("isw", 2), ("is", 3)):
        torch.manual_seed(1)
        network = reference.small_network(method, codes=(0, 0, code, code, 0, 0, 0)).eval()
        with torch.no_grad():
            outputs.append(network.predict(images))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2])
    assert resolve_method("iw").whitening == "irw"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2"])
def test_sites_beside_the_path_change_no_feature(name: str) -> None:
    torch.manual_seed(0)
    network, images = Architecture(BACKBONES[name], 16), torch.randn(2, 3, 64, 64)
    first = min(BACKBONES[name].positions)
    codes = [6 if position in (first, 3, 4) else 0 for position in range(7)]
    plain, beside = network.build([0] * 7), network.build(codes)
    beside.load_state_dict(plain.state_dict())
    wanted, found = plain.eval()(images), beside.eval()(images)
    for field in ("low_level", "aux", "top"):
        assert torch.equal(getattr(found, field), getattr(wanted, field))
    assert len(found.style) == 3
    for maps in found.style:
        torch.testing.assert_close(maps.mean((2, 3)), torch.zeros(maps.shape[:2]), atol=1e-4, rtol=0)
    (sum(maps.square().sum() for maps in found.style) + found.top.sum()).backward()  # no ReLU behind overwrites them
