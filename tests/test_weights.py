"""Weight files: ImageNet weights with the download and everything that can be wrong, and names that others gave."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from network import BACKBONES, Architecture, assemble, build_network, pretrained, resolve_method
from network.pretrained import load_pretrained
from network.weights import convert_published, detect_head, unwrap_state
from tests import reference
from tests.street_data import make_cfg
from utils.errors import UserError

# Batch norms that a style site bypasses: the published file has them, nothing reads them.
UNUSED = {"rn/shuffle_ibn": 48, "rn/shuffle_isw": 48, "rn/shuffle_isw_fixed": 48}


def on_meta(backbone: str, method: str, codes: tuple[int, ...] | None = None) -> Any:
    with torch.device("meta"):
        return assemble(Architecture(BACKBONES[backbone], 16), method=resolve_method(method, codes))


def converted(state: dict[str, Any], network: Any) -> dict[str, Any]:
    return convert_published(state, network, path="x.pth")


def random_weights(backbone: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights for a backbone without style sites, and a classifier's."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(7)
        for name, value in backbone.state_dict().items()
    }
    return state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    return random_weights(reference.small_network("base").backbone)


def save(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("method", ["base", "isw", "ibn", "sw"])
def test_file_with_torchvision_names(method: str, tmp_path: Path, imagenet: dict[str, Tensor]) -> None:
    network = reference.small_network(method)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_pretrained(network, save(tmp_path / "r50.pth", imagenet))
    after = network.state_dict()
    assert torch.equal(after["backbone.conv1.weight"], imagenet["conv1.weight"])
    assert torch.equal(after["backbone.layer2.0.bn3.bias"], imagenet["layer2.0.bn3.bias"])
    same = {name for name in before if torch.equal(before[name], after[name])}
    # Only the heads and the style sites keep their weights; an affine site in the stem takes the batch norm's.
    taken = {"backbone.sites.stem1.weight", "backbone.sites.stem1.bias"}
    assert same == {name for name in before if not name.startswith("backbone.") or ".sites." in name} - taken
    if method in ("ibn", "sw"):
        assert torch.equal(after["backbone.sites.stem1.weight"], imagenet["bn1.weight"])


def test_csail_file_wrapped_for_the_deep_stem(tmp_path: Path) -> None:
    state = random_weights(reference.small_network("base", deep_stem=True).backbone)
    assert {"conv1.weight", "bn3.running_var", "conv3.weight", "layer1.0.downsample.0.weight"} <= state.keys()
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    network = reference.small_network("isw", codes=(2, 2, 0, 2, 2, 0, 0), deep_stem=True)
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    load_pretrained(network, save(tmp_path / "r101.pth", wrapped))
    after = network.backbone.state_dict()
    assert torch.equal(after["conv3.weight"], state["conv3.weight"])
    assert torch.equal(after["bn3.running_var"], state["bn3.running_var"])


def test_every_difference_is_listed(tmp_path: Path, imagenet: dict[str, Tensor]) -> None:
    state = dict(imagenet)
    del state["layer1.0.conv1.weight"], state["bn1.bias"]
    state["layer1.5.conv1.weight"] = state["extra"] = torch.zeros(3)
    state["layer2.0.bn1.weight"] = torch.zeros(5)
    network = reference.small_network("base")
    with pytest.raises(UserError) as caught:
        load_pretrained(network, save(tmp_path / "odd.pth", state))
    text = str(caught.value)
    assert "odd.pth" in text
    assert 'Missing key(s) in state_dict: "bn1.bias", "layer1.0.conv1.weight"' in text
    assert 'Unexpected key(s) in state_dict: "extra", "layer1.5.conv1.weight"' in text
    assert re.search(r"size mismatch for layer2.0.bn1.weight: .*\[5\].*\[128\]", text) and "\n" not in text


def test_the_other_stem_is_one_sentence(tmp_path: Path, imagenet: dict[str, Tensor]) -> None:
    deep = reference.small_network("base", deep_stem=True)
    for source in (save(tmp_path / "r50.pth", imagenet), "torchvision"):
        with pytest.raises(UserError, match="one 7x7 .*, but ResNet-101 with .* has three 3x3 .*--backbone resnet101"):
            load_pretrained(deep, source)
    state = random_weights(deep.backbone)
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


def test_download_is_verified(tmp_path: Path, imagenet: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file = Path(save(tmp_path / "weights.pth", imagenet))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    good, bad = tmp_path / f"resnet50-{digest[:8]}.pth", tmp_path / "resnet50-00000000.pth"
    for path in (good, bad):
        path.write_bytes(file.read_bytes())
    network = reference.small_network("base")

    def load_from(path: Path) -> None:
        monkeypatch.setattr(pretrained, "_weights_url", lambda spec: path.as_uri())
        load_pretrained(network, "torchvision")

    load_from(good)
    assert torch.equal(network.backbone.state_dict()["conv1.weight"], imagenet["conv1.weight"])
    for path, words in ((bad, "hash"), (tmp_path / "absent-12345678.pth", "absent")):
        with pytest.raises(UserError, match=rf"(?s)could not be downloaded.*{words}.*--pretrained FILE"):
            load_from(path)


@pytest.mark.parametrize("name", BACKBONES)
def test_address_is_torchvisions(name: str) -> None:
    if name == "resnet101_deep":
        with pytest.raises(UserError, match="stem of one 7x7"):
            pretrained._weights_url(BACKBONES[name])
        return
    url = pretrained._weights_url(BACKBONES[name])
    family = name.partition("_v2")[0].partition("_0")[0].partition("_1")[0]
    assert re.fullmatch(rf"https://download\.pytorch\.org/models/{family}[\w.]*-[0-9a-f]{{8,10}}\.pth", url)


def test_backbone_computes_what_torchvision_computes(tmp_path: Path) -> None:
    """The whole ResNet-50, with the last stage dilated as its output stride of 16 asks for."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs, ours = resnet50(), assemble(Architecture(BACKBONES["resnet50"], 16), method=resolve_method("base")).backbone
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


