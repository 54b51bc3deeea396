"""ImageNet weights for the backbone: both families of files, the download, and everything that can be wrong."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from network import load_pretrained, pretrained
from network.resnet import RESNET50, ResNet
from tests import reference
from utils.errors import UserError


def published_names(backbone: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights for a backbone without style sites, under the names of torchvision and MIT CSAIL."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for ours, value in backbone.state_dict().items():
        name = re.sub(r"stem\.(convs|norms)\.(\d)", lambda m: f"{m[1][:-1]}{int(m[2]) + 1}", ours).replace("norm", "bn")
        name = re.sub(r"stage(\d)\.blocks", r"layer\1", name)
        name = name.replace("shortcut.conv", "downsample.0").replace("shortcut.bn", "downsample.1")
        random = torch.rand(value.shape, generator=generator)
        state[name] = random if value.is_floating_point() else torch.tensor(7)
    return state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def torchvision_names() -> dict[str, Tensor]:
    return published_names(reference.small_network("base").backbone)


def save(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("method", ["base", "isw", "ibn", "sw"])
def test_file_with_torchvision_names(method: str, tmp_path: Path, torchvision_names: dict[str, Tensor]) -> None:
    network = reference.small_network(method)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_pretrained(network, save(tmp_path / "r50.pth", torchvision_names))
    after = network.state_dict()
    assert torch.equal(after["backbone.stem.convs.0.weight"], torchvision_names["conv1.weight"])
    assert torch.equal(after["backbone.stage2.blocks.0.norm3.bias"], torchvision_names["layer2.0.bn3.bias"])
    same = {name for name in before if torch.equal(before[name], after[name])}
    # Only the heads and the sites behind a stage keep their own weights; an affine stem norm takes the batch norm's.
    own = (".site.", ".sw_", ".running_cov") + ((".stem.norms.0.running_mean",) if method == "sw" else ())
    assert same == {name for name in before if not name.startswith("backbone.") or any(part in name for part in own)}


def test_csail_file_wrapped_for_the_deep_stem(tmp_path: Path) -> None:
    state = published_names(reference.small_network("base", deep_stem=True).backbone)
    assert {"conv1.weight", "bn3.running_var", "conv3.weight", "layer1.0.downsample.0.weight"} <= state.keys()
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    network = reference.small_network("isw", codes=(2, 2, 0, 2, 2, 0, 0), deep_stem=True)
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    load_pretrained(network, save(tmp_path / "r101.pth", wrapped))
    after = network.backbone.state_dict()
    assert torch.equal(after["stem.convs.2.weight"], state["conv3.weight"])
    assert torch.equal(after["stem.norms.2.running_var"], state["bn3.running_var"])


def test_every_difference_is_listed(tmp_path: Path, torchvision_names: dict[str, Tensor]) -> None:
    state = dict(torchvision_names)
    del state["layer1.0.conv1.weight"], state["bn1.bias"]
    state["layer1.5.conv1.weight"] = state["extra"] = torch.zeros(3)
    state["layer2.0.bn1.weight"] = torch.zeros(5)
    network = reference.small_network("base")
    with pytest.raises(UserError) as caught:
        load_pretrained(network, save(tmp_path / "odd.pth", state))
    text = str(caught.value)
    assert "odd.pth" in text
    assert 'Missing key(s) in state_dict: "stem.norms.0.bias", "stage1.blocks.0.conv1.weight"' in text
    assert 'Unexpected key(s) in state_dict: "extra", "stage1.blocks.5.conv1.weight"' in text
    assert re.search(r"size mismatch for stage2.blocks.0.norm1.weight: .*\[5\].*\[128\]", text) and "\n" not in text


def test_the_other_stem_is_one_sentence(tmp_path: Path, torchvision_names: dict[str, Tensor]) -> None:
    deep = reference.small_network("base", deep_stem=True)
    for source in (save(tmp_path / "r50.pth", torchvision_names), "torchvision"):
        with pytest.raises(UserError, match="one 7x7 .*, but ResNet-101 with .* has three 3x3 .*--backbone resnet101"):
            load_pretrained(deep, source)
    state = published_names(deep.backbone)
    with pytest.raises(UserError, match="stem of three 3x3 convolutions, but ResNet-50 has one 7x7"):
        load_pretrained(reference.small_network("base"), save(tmp_path / "deep.pth", state))


def test_unreadable_files_name_their_path(tmp_path: Path) -> None:
    network = reference.small_network("base")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    code = save(tmp_path / "code.pth", {"conv1.weight": SimpleNamespace(a=1)})  # would run a constructor
    for path in (str(broken), code):
        with pytest.raises(UserError, match=re.escape(path)):
            load_pretrained(network, path)
    missing = str(tmp_path / "missing.pth")
    for deep, words in ((False, "torchvision's weights for ResNet-50"), (True, "MIT CSAIL's resnet101-imagenet.pth")):
        with pytest.raises(UserError, match=f"{re.escape(missing)}: there is no such file; give {words}"):
            load_pretrained(reference.small_network("base", deep_stem=deep), missing)


def test_none_changes_nothing() -> None:
    network = reference.small_network("base")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_pretrained(network, "none")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_download_is_verified(
    tmp_path: Path, torchvision_names: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file = Path(save(tmp_path / "weights.pth", torchvision_names))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    good, bad = tmp_path / f"resnet50-{digest[:8]}.pth", tmp_path / "resnet50-00000000.pth"
    for path in (good, bad):
        path.write_bytes(file.read_bytes())
    network = reference.small_network("base")

    def load_from(path: Path) -> None:
        monkeypatch.setattr(pretrained, "_weights_url", lambda backbone: path.as_uri())
        load_pretrained(network, "torchvision")

    load_from(good)
    assert torch.equal(network.backbone.state_dict()["stem.convs.0.weight"], torchvision_names["conv1.weight"])
    for path, words in ((bad, "hash"), (tmp_path / "absent-12345678.pth", "absent")):
        with pytest.raises(UserError, match=rf"(?s)could not be downloaded.*{words}.*--pretrained FILE"):
            load_from(path)


def test_address_is_torchvisions() -> None:
    url = pretrained._weights_url(reference.small_network("base").backbone)
    assert re.fullmatch(r"https://download\.pytorch\.org/models/resnet50-[0-9a-f]{8}\.pth", url)


def test_backbone_computes_what_torchvision_computes(tmp_path: Path) -> None:
    """The whole ResNet-50, with the last stage dilated as its output stride of 16 asks for."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs, ours = resnet50(), ResNet(RESNET50, sites={})
    for name, value in theirs.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
    holder: Any = SimpleNamespace(backbone=ours)
    load_pretrained(holder, save(tmp_path / "r50.pth", theirs.state_dict()))
    for block in theirs.layer4:
        block.conv2.stride, block.conv2.dilation, block.conv2.padding = (1, 1), (2, 2), (2, 2)
        if block.downsample is not None:
            block.downsample[0].stride = (1, 1)
    theirs.eval(), ours.eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        outputs = []
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            maps = stage(maps)
            outputs.append(maps)
        features = ours(images)
    for found, wanted in ((features.low_level, outputs[0]), (features.aux, outputs[2]), (features.top, outputs[3])):
        torch.testing.assert_close(found, wanted)
