"""Pretrained weights from whatever file people have: other names, other formats, other wrappings."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from network import BACKBONES, Architecture, assemble, resolve_method
from network.pretrained import load_pretrained
from tests import reference
from utils import checkpoint
from utils.errors import UserError


def randomised(network: nn.Module) -> Any:
    """The network with random statistics and shifts too, for evaluation."""
    torch.manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return network.eval()


def backbone_of(name: str, method: str = "base") -> Any:
    """A network like the one that a run builds, at stride 32: nothing is dilated."""
    return assemble(Architecture(BACKBONES[name], 32), method=resolve_method(method)).eval()


def tonylins(network: nn.Module) -> dict[str, Tensor]:
    """The entries of torchvision's MobileNetV2 where every block is one flat list of layers, ReLU included."""
    places = {
        f"features.{number}.conv.{inner}": f"features.{number}.conv.{place}"
        for number in range(1, 18)
        for place, inner in enumerate(
            name
            for name, layer in network.get_submodule(f"features.{number}.conv").named_modules()
            if not [*layer.children()]
        )
    }
    split = {name: name.rpartition(".") for name in network.state_dict()}
    return {f"{places.get(split[n][0], split[n][0])}.{split[n][2]}": v for n, v in network.state_dict().items()}


@pytest.mark.parametrize("source", ["torchvision", "timm", "tonylins"])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_mobilenet_of_three_origins(source: str, ending: str, tmp_path: Path) -> None:
    from timm import create_model
    from torchvision.models import mobilenet_v2

    theirs = randomised(create_model("mobilenetv2_100") if source == "timm" else mobilenet_v2())
    state = tonylins(theirs) if source == "tonylins" else theirs.state_dict()
    if source == "tonylins":
        assert {"features.1.conv.4.weight", "features.2.conv.7.bias"} <= state.keys()
        state = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    (torch.save if ending == ".pth" else save_file)(state, file := tmp_path / f"weights{ending}")
    network = backbone_of("mobilenet_v2")
    load_pretrained(network, str(file))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = theirs.forward_features(images) if source == "timm" else theirs.features(images)
        torch.testing.assert_close(network.backbone(images).top, wanted)


@pytest.mark.parametrize("deep", [False, True])
def test_resnet_of_timm(deep: bool, tmp_path: Path) -> None:
    from timm.models.resnet import Bottleneck, ResNet

    block: Any = Bottleneck  # timm types the argument as an instance
    stem: dict[str, Any] = {"stem_type": "deep", "stem_width": 64} if deep else {}
    theirs = randomised(ResNet(block, (1, 1, 1, 1), output_stride=16, **stem))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    network = reference.small_network("base", deep_stem=deep).eval()
    load_pretrained(network, str(tmp_path / "timm.pth"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network.backbone(images).top, theirs.forward_features(images))
    with pytest.raises(UserError, match="these weights have a stem of"):
        load_pretrained(reference.small_network("base", deep_stem=not deep), str(tmp_path / "timm.pth"))


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        ("state_dict", "module."),
        ("model", "_orig_mod."),
        ("model_state_dict", "_orig_mod.module."),
        ("net", "module.module."),
        ("network", "backbone."),
        ("model state_dict", ""),
        ("module", ""),
    ],
)
def test_wrappings_are_removed_and_logged(
    wrap: str, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, theirs = reference.small_network("isw"), reference.small_network("base").backbone
    content: Any = {prefix + name: value for name, value in theirs.state_dict().items()}
    if prefix == "backbone.":
        content |= {"decode_head.weight": torch.ones(3), "auxiliary_head.bias": torch.ones(1)}
    for key in reversed(wrap.split()):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "wrapped.pth")
    with caplog.at_level("INFO"):
        load_pretrained(network, str(tmp_path / "wrapped.pth"))
    assert torch.equal(
        network.backbone.state_dict()["layer4.0.conv2.weight"], theirs.state_dict()["layer4.0.conv2.weight"]
    )
    words = [*(f"the entry {key}" for key in wrap.split()), *([f"the prefix {prefix}"] if "mod" in prefix else [])]
    words += ["entries below backbone. are taken, 2 others not"] if prefix == "backbone." else []
    assert all(word in caplog.text for word in words)