@pytest.mark.parametrize("key", [*reference.DIIA, *(f"rn/{key}" for key in reference.ROBUSTNET)])
def test_names_and_shapes_of_every_configuration(key: str, test_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        if key in reference.DIIA:
            arch, codes = reference.DIIA[key]
            network: Any = build_network(make_cfg(METHOD="diia", WT_LAYER=list(codes), ARCH=arch))
        else:
            network = build_network(reference.robustnet(key.removeprefix("rn/")))
    wanted = reference.shapes(test_data, key)
    state = network.state_dict()
    with caplog.at_level("INFO", logger="network.weights"):
        found = converted({name: tuple(shape) for name, shape in wanted.items()}, network)
    assert found == {name: tuple(value.shape) for name, value in state.items()}
    parameters = sum(value.numel() for value in network.parameters())
    assert parameters + UNUSED.get(key, 0) == reference.shapes(test_data, f"{key}/params")
    assert ("5 entries are never used" in caplog.text and "layer0.layer.0.1.weight" in caplog.text) == (key in UNUSED)
    assert detect_head(wanted) == network.method.head


def test_entries_that_the_original_never_uses(caplog: pytest.LogCaptureFixture) -> None:
    state = dict.fromkeys(("layer0.layer.0.1.weight", "layer4.layer.1.bias", "layer4.layer.0.weight"), 0)
    plain = converted(state, on_meta("shufflenet_v2", "base"))
    assert list(plain) == [f"backbone.{name}" for name in ("conv1.1.weight", "conv5.1.bias", "conv5.0.weight")]
    state |= dict.fromkeys(("layer0.instance_norm_layer.weight", "layer4.instance_norm_layer.weight"), 0)
    with caplog.at_level("INFO", logger="network.weights"):
        kept = converted(state, on_meta("shufflenet_v2", "ibn", (0, 0, 4, 4, 0, 0, 4)))
    assert list(kept) == [f"backbone.{name}" for name in ("conv5.0.weight", "sites.stem.weight", "sites.stage4.weight")]
    assert (
        "2 entries are never used by the original and left out: layer0.layer.0.1.weight, layer4.layer.1.bias"
        in caplog.text
    )
    mobile = dict.fromkeys(("layer4.0.0.weight", "layer4.0.instance_norm_layer.weight"), 0)
    assert list(converted(mobile, on_meta("mobilenet_v2", "ibn"))) == ["backbone.features.18.0.weight"]


def test_a_stem_with_batch_norm_does_not_fit_one_with_a_site() -> None:
    found = converted({"layer0.1.running_var": 0}, on_meta("resnet50", "isw"))
    assert not found.keys() & on_meta("resnet50", "isw").state_dict().keys()


def test_conversion_without_reference_files() -> None:
    carried = reference.carried()
    for key, method in (("diia_isw", "diia"), ("plain_irw", "irw")):
        network = on_meta("resnet50", method)
        assert converted(dict.fromkeys(carried[key]["names"], 0), network).keys() == network.state_dict().keys()


def test_head_is_told_from_the_names() -> None:
    assert detect_head({"gamma": 0, "layer0.0.weight": 0}) == "diia"
    assert detect_head({"final1_sg.0.weight": 0}) == "diia"
    assert detect_head({"bot_fine.0.weight": 0, "dsn.0.weight": 0, "layer1.0.bn1.weight": 0}) == "plain"


def test_same_part_in_both_heads() -> None:
    network = reference.small_network("base")
    assert list(converted({"final1.0.weight": 0}, network)) == ["head.refine.0.conv.weight"]
    assert list(converted({"final1.0.weight": 0, "gamma": 0}, network)) == [
        "coarse.refine.0.conv.weight",
        "aggregate.gamma",
    ]


def test_unknown_names_are_all_listed() -> None:
    network = reference.small_network("base")
    unknown = ("layer9.0.conv1.weight", "encoder.bias", "final1.7.weight")
    with pytest.raises(UserError, match=r"x\.pth: 3 names are not those") as caught:
        converted(dict.fromkeys(("layer1.0.conv1.weight", *unknown), 0), network)
    for name in unknown:
        assert name in str(caught.value)
    assert "layer1.0.conv1" not in str(caught.value)
    with pytest.raises(UserError, match="gamma2"):
        converted({"gamma2": 0, "gamma": 0}, network)


def test_unwrapping() -> None:
    assert unwrap_state({"state_dict": {"module.a": 1}, "epoch": 3}) == {"a": 1}
    assert unwrap_state({"model": {"module.a": 1}}) == unwrap_state({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda value: (100 * value).to(torch.int8), lambda value: value > 0, lambda value: value.to(torch.complex64),
        lambda value: value.to(torch.float8_e4m3fn), Tensor.to_sparse,
    ],
)  # fmt: skip
def test_values_that_are_no_plain_fractions_are_refused(
    change: Any, tmp_path: Path, imagenet: dict[str, Tensor]
) -> None:
    network = reference.small_network("base")
    state = {name: change(value) if name.endswith("weight") else value for name, value in imagenet.items()}
    file = save(tmp_path / "r50.pth", {name: value for name, value in state.items() if value.dim()})
    with pytest.raises(
        UserError, match=r"r50.pth: holds integers, or sparse, .* in conv1.weight, .* and \d+ more; take"
    ):
        load_pretrained(network, file)
    timm = build_network(make_cfg(BACKBONE="timm/test_resnet", METHOD="base"))
    with pytest.raises(UserError, match=r"r50.pth: holds integers, or sparse, "):
        load_pretrained(timm, file)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_fractions_of_any_precision_are_read(dtype: torch.dtype, tmp_path: Path, imagenet: dict[str, Tensor]) -> None:
    network = reference.small_network("base")
    state = {f"module.module.{name}": value.to(dtype) if value.dim() else value for name, value in imagenet.items()}
    load_pretrained(network, save(tmp_path / "r50.pth", state))
    expected = imagenet["layer2.0.conv1.weight"].to(dtype).float()
    assert torch.equal(network.backbone.state_dict()["layer2.0.conv1.weight"], expected)