def test_prefixes_on_both_sides_of_backbone(tmp_path: Path) -> None:
    theirs = reference.small_network("base").backbone.state_dict()
    torch.save({f"module.backbone._orig_mod.{name}": value for name, value in theirs.items()}, tmp_path / "both.pth")
    network = reference.small_network("base")
    load_pretrained(network, str(tmp_path / "both.pth"))
    assert all(torch.equal(value, theirs[name]) for name, value in network.backbone.state_dict().items())


@pytest.mark.parametrize("averaged", [False, True])
def test_backbone_of_our_own_checkpoint(averaged: bool, tmp_path: Path) -> None:
    theirs = reference.small_network("isw").state_dict()
    average = {name: value + 1 for name, value in theirs.items()}
    parts: dict[str, Any] = {part: {} for part in checkpoint.KEYS - {"schema"}}
    content = parts | {"network": theirs, "average": average if averaged else {}, "kind": "last", "world_size": 1}
    checkpoint.save(tmp_path / "last.pth", content)
    network = reference.small_network("diia")  # another head; both whiten, so that no batch norm is in the stem
    heads = {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("backbone.")}
    load_pretrained(network, str(tmp_path / "last.pth"))
    wanted = average if averaged else theirs
    found = network.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items() if name.startswith("backbone."))
    assert all(torch.equal(value, found[name]) for name, value in heads.items())
    with pytest.raises(UserError, match=r"last\.pth: does not fit .*Missing .*\"bn1\.weight\""):
        load_pretrained(reference.small_network("base"), str(tmp_path / "last.pth"))


def test_messages_stay_short_and_the_log_has_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from torchvision.models import resnet101

    state = {f"encoder.trunk.{name}": value for name, value in resnet101().state_dict().items()}
    torch.save({"model": state}, tmp_path / "other.pth")
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as caught:
        load_pretrained(reference.small_network("base"), str(tmp_path / "other.pth"))
    text = str(caught.value).replace(str(tmp_path), "")
    assert len(text) < 700 and '"conv1.weight"' in text and '"encoder.trunk.conv1.weight"' in text
    assert f"and {len(state) - 3} more" in text, "unexpected ones"
    assert "encoder.trunk.layer4.2.bn3.running_var" in caplog.text


def test_many_shapes_are_one_and_a_number(tmp_path: Path) -> None:
    torch.save(backbone_of("wide_resnet50").backbone.state_dict(), tmp_path / "wide.pth")
    with pytest.raises(
        UserError, match=r"\(size mismatch for layer1.0.conv1.weight: [^;]* and \d+ more\); give those"
    ) as caught:
        load_pretrained(backbone_of("resnet50"), str(tmp_path / "wide.pth"))
    assert len(str(caught.value).replace(str(tmp_path), "")) < 400


@pytest.mark.parametrize(
    ("value", "name"), [(Namespace(lr=1), "argparse.Namespace"), (SimpleNamespace(), "SimpleNamespace")]
)
def test_a_blocked_class_is_named(value: object, name: str, tmp_path: Path) -> None:
    torch.save({"model": {"conv1.weight": torch.ones(1)}, "args": value}, tmp_path / "args.pth")
    with pytest.raises(
        UserError,
        match=rf"args\.pth: not a readable weight file .*needs \w+\.{name.rpartition('.')[2]}, which may run code",
    ):
        load_pretrained(reference.small_network("base"), str(tmp_path / "args.pth"))


def test_a_page_in_place_of_weights(tmp_path: Path) -> None:
    for name in ("page.pth", "page.safetensors"):
        (tmp_path / name).write_text("<!DOCTYPE html><html><body>Not found</body></html>")
        with pytest.raises(UserError, match=rf"{name}: not a readable weight file"):
            load_pretrained(reference.small_network("base"), str(tmp_path / name))
